"""Recipes for llm-compressor: it prunes and quantizes every module as allocated."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import tempbalance as tb
from tempbalance.compress import Allocation, allocate_bits, export_llmcompressor
from tempbalance.errors import AllocationError

THEIRS = pytest.mark.filterwarnings("ignore")  # warnings of llm-compressor
Allocate = Callable[..., Allocation]
SIZES = {"vocab_size": 32, "hidden_size": 64, "intermediate_size": 96, "max_position_embeddings": 32}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}


def run_recipe(model: Any, path: Path, tokens: list[Tensor]) -> None:
    """Run a recipe as a user does."""
    datasets, tokenizers = pytest.importorskip("datasets"), pytest.importorskip("tokenizers")
    llmcompressor = pytest.importorskip("llmcompressor")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0}, unk_token="?"))  # required, but not used
    rows = {"input_ids": [t.tolist() for t in tokens], "attention_mask": [[1] * len(t) for t in tokens]}
    transformers = pytest.importorskip("transformers")
    llmcompressor.oneshot(
        model=model, recipe=str(path), dataset=datasets.Dataset.from_dict(rows), pipeline="sequential",
        num_calibration_samples=len(tokens), max_seq_length=24, shuffle_calibration_samples=False,
        processor=transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="?"),
    )  # fmt: skip


@pytest.fixture
def saved_llama(make_llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A model loaded from a folder, where oneshot reads the configuration."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    make_llama().save_pretrained(tmp_path / "model")
    return type(make_llama()).from_pretrained(tmp_path / "model")


def test_a_sparsegpt_recipe_gives_the_allocated_zeros_up_to_one_per_block_of_columns(
    saved_llama: Any, tokens: list[Tensor], tmp_path: Path, allocation_for: Allocate, zeros_of: Any
):
    allocation = allocation_for(
        saved_llama, lambda place, numel: (0, 1, numel)[place] if place < 3 else numel * (place + 1) // 20
    )
    export_llmcompressor(allocation, tmp_path / "recipe.yaml")
    run_recipe(saved_llama, tmp_path / "recipe.yaml", tokens)
    made, wanted = zeros_of(saved_llama, allocation), {layer.name: layer.zeros for layer in allocation.layers}
    blocks = {layer.name: -(-layer.shape[1] // 128) for layer in allocation.layers}
    assert all(wanted[name] - blocks[name] < made[name] <= wanted[name] for name in allocation)


def test_a_wanda_recipe_gives_the_allocated_zeros_rounded_down_in_each_row(
    saved_llama: Any, tokens: list[Tensor], tmp_path: Path, allocation_for: Allocate, zeros_of: Any
):
    allocation = allocation_for(saved_llama)
    export_llmcompressor(allocation, tmp_path / "recipe.yaml", modifier="WandaPruningModifier")
    run_recipe(saved_llama, tmp_path / "recipe.yaml", tokens)
    rows = {layer.name: layer.shape for layer in allocation.layers}
    assert zeros_of(saved_llama, allocation) == {n: rows[n][0] * int(rows[n][1] * allocation[n]) for n in allocation}


def test_a_wanda_recipe_gives_the_allocated_n_of_m_sparsity(
    saved_llama: Any, tokens: list[Tensor], tmp_path: Path, allocation_for: Allocate
):
    allocation = dataclasses.replace(
        allocation_for(saved_llama, lambda place, numel: numel * (place % 5) // 8), group=8
    )
    export_llmcompressor(allocation, tmp_path / "recipe.yaml", modifier="WandaPruningModifier")
    run_recipe(saved_llama, tmp_path / "recipe.yaml", tokens)
    for place, name in enumerate(allocation):
        each = (saved_llama.get_parameter(name).reshape(-1, 8) == 0).sum(dim=1)
        assert each.unique().tolist() == [place % 5], name


@settings(max_examples=25, deadline=None)
@given(
    names=st.lists(st.text(min_size=1, max_size=12).filter(str.isprintable), min_size=1, max_size=5, unique=True),
    data=st.data(),
)
def test_llm_compressor_reads_the_names_and_sparsities_of_a_recipe(
    names: list[str], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory, allocation_of: Allocate
):
    recipe = pytest.importorskip("llmcompressor.recipe")
    weights = [f"{name}.weight" for name in names]
    zeros = {name: data.draw(st.integers(1, 10**7)) for name in weights}
    allocation = allocation_of(zeros, dict.fromkeys(weights, (2500, 4000)))
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    export_llmcompressor(allocation, path, modifier="WandaPruningModifier")
    modifiers = recipe.Recipe.create_instance(str(path)).modifiers
    assert {f"{m.targets[0]}.weight": m.sparsity for m in modifiers} == dict(allocation)
    assert all(len(m.targets) == 1 for m in modifiers)


@pytest.mark.parametrize("modifier", ["magnitude", "GPTQModifier"])
def test_a_modifier_that_does_not_prune_is_refused(modifier: Any, allocation_of: Allocate, tmp_path: Path):
    with pytest.raises(AllocationError, match=modifier):
        export_llmcompressor(allocation_of({"a.weight": 8}, {"a.weight": (4, 4)}), tmp_path / "out", modifier=modifier)


@pytest.fixture
def in_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run llm-compressor in a temporary folder, where it writes logs, and restore the environment it changes."""
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def bits_for(model: torch.nn.Module) -> Allocation:
    """Allocate 4 bits with made-up alphas, because the untrained model has none."""
    analysis = tb.analyze(model, progress=False)
    rows = [dataclasses.replace(row, alpha=2 + 0.1 * (i % 23)) for i, row in enumerate(analysis.layers)]
    return allocate_bits(dataclasses.replace(analysis, layers=rows), 4, method="alpha", gamma=6)


