import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import oracles
import tempbalance as tb
from tempbalance.errors import NonFiniteError, WeightError
from tempbalance.spectra.eigenvalues import spectra
from tempbalance.spectra.gram import GramOptions
from tempbalance.testing import TOLERANCE, matrix_with_spectrum, pareto_quantiles

RTOL = TOLERANCE[torch.float64]


def random(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def assert_eigenvalues(spectrum, matrices):
    expected = oracles.eigenvalues(matrices)
    largest = expected[-1]
    np.testing.assert_allclose(spectrum.eigenvalues.numpy(), expected, rtol=RTOL, atol=spectrum.error_bound * largest)


@given(
    logs=st.lists(st.floats(-7, 0), min_size=3, max_size=40),
    zeros=st.integers(0, 3),
    extra=st.integers(0, 30),
    seed=st.integers(0, 9),
)
@settings(deadline=None, max_examples=50)
def test_float32_eigenvalues_are_within_the_bound_and_zeros_are_those_of_float64(logs, zeros, extra, seed):
    singular = [10**log for log in logs] + [0.0] * zeros
    side = len(singular)
    u, v = (torch.linalg.qr(random(rows, side, seed=seed + i))[0] for i, rows in enumerate((side + extra, side)))
    weight = ((u * torch.tensor(singular, dtype=torch.float64)) @ v.T).float()
    exact = tb.weight_spectrum(weight).eigenvalues
    found = spectra([weight[None]], options=GramOptions(dtype=torch.float32))[0]
    eps, largest = torch.finfo(torch.float32).eps, exact[-1]
    assert found.error_bound == pytest.approx(math.sqrt(side + extra) * eps)
    # The bound is probabilistic, and eigenvalues of a 4 x 4 matrix were seen to exceed it 11 times.
    assert float((found.eigenvalues - exact).abs().max()) <= 16 * found.error_bound * largest
    assert int((found.eigenvalues == 0).sum()) == int((exact == 0).sum())


@pytest.mark.parametrize("shape", [(40, 40), (300, 70), (70, 300), (1, 9), (9, 1), (1, 1), (600, 520)])
def test_eigenvalues_are_squared_singular_values(shape):
    weight = random(*shape)
    assert_eigenvalues(tb.weight_spectrum(weight), weight[None])


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_half_and_8_bit_floats_are_cast_up(dtype):
    weight = random(60, 30).to(dtype)
    assert_eigenvalues(tb.weight_spectrum(weight), weight.double()[None])


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_modes_are_pooled(dtype):
    weight = torch.complex(random(12, 10, 4, 3), random(12, 10, 4, 3, seed=1)).to(dtype)
    assert_eigenvalues(
        tb.weight_spectrum(weight, tb.spectra.Layout.TAPS), weight.permute(2, 3, 0, 1).reshape(12, 12, 10).numpy()
    )


def test_kernel_taps_are_pooled():
    weight = random(20, 15, 3, 3)
    spectrum = tb.weight_spectrum(weight, tb.spectra.Layout.TAPS)
    assert (spectrum.num_matrices, spectrum.shape) == (9, (20, 15))
    assert_eigenvalues(spectrum, weight.permute(2, 3, 0, 1).reshape(9, 20, 15).numpy())


def test_a_tall_matrix_is_read_in_chunks_with_the_same_result():
    weight = random(1000, 64)
    assert_eigenvalues(spectra([weight[None]], options=GramOptions(rows=100, chunk=0))[0], weight[None])


@pytest.mark.parametrize("side", [20, 23])  # of odd ones, every other is aligned badly in a plain batch
def test_a_batch_has_the_same_bits_as_one_by_one(side):
    batches = [random(3, 30, side, seed=1), random(1, 30, side, seed=2), random(1, 30, side, seed=3)]
    together = spectra(batches)
    for batch, spectrum in zip(batches, together, strict=True):
        assert torch.equal(spectrum.eigenvalues, spectra([batch])[0].eigenvalues)


def test_the_same_input_has_the_same_bits():
    weight = random(500, 300)
    assert torch.equal(tb.weight_spectrum(weight).eigenvalues, tb.weight_spectrum(weight).eigenvalues)


def test_the_weight_is_not_changed():
    weight = random(20, 30)
    before = weight.clone()
    tb.weight_spectrum(weight)
    assert torch.equal(weight, before)


def test_a_matrix_of_low_rank_has_exact_zeros():
    weight = random(80, 5) @ random(5, 60, seed=1)
    values = tb.weight_spectrum(weight).eigenvalues
    assert (values == 0).sum() == 55
    assert values[55] > 0


def test_an_ill_conditioned_matrix_falls_back_to_an_svd():
    # The smallest eigenvalue is 1e-13 of the largest: a Gram matrix would return noise for it.
    truth = torch.logspace(-13, 0, 40, dtype=torch.float64)
    values = tb.weight_spectrum(matrix_with_spectrum(truth, (40, 40))).eigenvalues
    assert values[0].item() == pytest.approx(1e-13, rel=1e-2)


@pytest.mark.parametrize("scale", [1e-170, 1e-30, 1e-6, 1e6, 1e30, 1e150])
def test_alpha_does_not_depend_on_scale(scale):
    weight = matrix_with_spectrum(pareto_quantiles(64, 3.0), (64, 64))
    expected = tb.Hill().fit(tb.weight_spectrum(weight)).alpha
    if scale == 1e-170:  # squares are below the smallest float64
        with pytest.raises(WeightError, match="too small"):
            tb.weight_spectrum(weight * scale)
    else:
        assert tb.Hill().fit(tb.weight_spectrum(weight * scale)).alpha == pytest.approx(expected, rel=1e-9)


def test_a_zero_matrix_has_zero_eigenvalues():
    assert tb.weight_spectrum(torch.zeros(5, 4)).eigenvalues.tolist() == [0.0] * 4


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_weights_raise(bad):
    weight = random(6, 6)
    weight[2, 3] = bad
    with pytest.raises(NonFiniteError, match="1 of 36 weights"):
        tb.weight_spectrum(weight)


def test_matrices_of_different_shapes_raise():
    with pytest.raises(WeightError, match="one shape"):
        spectra([torch.zeros(1, 3, 3), torch.zeros(1, 3, 4)])


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(2, 40), columns=st.integers(2, 40), seed=st.integers(0, 10**6))
def test_eigenvalues_are_invariant_under_transpose_permutation_and_rotation(rows, columns, seed):
    weight = random(rows, columns, seed=seed)
    values = tb.weight_spectrum(weight).eigenvalues
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(random(rows, rows, seed=seed + 1)).Q
    tolerance = {"rtol": 1e-8, "atol": 1e-12 * values[-1].item()}
    torch.testing.assert_close(tb.weight_spectrum(weight.mT).eigenvalues, values, **tolerance)
    shuffled = weight[torch.randperm(rows, generator=generator)]
    torch.testing.assert_close(tb.weight_spectrum(shuffled).eigenvalues, values, **tolerance)
    torch.testing.assert_close(tb.weight_spectrum(rotation @ weight).eigenvalues, values, **tolerance)
