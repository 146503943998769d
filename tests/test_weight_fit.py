import math

import pytest
import torch

import tempbalance as tb
from tempbalance.metrics import is_random, measure
from tempbalance.spectra import Layout
from tempbalance.testing import matrix_with_spectrum, pareto_quantiles
from tempbalance.types import Status
from tempbalance.weight_fit import fit_weight


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
