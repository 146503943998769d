import math

import numpy as np
import pytest
import torch

import oracles
import tempbalance as tb
from tempbalance.errors import NonFiniteError, WeightError, WindowError
from tempbalance.metrics import is_random, measure
from tempbalance.spectra import Layout
from tempbalance.testing import matrix_with_spectrum, pareto_quantiles
from tempbalance.types import Status
from tempbalance.weight_fit import fit_weight, fit_weights

SHAPES = [(90, 70), (70, 90), (64, 64), (40, 200)]


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class TestWholeMatrix:
    def test_spectrum_fit_and_metrics_are_those_of_the_parts(self):
        weight = matrix_with_spectrum(pareto_quantiles(80, 3.0), (80, 120))
        found = fit_weight(weight, estimator="ks")
        spectrum = tb.weight_spectrum(weight)
        assert torch.equal(found.spectrum.eigenvalues, spectrum.eigenvalues)
        assert found.fit == tb.KS().fit(spectrum)
        assert found.metrics == measure(spectrum, found.fit)
        assert (found.num_windows, found.coverage, found.status) == (1, 1.0, Status.OK)

    def test_a_random_matrix_keeps_its_fit_and_has_the_status_random(self):
        found = fit_weight(random(200, 100))
        assert found.random
        assert found.status is Status.RANDOM
        assert found.fit.status is Status.OK
        assert math.isfinite(found.fit.alpha)


ONE_SIDED = {
    "uniform": lambda weight: weight.uniform_(0, 1),
    "tiny uniform": lambda weight: weight.uniform_(0, 1e-100),
    "absolute normal": lambda weight: weight.normal_().abs_(),
    "negative": lambda weight: weight.normal_().abs_().neg_(),
    "small mean": lambda weight: weight.normal_(0.2, 1.0),
    "large mean": lambda weight: weight.normal_(100.0, 1.0),
}


class TestUntrained:
    @pytest.mark.parametrize("windows", [None, tb.FARMS()], ids=["whole", "farms"])
    @pytest.mark.parametrize("shape", [(64, 64), (100, 400), (64, 32, 3, 3)], ids=str)
    @pytest.mark.parametrize("initialise", ONE_SIDED.values(), ids=ONE_SIDED)
    def test_an_initialisation_with_a_mean_is_random(self, initialise, shape, windows):
        torch.manual_seed(0)
        weight = initialise(torch.empty(shape, dtype=torch.float64))
        layout = Layout.TAPS if len(shape) > 2 else Layout.MATRIX
        assert fit_weight(weight, layout, windows=windows).status is Status.RANDOM

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.complex64])
    def test_a_mean_is_found_in_every_dtype(self, dtype):
        weight = (random(100, 200) + 2).to(dtype)
        assert fit_weight(weight).status is Status.RANDOM

    def test_a_trained_weight_with_a_mean_is_not_random(self):
        weight = matrix_with_spectrum(pareto_quantiles(80, 3.0), (80, 120))
        assert fit_weight(weight + weight.std()).status is Status.OK

    @pytest.mark.parametrize("mean", [0.0, 1.0])
    @pytest.mark.parametrize("shape", [(1, 1), (2, 1), (1, 2), (2, 2), (3, 2)], ids=str)
    def test_many_tiny_matrices_are_measured(self, shape, mean):
        weight = torch.distributions.StudentT(3.0).sample((*shape, 10, 10)) + mean
        assert fit_weight(weight, Layout.TAPS).status in {Status.OK, Status.RANDOM}

    @pytest.mark.parametrize("value", [0.5, 3.0])
    def test_a_constant_weight_is_not_random(self, value):
        assert fit_weight(torch.full((64, 64), value)).status is Status.TOO_FEW


class TestSmallSides:
    """A head with few outputs, or a convolution of three channels: windows of one or two columns."""

    @pytest.mark.parametrize("windows", [None, tb.FARMS(), tb.FARMS(rows=1), tb.FARMS(windows=3)], ids=repr)
    @pytest.mark.parametrize("shape", [(1, 64), (64, 1), (2, 64), (2, 300), (3, 64), (64, 8)])
    def test_a_head_with_few_outputs_has_too_few_eigenvalues_with_and_without_windows(self, shape, windows):
        assert fit_weight(random(*shape), windows=windows).status is Status.TOO_FEW

    def test_a_head_of_zeros_has_the_status_zero(self):
        assert fit_weight(torch.zeros(2, 64), windows=tb.FARMS()).status is Status.ZERO

    def test_a_head_with_ten_outputs_is_fitted(self):
        assert fit_weight(random(10, 64), windows=tb.FARMS()).fit.status is Status.OK

    def test_fewer_eigenvalues_are_fitted_on_request(self):
        found = fit_weight(random(3, 64), windows=tb.FARMS(), estimator=tb.Hill(min_eigenvalues=3))
        assert found.fit.status is Status.OK

    @pytest.mark.parametrize("channels", [1, 2, 3, 4])
    @pytest.mark.parametrize("windows", [tb.FARMS(), tb.FARMS(rows=1), tb.FARMS(aspect_ratio=1.5)], ids=repr)
    def test_a_convolution_of_few_channels_is_measured(self, channels, windows):
        found = fit_weight(random(64, channels, 5, 5), Layout.TAPS, windows=windows)
        assert found.fit.status is Status.OK
        assert 1 < found.fit.alpha < math.inf

    def test_the_smallest_window_by_default_has_two_columns(self):
        assert tb.FARMS().size((64, 3)) == (2, 2)
        assert tb.FARMS().size((2, 300)) == (2, 2)
        assert tb.FARMS().size((1, 300)) == (1, 1)

    @pytest.mark.parametrize("windows", [None, tb.FARMS()], ids=["whole", "farms"])
    def test_matrices_of_one_entry_are_never_random(self, windows):
        found = fit_weight(random(1, 1, 8, 8), Layout.TAPS, windows=windows)
        assert not is_random(found.spectrum, found.metrics)
        assert found.status is Status.OK