def widths(model: torch.nn.Module) -> dict[str, int]:
    """Return the width of every module that has a quantization scheme."""
    schemes = {name: getattr(module, "quantization_scheme", None) for name, module in model.named_modules()}
    return {name: scheme.weights.num_bits for name, scheme in schemes.items() if scheme is not None}


@THEIRS
@pytest.mark.usefixtures("in_temporary_folder")
def test_every_module_is_quantized_to_its_width_and_the_folder_loads():
    """Twelve layers: ``layers.1`` must not match ``layers.10``."""
    transformers, _ = pytest.importorskip("transformers"), pytest.importorskip("llmcompressor")
    from llmcompressor import oneshot

    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, **HEADS, num_hidden_layers=12)
    transformers.LlamaForCausalLM(config).save_pretrained("dense")
    model = transformers.LlamaForCausalLM.from_pretrained("dense")
    allocation = bits_for(model)
    assert set(allocation.values()) == {2, 3, 4, 8}
    export_llmcompressor(allocation, "recipe.yaml", modifier="QuantizationModifier", group_size=32)
    oneshot(model=model, recipe="recipe.yaml", output_dir="quantized")
    assert widths(model) == dict(allocation)
    loaded = transformers.LlamaForCausalLM.from_pretrained("quantized")
    for layer in allocation.layers:
        packed = loaded.get_submodule(layer.name).weight_packed
        assert packed.element_size() * 8 * packed.numel() == layer.bits * layer.numel


@THEIRS
@pytest.mark.usefixtures("in_temporary_folder")
def test_a_gptq_recipe_has_the_same_groups_of_modules():
    transformers, _ = pytest.importorskip("transformers"), pytest.importorskip("llmcompressor")
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.recipe import Recipe

    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, **HEADS, num_hidden_layers=2))
    allocation = bits_for(model)
    export_llmcompressor(allocation, "recipe.yaml", group_size=32)
    (modifier,) = Recipe.create_instance("recipe.yaml").modifiers
    assert isinstance(modifier, GPTQModifier)
    groups = modifier.resolved_config.config_groups.values()
    assert {name: group.weights.num_bits for group in groups for name in group.targets} == dict(allocation)


@THEIRS
@pytest.mark.usefixtures("in_temporary_folder")
def test_experts_are_quantized_to_the_widths_of_their_own_projections():
    transformers, _ = pytest.importorskip("transformers"), pytest.importorskip("llmcompressor")
    from llmcompressor import oneshot
    from llmcompressor.modeling.moe.linearize import linearize_moe

    torch.manual_seed(0)
    config = transformers.MixtralConfig(**SIZES, **HEADS, num_hidden_layers=2, num_local_experts=4)
    transformers.MixtralForCausalLM(config).save_pretrained("dense")
    model = transformers.MixtralForCausalLM.from_pretrained("dense")
    allocation = bits_for(model)
    stack = "model.layers.1.mlp.experts"
    assert len(set(allocation.values())) > 1
    export_llmcompressor(allocation, "recipe.yaml", modifier="QuantizationModifier", group_size=32)
    linearize_moe(model)
    oneshot(model=model, recipe="recipe.yaml")
    found = widths(model)
    assert len(found) == len(allocation)
    for i in range(4):
        assert found[f"{stack}.{i}.gate_proj"] == allocation[f"{stack}.gate_up_proj:{i}:gate"]
        assert found[f"{stack}.{i}.up_proj"] == allocation[f"{stack}.gate_up_proj:{i}:up"]
        assert found[f"{stack}.{i}.down_proj"] == allocation[f"{stack}.down_proj:{i}"]


