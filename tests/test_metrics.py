import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad

import tempbalance as tb
from tempbalance.metrics import is_random, mean_alpha, measure, mp_cdf, mp_edges, thin
from tempbalance.spectra.eigenvalues import spectra
from tempbalance.testing import matrix_with_spectrum, pareto_quantiles


def measured(spectrum):
    return measure(spectrum, tb.Hill().fit(spectrum))


@pytest.fixture(scope="module")
def heavy():
    """A weight, its spectrum, its scalars."""
    weight = matrix_with_spectrum(pareto_quantiles(60, 2.5), (90, 60))
    spectrum = tb.weight_spectrum(weight)
    return weight, spectrum, measured(spectrum)


class TestScalars:
    def test_norms_equal_those_of_torch(self, heavy):
        weight, _, metrics = heavy
        assert metrics.log10_frobenius_norm == pytest.approx(math.log10(torch.linalg.matrix_norm(weight)))
        assert metrics.log10_spectral_norm == pytest.approx(math.log10(torch.linalg.matrix_norm(weight, 2)))
        assert metrics.lambda_max == pytest.approx(torch.linalg.matrix_norm(weight, 2).item() ** 2)

    def test_alpha_norm_and_alpha_hat_equal_their_definitions(self, heavy):
        weight, spectrum, metrics = heavy
        alpha = tb.Hill().fit(spectrum).alpha
        values = np.linalg.svd(weight.numpy(), compute_uv=False) ** 2
        assert metrics.log10_alpha_norm == pytest.approx(np.log10((values**alpha).sum()))
        assert metrics.alpha_hat == pytest.approx(alpha * np.log10(values.max()))

    def test_stable_rank_equals_its_definition(self, heavy):
        weight, _, metrics = heavy
        expected = torch.linalg.matrix_norm(weight) ** 2 / torch.linalg.matrix_norm(weight, 2) ** 2
        assert metrics.stable_rank == pytest.approx(expected.item())

    def test_entropy_is_one_for_equal_eigenvalues(self):
        spectrum = tb.weight_spectrum(torch.eye(30))
        assert measured(spectrum).spectral_entropy == pytest.approx(1.0)

    def test_rank_and_zero_eigenvalues_add_up(self):
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(50, 3, generator=generator) @ torch.randn(3, 40, generator=generator)
        metrics = measured(tb.weight_spectrum(weight.double()))
        # the product was rounded to float32, so its noise has full rank
        exact = measured(tb.weight_spectrum(matrix_with_spectrum(torch.tensor([0.0] * 37 + [1, 2, 3]), (50, 40))))
        assert (exact.matrix_rank, exact.num_zero) == (3, 37)
        assert metrics.matrix_rank + metrics.num_zero == 40

    def test_stable_rank_of_pooled_matrices_is_the_mean_of_theirs(self):
        batch = torch.randn(3, 20, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        batch[0] *= 1e-3
        batch[1] = torch.outer(batch[1, :, 0], batch[1, 0])  # of rank 1
        expected = [(torch.linalg.matrix_norm(w) / torch.linalg.matrix_norm(w, 2)).item() ** 2 for w in batch]
        assert expected[1] == pytest.approx(1.0)
        assert measured(spectra([batch])[0]).stable_rank == pytest.approx(np.mean(expected))

    def test_stable_rank_of_pooled_matrices_leaves_out_zero_matrices(self):
        batch = torch.stack([torch.eye(20), torch.zeros(20, 20)])
        assert measured(spectra([batch])[0]).stable_rank == pytest.approx(20.0)
        assert math.isnan(measured(spectra([0 * batch])[0]).stable_rank)

    def test_a_zero_matrix_has_nan_norms(self):
        metrics = measured(tb.weight_spectrum(torch.zeros(20, 20)))
        assert (metrics.lambda_max, metrics.matrix_rank, metrics.num_zero, metrics.num_spikes) == (0.0, 0, 20, 0)
        undefined = ("log10_frobenius_norm", "stable_rank", "spectral_entropy", "mp_ks_distance")
        assert all(math.isnan(getattr(metrics, name)) for name in undefined)


class TestMarchenkoPastur:
    @pytest.mark.parametrize("shape", [(400, 100), (100, 400), (120, 100), (100, 100)])
    def test_the_marchenko_pastur_distribution_is_the_integral_of_its_density(self, shape):
        tall, ratio = max(shape), min(shape) / max(shape)
        low, high = mp_edges(shape)

        def density(x):
            return math.sqrt(max(0.0, (high - x) * (x - low))) / (2 * math.pi * ratio * x * tall)

        for x in np.linspace(low, high, 6)[1:]:
            value = mp_cdf(torch.tensor(x), shape).item()
            assert value == pytest.approx(quad(density, low, x, limit=500)[0], abs=1e-6)

    def test_variance_scales_the_marchenko_pastur_law(self):
        x = torch.tensor([300.0])
        assert mp_cdf(4 * x, (400, 100), 4.0) == pytest.approx(mp_cdf(x, (400, 100)))

    @pytest.mark.parametrize("shape", [(200, 200), (800, 200), (200, 600)])
    def test_a_random_matrix_follows_the_marchenko_pastur_law(self, shape):
        weight = 0.3 * torch.randn(*shape, generator=torch.Generator().manual_seed(3))
        spectrum = tb.weight_spectrum(weight)
        metrics = measured(spectrum)
        assert metrics.mp_ks_distance < 0.02
        assert metrics.mp_edge == pytest.approx(mp_edges(shape, 0.09)[1], rel=0.05)
        assert metrics.num_spikes <= 1

    def test_spikes_are_counted_and_do_not_move_the_edge(self):
        generator = torch.Generator().manual_seed(3)
        noise = torch.randn(400, 200, generator=generator, dtype=torch.float64)
        planted = matrix_with_spectrum(torch.tensor([0.0] * 197 + [4000, 5000, 6000]), (400, 200))
        before, after = (measured(tb.weight_spectrum(weight)) for weight in (noise, noise + planted))
        assert after.num_spikes == 3
        assert after.mp_edge == pytest.approx(before.mp_edge, rel=0.05)


class TestIsRandom:
    @pytest.mark.parametrize("shape", [(1, 50, 50), (1, 384, 384), (1, 64, 512), (9, 64, 32), (49, 20, 20)])
    @pytest.mark.parametrize("law", ["normal", "uniform"])
    def test_gaussian_and_uniform_matrices_are_random(self, shape, law):
        generator = torch.Generator().manual_seed(11)
        weight = torch.empty(shape)
        weight = weight.normal_(generator=generator) if law == "normal" else weight.uniform_(-1, 1, generator=generator)
        spectrum = spectra([weight])[0]
        assert is_random(spectrum, measured(spectrum))

    def test_a_matrix_with_a_heavy_tail_is_not_random(self, heavy):
        _, spectrum, metrics = heavy
        assert not is_random(spectrum, metrics)

    def test_a_single_spike_is_not_random(self):
        weight = torch.randn(200, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        weight += 3 * torch.ones(200, 1) @ torch.ones(1, 200) / math.sqrt(200)
        spectrum = tb.weight_spectrum(weight)
        assert not is_random(spectrum, measured(spectrum))

    @pytest.mark.parametrize("mean", [0.3, 30.0, 3000.0])
    @pytest.mark.parametrize("shape", [(1, 100, 200), (9, 64, 32)])
    def test_a_random_matrix_with_a_mean_is_random_if_the_mean_is_known(self, shape, mean):
        weight = mean + torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        spectrum = spectra([weight])[0]
        assert not is_random(spectrum, measured(spectrum))
        assert is_random(spectrum, measured(spectrum), mean_over_std=lambda: mean)

    @pytest.mark.parametrize("mean", [0.0, 0.05, 0.3, 30.0])
    def test_a_spike_that_the_mean_does_not_explain_is_not_random(self, mean):
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(200, 200, generator=generator, dtype=torch.float64)
        directions = torch.randn(2, 200, generator=generator, dtype=torch.float64)
        directions -= directions.mean(dim=1, keepdim=True)
        weight += mean + 40 * torch.outer(*torch.nn.functional.normalize(directions, dim=1))
        spectrum = tb.weight_spectrum(weight)
        assert not is_random(spectrum, measured(spectrum), mean_over_std=lambda: mean)

    def test_fewer_than_50_eigenvalues_are_not_random(self):
        spectrum = tb.weight_spectrum(torch.randn(10, 64, generator=torch.Generator().manual_seed(0)))
        assert not is_random(spectrum, measured(spectrum))

    @pytest.mark.parametrize("weight", [torch.zeros(40, 40), torch.ones(1, 50), torch.eye(50)])
    def test_degenerate_matrices_are_not_random(self, weight):
        spectrum = tb.weight_spectrum(weight)
        assert not is_random(spectrum, measured(spectrum))


class TestThin:
    def test_thinned_ranks_are_those_of_the_full_spectrum(self):
        values = torch.sort(torch.rand(5000, dtype=torch.float64)).values
        esd = thin(values)
        assert len(esd.ranks) <= 256
        assert list(esd.ranks) == sorted(set(esd.ranks), reverse=True)
        assert all(values[len(values) - rank].item() == x for x, rank in zip(*esd, strict=True))
        assert (esd.ranks[0], esd.ranks[-64:]) == (5000, tuple(range(64, 0, -1)))

    def test_zero_eigenvalues_are_not_plotted(self):
        assert thin(torch.zeros(4)).ranks == ()


class TestMeanAlpha:
    def test_mean_alpha_and_its_standard_error_are_those_of_independent_layers(self):
        assert mean_alpha([(2.0, 0.3), (4.0, 0.4)]) == (3.0, pytest.approx(math.sqrt(0.3**2 + 0.4**2) / 2))

    def test_mean_alpha_excludes_layers_without_alpha(self):
        assert mean_alpha([(2.0, 0.3), (math.nan, math.nan)]) == (2.0, 0.3)

    def test_an_unknown_standard_error_makes_that_of_the_mean_alpha_unknown(self):
        alpha, stderr = mean_alpha([(2.0, 0.3), (4.0, math.nan)])
        assert alpha == 3.0
        assert math.isnan(stderr)

    @pytest.mark.parametrize("pairs", [[], [(math.nan, math.nan)]])
    def test_mean_alpha_without_any_alpha_is_nan(self, pairs):
        assert all(map(math.isnan, mean_alpha(pairs)))
