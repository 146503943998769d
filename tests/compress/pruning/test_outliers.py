"""Outlier ratios of blocks, and their use by OWL."""

import pytest
import torch

import tempbalance as tb
from tempbalance.errors import AllocationError


def allocate(model, sparsity=0.5, **options):
    return tb.allocate_sparsity(tb.analyze(model, progress=False), sparsity, **{"method": "alpha", **options})


def test_owl_prunes_blocks_with_more_outliers_less(make_llama, tokens):
    model = make_llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[:4] *= 50
    found = tb.compress.outlier_ratios(model, tokens)
    assert found["model.layers.1"] > found["model.layers.0"]
    allocation = allocate(model, 0.5, epsilon=0.08, method="owl", outliers=found)
    dense, sparse = allocation["model.layers.1.mlp.up_proj.weight"], allocation["model.layers.0.mlp.up_proj.weight"]
    assert sparse - dense == pytest.approx(0.16, abs=1e-3)


def test_outlier_ratios_agree_with_a_naive_count(make_llama, tokens, naive_wanda):
    model = make_llama()
    allocation = allocate(model, 0.5)
    expected = {}
    waiting = []
    for name, scores in naive_wanda(model, allocation, tokens):
        if scores is not None:
            waiting.append(scores.flatten())
            continue
        pooled = torch.cat(waiting)
        expected[name.rstrip(".")] = float((pooled > 3 * pooled.mean()).double().mean())
        waiting = []
    assert tb.compress.outlier_ratios(model, tokens, 3.0) == pytest.approx(expected, abs=1e-4)


def test_owl_without_outlier_ratios_is_refused(make_llama):
    with pytest.raises(AllocationError, match="outlier_ratios"):
        allocate(make_llama(), 0.5, method="owl")


def test_experts_in_a_stack_have_no_outlier_ratios(tokens):
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 3}
    model = transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes, **heads))
    with pytest.raises(AllocationError, match=r"and .*experts\.\S+ is not the weight of one: choose another"):
        tb.compress.outlier_ratios(model, tokens)
