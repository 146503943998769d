"""Trainable layers for axolotl: the rules of its utils/freeze.py."""

import re

import pytest
import torch

import tempbalance as tb
from tempbalance.compress import allocate_trainable, export_axolotl, set_trainable
from tempbalance.errors import AllocationError

yaml = pytest.importorskip("yaml")


def matches(pattern: str, name: str) -> bool:
    """LayerNamePattern: no range in brackets at the end; dots are escaped, and the name is matched from its start."""
    assert re.match(r"^(.+)\[([0-9]*)(?::([0-9]*))?\]$", pattern) is None
    return re.compile(re.sub(r"\.(?!\+)", "\\.", pattern)).match(name) is not None


def test_axolotl_trains_the_same_parameters_as_set_trainable(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 12}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "attention_bias": True}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads))
    analysis = tb.analyze(model, select=tb.Select(embeddings=True), progress=False)
    scores = {row.name: float(torch.rand(())) for row in analysis.layers}
    allocation = allocate_trainable(analysis, 0.25, method="drift", scores=scores)
    export_axolotl(allocation, tmp_path / "unfrozen.yaml")
    patterns = yaml.safe_load((tmp_path / "unfrozen.yaml").read_text())["unfrozen_parameters"]
    set_trainable(model, allocation)
    trained = {name for name, each in model.named_parameters() if each.requires_grad}
    assert {name for name, _ in model.named_parameters() if any(matches(p, name) for p in patterns)} == trained
    assert {"model.embed_tokens.weight", "lm_head.weight"} < trained
    assert any(name.endswith("q_proj.bias") for name in trained)


def test_names_that_a_pattern_would_misread_and_other_quantities_are_refused(analysis_of, tmp_path):
    analysis = analysis_of(["h.0.a+.weight"], [2.0], [(8, 8)])
    with pytest.raises(AllocationError, match=r"'h\.0\.a\+\.weight'"):
        export_axolotl(allocate_trainable(analysis, 1, method="alpha"), tmp_path / "out.yaml")
    with pytest.raises(AllocationError, match="expected an allocation of trainable"):
        export_axolotl(tb.allocate_ranks(analysis, 2), tmp_path / "out.yaml")
    assert not list(tmp_path.iterdir())
