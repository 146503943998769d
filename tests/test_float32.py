"""Eigenvalues in float32: every number of a row is within 1e-4 of a naive float64 computation."""

import dataclasses
import math

import numpy as np
import pytest
import torch

import oracles
import tempbalance as tb
from tempbalance.errors import ArgumentError, WindowError
from tempbalance.float32 import equal_numbers, moved_spectra
from tempbalance.metrics import measure
from tempbalance.spectra import Layout
from tempbalance.testing import matrix_with_spectrum, pareto_sample
from tempbalance.types import Spectrum
from tempbalance.weight_fit import fit_weights

IN_FLOAT32 = 1e-9  # least error bound of a row in float32


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pareto(rows, columns, alpha, seed):
    return matrix_with_spectrum(pareto_sample(min(rows, columns), alpha, seed=seed), (rows, columns), seed=seed).float()


def in_float32(weight, estimator):
    matrices = weight if weight.ndim == 3 else weight[None]
    return fit_weights([matrices], [Layout.STACK], estimator=estimator, dtype=torch.float32)[0]


def naive(weight, estimator):
    """The numbers of a row from singular values in float64."""
    matrices = weight.double().numpy() if weight.ndim == 3 else weight[None].double().numpy()
    values = oracles.eigenvalues(matrices)
    values[values <= max(weight.shape[-2:]) * np.finfo(np.float64).eps * values[-1]] = 0
    stable_rank = np.mean([(matrix**2).sum() / np.linalg.norm(matrix, 2) ** 2 for matrix in matrices])
    spectrum = Spectrum(
        eigenvalues=torch.from_numpy(values),
        shape=tuple(weight.shape[-2:]),
        num_matrices=len(matrices),
        error_bound=0.0,
        stable_rank=float(stable_rank),
    )
    fit = estimator.fit(spectrum)
    return dataclasses.asdict(fit) | dataclasses.asdict(measure(spectrum, fit))


CASES = {
    **{f"pareto {alpha} {shape}": pareto(*shape, alpha, 3) for alpha in (2.2, 4.0) for shape in ((90, 90), (60, 200))},
    "gauss": noise(120, 120),
    "taps": noise(4, 40, 30) @ torch.diag(torch.linspace(0.2, 3, 30)),
    "spike": noise(80, 80) + 20 * noise(80, 1, seed=1) @ noise(1, 80, seed=2),
    "half": pareto(100, 100, 3.0, 5).half(),
    "large": 1e15 * noise(64, 64),
    "tiny": 1e-30 * noise(64, 70),
}


@pytest.mark.parametrize("estimator", [tb.Hill(), tb.KS()], ids=["hill", "ks"])
@pytest.mark.parametrize("name", CASES)
def test_every_number_is_that_of_float64(name, estimator):
    found = in_float32(CASES[name], estimator)
    numbers = dataclasses.asdict(found.fit) | dataclasses.asdict(found.metrics)
    expected = naive(CASES[name], estimator)
    assert numbers.pop("status") == expected.pop("status")
    for key, number in expected.items():
        tolerance = 1e-4 if "ks_distance" in key else 0
        assert numbers[key] == pytest.approx(number, rel=1e-4, abs=tolerance, nan_ok=True), key


