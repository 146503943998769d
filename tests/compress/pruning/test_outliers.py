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
