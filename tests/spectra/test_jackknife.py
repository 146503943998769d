"""The standard error of alpha that is due to the choice of the windows."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import oracles
import tempbalance as tb
from tempbalance.weight_fit import fit_weight

# Alpha of the 225 windows of FARMSAsReleased(192, 15), as many as the paper takes, of each layer of MiniLM.
MANY_WINDOWS = json.loads((Path(__file__).parents[1] / "golden" / "farms_minilm.json").read_text())


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_standard_error_is_that_of_a_jackknife():
    weight = random(60, 90)
    farms = tb.FARMS(windows=(2, 3))
    found = fit_weight(weight, windows=farms)
    grid = farms.grid((60, 90))
    windows = [oracles.eigenvalues(oracles.cut(weight[None].numpy(), grid.size, [start])) for start in grid.starts]
    alphas = [oracles.hill(np.concatenate(windows[:j] + windows[j + 1 :])) for j in range(6)]
    jackknife = math.sqrt(5 / 6 * np.sum((np.array(alphas) - np.mean(alphas)) ** 2))
    assert found.fit.stderr == pytest.approx(jackknife * 2.5706 / 1.9600, rel=1e-3)


def test_windows_are_added_until_the_standard_error_is_within_the_tolerance():
    weight = random(96, 96)
    loose, tight = (fit_weight(weight, windows=tb.FARMS(tolerance=t)) for t in (1.0, 0.015))
    assert loose.num_windows == 5 < tight.num_windows <= 64
    assert tight.fit.stderr <= 0.015 or tight.num_windows == 64


def test_windows_are_added_up_to_all_positions():
    found = fit_weight(random(40, 41), windows=tb.FARMS(rows=40, tolerance=1e-9))
    assert found.num_windows == 2


def test_a_single_window_has_the_standard_error_of_the_estimator():
    weight = random(40, 40)
    fit = fit_weight(weight, windows=tb.FARMS(rows=40)).fit
    assert fit == tb.Hill().fit(tb.weight_spectrum(weight))


@pytest.mark.parametrize("weight", [torch.zeros(40, 40), torch.eye(40), torch.ones(3, 3), torch.ones(1, 50)])
def test_a_weight_without_a_fit_has_a_status_and_no_standard_error(weight):
    found = fit_weight(weight, windows=tb.FARMS())
    assert found.fit.status is not tb.types.Status.OK
    assert math.isnan(found.fit.stderr)


def test_the_standard_error_is_at_least_that_of_a_random_matrix():
    weight = random(20, 20).tile(2, 2)  # four windows that are all the same
    fit = fit_weight(weight, windows=tb.FARMS(windows=2)).fit
    assert fit.stderr == pytest.approx(3.5 * (fit.alpha - 1) / 20 / 2)


@pytest.mark.parametrize("estimator", [tb.Hill(), tb.AveragedHill()], ids=["hill", "averaged"])
def test_95_percent_of_small_matrices_are_within_2_standard_errors(estimator):
    """Reference: the alpha of 225 windows."""
    within = []
    for seed in range(12):
        weight = random(64, 64, seed=seed) * random(64, seed=seed + 100).exp().sqrt()
        fit = fit_weight(weight, estimator=estimator, windows=tb.FARMS()).fit
        many = fit_weight(weight, estimator=estimator, windows=tb.FARMS(windows=15)).fit
        within.append(abs(fit.alpha - many.alpha) <= 2 * fit.stderr)
    assert sum(within) >= 0.95 * len(within)


@pytest.mark.parametrize("estimator", [tb.Peak(), tb.KS()], ids=["peak", "ks"])
def test_the_standard_error_of_a_search_is_finite_and_at_least_that_of_a_random_matrix(estimator):
    found = fit_weight(random(64, 64), estimator=estimator, windows=tb.FARMS())
    least = 3.5 * (found.fit.alpha - 1) / 32 / math.sqrt(found.num_windows)
    assert least <= found.fit.stderr < math.inf


def test_95_percent_of_the_layers_of_a_transformer_are_within_2_standard_errors(minilm):
    weights = load_file(minilm / "model.safetensors")
    assert len(MANY_WINDOWS) == 37
    fits = {name: fit_weight(weights[name], windows=tb.FARMS()).fit for name in MANY_WINDOWS}
    assert sum(abs(fit.alpha - MANY_WINDOWS[name]) > 2 * fit.stderr for name, fit in fits.items()) <= 1


def test_the_reference_alphas_of_a_transformer_are_those_of_225_windows(minilm):
    name, expected = next(iter(MANY_WINDOWS.items()))
    weight = load_file(minilm / "model.safetensors")[name]
    found = fit_weight(weight, windows=tb.released.FARMSAsReleased(192, 15))
    assert (found.num_windows, found.fit.alpha) == (225, pytest.approx(expected, rel=1e-9))