def test_most_rows_are_in_float32_and_the_error_bound_tells():
    bounds = {name: in_float32(weight, tb.Hill()).spectrum.error_bound for name, weight in CASES.items()}
    assert sum(bound > IN_FLOAT32 for bound in bounds.values()) >= len(CASES) / 2
    assert bounds["gauss"] == pytest.approx(math.sqrt(120) * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("zeros", [0, 1, 40, 80])
@pytest.mark.parametrize("least", [1e-4, 3e-6])
def test_zeros_are_those_of_float64_also_beside_eigenvalues_that_float32_cannot_tell_from_them(zeros, least):
    """Singular values of 3e-6 of the largest have squares of 1e-11 of it: eps of float32 is 1e-7."""
    singular = torch.cat([torch.linspace(1, 2, 80), torch.full((10,), least), torch.zeros(zeros)]).double()
    weight = matrix_with_spectrum(singular.square(), (len(singular), len(singular) + 5)).double()
    assert in_float32(weight, tb.Hill()).metrics.num_zero == zeros


@pytest.mark.parametrize("weight", [torch.zeros(1, 60, 60), torch.eye(60)[None], torch.ones(1, 60, 60)])
def test_degenerate_weights_have_the_status_of_float64(weight):
    expected = fit_weights([weight], [Layout.STACK], estimator=tb.Hill())[0]
    found = in_float32(weight, tb.Hill())
    assert (found.status, found.metrics.num_zero) == (expected.status, expected.metrics.num_zero)


def test_a_number_that_rounding_could_change_is_that_of_float64():
    """A largest eigenvalue of 1 has a logarithm near 0."""
    weight = pareto(90, 90, 3.0, 3).double()
    weight /= torch.linalg.matrix_norm(weight, 2)
    found = in_float32(weight, tb.Hill())
    assert found.spectrum.error_bound < IN_FLOAT32
    assert found.fit == fit_weights([weight[None]], [Layout.STACK], estimator=tb.Hill())[0].fit


def test_the_fit_of_a_large_oblong_matrix_is_accepted():
    """28672 x 8192, of LLaMA 70B, with the spectrum of a Gaussian matrix; in float64 it would take twice the time."""
    small = torch.linalg.svdvals(noise(1792, 512).double()).square().flip(0)
    values = torch.quantile(small, torch.linspace(0, 1, 8192, dtype=torch.float64))
    spectrum = Spectrum(eigenvalues=values, shape=(28672, 8192), num_matrices=1, error_bound=0.0, stable_rank=1.0)
    found, *moved = [dataclasses.asdict(tb.Hill().fit(each)) for each in (spectrum, *moved_spectra(spectrum))]
    assert [equal_numbers(found, other) for other in moved] == [True, True]


def test_minilm_is_analysed_within_the_tolerance(minilm):
    exact = tb.analyze(minilm, select="encoder.layer.[01].*")
    found = tb.analyze(minilm, select="encoder.layer.[01].*", dtype="float32")
    assert found.settings["dtype"] == "float32"
    assert sum(row.error_bound > IN_FLOAT32 for row in found) >= 8
    for row, other in zip(exact, found, strict=True):
        assert other.alpha == pytest.approx(row.alpha, rel=1e-4)
        assert (other.num_zero, other.num_spikes, other.status) == (row.num_zero, row.num_spikes, row.status)


def test_balancer_compare_and_track_use_it():
    model = torch.nn.Sequential(torch.nn.Linear(90, 90), torch.nn.Linear(90, 90))
    with torch.no_grad():
        for layer, alpha in zip(model, (2.2, 4.0), strict=True):
            layer.weight.copy_(pareto(90, 90, alpha, 3))
    recipe = tb.Recipe(name="mine", assignment=tb.assign.Linear(0.5, 1.5))
    exact, found = (
        tb.Balancer(torch.optim.SGD(model.parameters(), lr=0.1), model, recipe, dtype=dtype).refresh().units
        for dtype in (None, "float32")
    )
    assert [unit.alpha for unit in found] == pytest.approx([unit.alpha for unit in exact], rel=1e-4)
    assert [unit.alpha for unit in found] != [unit.alpha for unit in exact]
    state = model.state_dict()
    row = tb.compare(state, state, dtype="float32").layers[0]
    assert row.alpha_after == tb.track([state], dtype="float32").checkpoints[0].layers[0].alpha == found[0].alpha


def test_windows_and_other_dtypes_are_refused():
    with pytest.raises(WindowError, match="full matrices"):
        tb.analyze({"a": noise(60, 60)}, windows=tb.FARMS(), dtype="float32")
    with pytest.raises(ArgumentError, match="'float64' or 'float32', got 'float16'"):
        tb.analyze({"a": noise(60, 60)}, dtype="float16")
    with pytest.raises(ArgumentError, match=r"torch\.int8"):
        tb.compare({"a": noise(60, 60)}, {"a": noise(60, 60)}, dtype=torch.int8)
    model = torch.nn.Linear(60, 60)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(WindowError, match="full matrices"):
        recipe = tb.Recipe(name="mine", assignment=tb.assign.Linear(0.5, 1.5), windows=tb.FARMS())
        tb.Balancer(optimizer, model, recipe, dtype="float32")
