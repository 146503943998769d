"""Tensor types for llama-quantize: the rules of its tools/quantize/quantize.cpp."""

import re
from pathlib import Path

import pytest

import tempbalance as tb
from tempbalance.compress import allocate_bits, export_llama_quantize
from tempbalance.errors import AllocationError

gguf = pytest.importorskip("gguf")
PARTS = [f"self_attn.{part}_proj" for part in "qkvo"] + [f"mlp.{part}_proj" for part in ("gate", "up", "down")]


def parse(path: Path) -> list[tuple[str, gguf.GGMLQuantizationType]]:
    """parse_tensor_type_file: words of ``name=type``; the name is made lower case, the type matched in any case."""
    pairs = [word.split("=") for word in path.read_text().split()]
    return [(name.lower(), gguf.GGMLQuantizationType[kind.upper()]) for name, kind in pairs]


def kind_of(tensor: str, options: list[tuple[str, gguf.GGMLQuantizationType]]) -> str | None:
    """llama_tensor_get_type: the first pattern that is found in the name counts."""
    return next((kind.name for pattern, kind in options if re.search(pattern, tensor)), None)


def test_every_tensor_gets_the_type_of_its_module(analysis_of, tmp_path):
    """Twelve blocks: ``blk.1`` must not match ``blk.10``; alphas from 2 give every width."""
    modules = [f"model.layers.{i}.{part}" for i in range(12) for part in PARTS]
    alphas = [2 + (i * 7 % 23) / 4 for i in range(len(modules))]
    analysis = analysis_of([f"{name}.weight" for name in modules], alphas, [(256, 512)] * len(modules))
    allocation = allocate_bits(analysis, 4, method="alpha", gamma=5)
    assert set(allocation.values()) == {2, 3, 4, 8}
    export_llama_quantize(allocation, tmp_path / "types.txt")
    options = parse(tmp_path / "types.txt")
    names = dict(
        zip(PARTS, ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"], strict=True)
    )
    kinds = {2: "Q2_K", 3: "Q3_K", 4: "Q4_K", 8: "Q8_0"}
    for name, bits in allocation.items():
        block, part = name.removeprefix("model.layers.").split(".", 1)
        assert kind_of(f"blk.{block}.{names[part]}.weight", options) == kinds[bits]
    assert kind_of("output.weight", options) is None
    assert kind_of("blk.1.attn_norm.weight", options) is None


def test_formats_get_their_own_types_and_architectures_their_own_names(analysis_of, tmp_path):
    analysis = analysis_of([f"transformer.h.{i}.mlp.c_fc.weight" for i in range(3)], [2.0] * 3, [(64, 64)] * 3)
    formats = ("q5_0", "mxfp4", "fp16")
    errors = {f"transformer.h.{i}.mlp.c_fc": {f: float(f != formats[i]) for f in formats} for i in range(3)}
    allocation = allocate_bits(analysis, 16, widths=formats, method="error", errors=errors)
    found = export_llama_quantize(allocation, tmp_path / "types.txt", "gpt2")
    assert found == {f"blk.{i}.ffn_up.weight": kind for i, kind in enumerate(("q5_0", "mxfp4", "f16"))}
    assert [kind for _, kind in parse(tmp_path / "types.txt")] == [
        gguf.GGMLQuantizationType[k.upper()] for k in found.values()
    ]


@pytest.mark.parametrize(
    ("layer", "options", "architecture", "match"),
    [
        (
            ("up_proj", 128),
            {"bits": 4},
            "llama",
            "4 bits .* no multiple of 256: .*--formats q4_0,q5_0",
        ),
        (("up_proj", 128), {"bits": 5, "widths": ("nvfp4",)}, "llama", "no such type"),
        (("up_proj", 256), {"bits": 7, "widths": (7,)}, "llama", "no such type"),
        (("middle", 256), {"bits": 4}, "llama", "is not a tensor of llama in GGUF"),
        (("up_proj", 256), {"bits": 4}, "lama", "no architecture 'lama'"),
    ],
)
def test_what_llama_quantize_would_change_or_not_find_is_refused(
    analysis_of, tmp_path, layer, options, architecture, match
):
    part, columns = layer
    analysis = analysis_of([f"model.layers.0.mlp.{part}.weight"], [2.0], [(256, columns)])
    with pytest.raises(AllocationError, match=match):
        export_llama_quantize(allocate_bits(analysis, **options), tmp_path / "types.txt", architecture)
    assert not list(tmp_path.iterdir())


def test_another_quantity_is_refused(analysis_of, tmp_path):
    allocation = tb.allocate_sparsity(analysis_of(["model.layers.0.mlp.up_proj.weight"], [2.0], [(256, 256)]), 0.5)
    with pytest.raises(AllocationError, match="expected an allocation of bits"):
        export_llama_quantize(allocation, tmp_path / "types.txt")