class TestWindows:
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("windows", [2, 9, "auto"])
    @pytest.mark.parametrize("ratio", [1.0, 1.5])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
    def test_pooled_eigenvalues_are_those_of_the_windows(self, shape, windows, ratio, dtype):
        weight = random(*shape).to(dtype)
        weight = weight * (1 + 0.5j) if dtype.is_complex else weight
        farms = tb.FARMS(ratio, windows=windows)
        found = fit_weight(weight, windows=farms)
        grid = farms.grid(shape)
        numbers = weight.to(torch.complex128 if dtype.is_complex else torch.float64)[None].numpy()
        expected = oracles.eigenvalues(oracles.cut(numbers, grid.size, grid.starts[: found.num_windows]))
        np.testing.assert_allclose(
            found.spectrum.eigenvalues.numpy(), expected, rtol=1e-10, atol=found.spectrum.error_bound * expected[-1]
        )

    def test_kernel_taps_experts_and_complex_modes_are_pooled(self):
        taps = random(40, 30, 3, 3)
        found = fit_weight(taps, tb.spectra.Layout.TAPS, windows=tb.FARMS(windows=2))
        assert found.spectrum.num_matrices == 9 * 4
        matrices = taps.flatten(2).permute(2, 0, 1).numpy()
        expected = oracles.eigenvalues(oracles.cut(matrices, (15, 15), [(0, 0), (0, 15), (25, 0), (25, 15)]))
        np.testing.assert_allclose(found.spectrum.eigenvalues.numpy(), expected, rtol=1e-9, atol=1e-12 * expected[-1])
        stacked = fit_weight(taps.flatten(2).permute(2, 0, 1), tb.spectra.Layout.STACK, windows=tb.FARMS(windows=2))
        assert torch.equal(stacked.spectrum.eigenvalues, found.spectrum.eigenvalues)

    def test_weights_in_one_batch_have_the_same_bits_as_alone(self):
        weights = [random(1, 60, 60), random(1, 200, 60, seed=1), random(2, 60, 90, seed=2)]
        layouts = [tb.spectra.Layout.MATRIX, tb.spectra.Layout.MATRIX, tb.spectra.Layout.STACK]
        options = {"windows": tb.FARMS(), "estimator": tb.Hill()}
        together = fit_weights(weights, layouts, **options)
        for weight, layout, found in zip(weights, layouts, together, strict=True):
            alone = fit_weights([weight], [layout], **options)[0]
            assert torch.equal(found.spectrum.eigenvalues, alone.spectrum.eigenvalues)
            assert found.fit == alone.fit

    def test_the_weight_is_not_changed(self):
        weight = random(50, 40)
        before = weight.clone()
        fit_weight(weight, windows=tb.FARMS(windows=9))
        assert torch.equal(weight, before)

    @pytest.mark.parametrize("scale", [1e-150, 1e150])
    def test_alpha_does_not_depend_on_scale(self, scale):
        weight = random(60, 60)
        expected = fit_weight(weight, windows=tb.FARMS()).fit.alpha
        assert fit_weight(weight * scale, windows=tb.FARMS()).fit.alpha == pytest.approx(expected, rel=1e-9)

    def test_ill_conditioned_windows_fall_back_to_an_svd(self):
        weight = matrix_with_spectrum(torch.logspace(-13, 0, 40, dtype=torch.float64), (40, 40))
        found = fit_weight(weight, windows=tb.FARMS(rows=40)).spectrum.eigenvalues
        assert found[0].item() == pytest.approx(1e-13, rel=1e-2)

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_non_finite_weights_raise_wherever_the_windows_are(self, bad):
        weight = random(30, 30)
        weight[29, 0] = bad
        with pytest.raises(NonFiniteError, match="1 of 900"):
            fit_weight(weight, windows=tb.FARMS(windows=1, rows=4))

    def test_an_aspect_ratio_that_fits_nowhere_raises(self):
        with pytest.raises(WindowError, match="aspect ratio 4 fits into 2 x 3"):
            fit_weight(random(2, 3), windows=tb.FARMS(aspect_ratio=4))

    def test_integer_weights_raise(self):
        with pytest.raises(WeightError, match="floating-point"):
            fit_weight(torch.ones(9, 9, dtype=torch.int64), windows=tb.FARMS())


def test_alpha_of_windows_does_not_depend_on_the_aspect_ratio_of_the_matrix():
    """Of matrices with independent Student-t entries, whole ones differ by their shape, windows do not."""
    whole, windows = [], []
    for ratio in (1, 4, 16):
        torch.manual_seed(ratio)
        weight = torch.distributions.StudentT(4.0).sample((96, 96 * ratio))
        whole.append(tb.Hill().fit(tb.weight_spectrum(weight)).alpha)
        windows.append(fit_weight(weight, windows=tb.FARMS()).fit)
    assert whole[2] - whole[0] > 1
    for fit in windows[1:]:
        assert abs(fit.alpha - windows[0].alpha) < 3 * math.hypot(fit.stderr, windows[0].stderr)


def test_alphas_of_windows_are_in_the_order_of_the_exponents():
    fits = [
        fit_weight(matrix_with_spectrum(pareto_quantiles(128, alpha), (128, 256)), windows=tb.FARMS()).fit.alpha
        for alpha in (2.0, 3.0, 5.0)
    ]
    assert fits == sorted(fits)