@pytest.fixture
def bits(analysis_of: Any) -> Allocation:
    """Three modules with 64 columns."""
    names = [f"h.{i}.a.weight" for i in range(3)]
    return allocate_bits(analysis_of(names, [2.0, math.nan, 6.0], [(64, 64)] * 3), 3, method="alpha", gamma=9)


def test_a_recipe_of_bits_names_every_module_once(bits: Allocation, tmp_path: Path):
    export_llmcompressor(bits, tmp_path / "recipe.yaml", modifier="QuantizationModifier", group_size=32)
    (stage,) = json.loads((tmp_path / "recipe.yaml").read_text()).values()
    groups = stage["quantization_modifiers"]["QuantizationModifier"]["config_groups"].values()
    assert {name: group["weights"]["num_bits"] for group in groups for name in group["targets"]} == dict(bits)
    assert sum(len(group["targets"]) for group in groups) == len(bits)
    assert all(group["weights"]["group_size"] == 32 for group in groups)


def test_columns_that_the_group_size_does_not_divide_are_refused(bits: Allocation, tmp_path: Path):
    with pytest.raises(AllocationError, match=r"64 columns.*group_size=128: .* --formats int4_g64,"):
        export_llmcompressor(bits, tmp_path / "recipe.yaml")


def test_a_width_of_one_bit_is_refused(analysis_of: Any, tmp_path: Path):
    allocation = allocate_bits(analysis_of(["h.0.a.weight"], [2.0], [(8, 8)]), 1, widths=(1, 2))
    with pytest.raises(AllocationError, match="2 to 8 bits"):
        export_llmcompressor(allocation, tmp_path / "recipe.yaml")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["h.0.experts.w1:3", "h.0.experts.gate_up_proj:3"])
def test_experts_that_llm_compressor_does_not_linearize_are_refused(analysis_of: Any, tmp_path: Path, name: str):
    with pytest.raises(AllocationError, match=name):
        export_llmcompressor(allocate_bits(analysis_of([name], [2.0], [(8, 8)]), 3), tmp_path / "recipe.yaml")


@THEIRS
@pytest.mark.usefixtures("in_temporary_folder")
def test_every_module_is_quantized_to_its_format():
    transformers, _ = pytest.importorskip("transformers"), pytest.importorskip("llmcompressor")
    from llmcompressor import oneshot

    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, **HEADS, num_hidden_layers=1)
    transformers.LlamaForCausalLM(config).save_pretrained("dense")
    model = transformers.LlamaForCausalLM.from_pretrained("dense")
    analysis = tb.analyze(model, progress=False)
    formats = ["int3_g32", "int4", "fp8", "nvfp4", "mxfp4", "mxfp8", "bf16"]
    names = [row.name.removesuffix(".weight") for row in analysis.layers if row.block]
    errors = {name: {each: float(each != own) for each in formats} for name, own in zip(names, formats, strict=True)}
    allocation = allocate_bits(analysis, 16, widths=formats, method="error", errors=errors)
    export_llmcompressor(allocation, "recipe.yaml", "QuantizationModifier")
    oneshot(model=model, recipe="recipe.yaml")
    found = {name: getattr(model.get_submodule(name), "quantization_scheme", None) for name in names}
    args = [scheme and scheme.weights for scheme in found.values()]
    assert [each and (each.num_bits, each.type, each.group_size) for each in args] == [
        *((3, "int", 32), (4, "int", None), (8, "float", None), (4, "float", 16)),
        *((4, "float", 32), (8, "float", 32), None),
    ]


@pytest.mark.parametrize(
    ("formats", "match"),
    [(("q4_0",), "cannot quantize weights to q4_0"), (("bf16",), "no layer is quantized")],
)
def test_formats_that_llm_compressor_does_not_have_are_refused(
    analysis_of: Any, tmp_path: Path, formats: Any, match: str
):
    allocation = allocate_bits(analysis_of(["h.0.a.weight"], [2.0], [(64, 64)]), 16, widths=formats)
    with pytest.raises(AllocationError, match=match):
        export_llmcompressor(allocation, tmp_path / "recipe.yaml")
