import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import oracles
import tempbalance as tb
from tempbalance.errors import NonFiniteError, WeightError
from tempbalance.testing import matrix_with_spectrum, pareto_quantiles, pareto_sample

ESTIMATORS = [
    tb.Hill(),
    tb.AveragedHill(),
    tb.Peak(),
    tb.KS(),
    tb.released.HillAsReleased(),
    tb.released.PeakAsReleased(),
    tb.released.KSAsReleased(),
]
SCALE_FREE = [
    tb.Hill(),
    tb.AveragedHill(),
    tb.Peak(),
    tb.KS(),
    tb.released.HillAsReleased(),
    tb.released.KSAsReleased(),
]
ids = [type(estimator).__name__ for estimator in ESTIMATORS]
scale_free_ids = [type(estimator).__name__ for estimator in SCALE_FREE]


def spectrum_of(kind):
    generator = torch.Generator().manual_seed(7)
    if kind == "gaussian":
        return tb.weight_spectrum(torch.randn(300, 120, generator=generator)).eigenvalues
    if kind == "pareto":
        return pareto_sample(500, 2.5, seed=7)
    heavy = torch.distributions.StudentT(3.0).sample
    torch.manual_seed(7)
    return tb.weight_spectrum(heavy((200, 150)).double()).eigenvalues


@pytest.mark.parametrize("kind", ["gaussian", "pareto", "heavy"])
class TestAgainstOracles:
    @pytest.mark.parametrize("share", [0.5, 1 / 3, 0.1])
    def test_hill_equals_the_oracle(self, kind, share):
        values = spectrum_of(kind)
        assert tb.Hill(share).fit(values).alpha == pytest.approx(oracles.hill(values.numpy(), share), rel=1e-12)

    @pytest.mark.parametrize("shares", [(0.1, 0.5), (0.0, 0.3), (0.25, 0.25)])
    def test_averaged_hill_equals_the_oracle(self, kind, shares):
        values = spectrum_of(kind)
        fit = tb.AveragedHill(*shares).fit(values)
        n = len(values)
        ks = range(max(1, math.floor(shares[0] * n)), math.floor(shares[1] * n) + 1)
        exponents = [oracles.hill(values.numpy(), (k + 0.5) / n) for k in ks]
        assert fit.alpha == pytest.approx(1 + 1 / np.mean([1 / (alpha - 1) for alpha in exponents]), rel=1e-9)
        assert fit.num_tail == ks[-1]

    @pytest.mark.parametrize("position", [2.0, 1.5])
    def test_hill_as_released_equals_the_oracle(self, kind, position):
        values = spectrum_of(kind)
        fit = tb.released.HillAsReleased(position).fit(values)
        assert fit.alpha == pytest.approx(oracles.hill_as_released(values.numpy(), position), rel=1e-12)
        alpha, distance = oracles.power_law(values.numpy(), len(values) - fit.num_tail)
        assert (fit.alpha, fit.ks_distance) == (pytest.approx(alpha, rel=1e-12), pytest.approx(distance, rel=1e-9))

    def test_ks_equals_the_oracle(self, kind):
        values = spectrum_of(kind)
        fit = tb.KS().fit(values)
        distance, alpha, xmin, num_tail = oracles.ks(values.numpy())
        assert (fit.xmin, fit.num_tail) == (xmin, num_tail)
        assert (fit.alpha, fit.ks_distance) == (pytest.approx(alpha, rel=1e-12), pytest.approx(distance, rel=1e-9))

    @pytest.mark.parametrize(
        ("estimator", "lowest"),
        [(tb.Peak(), lambda p: 0.95 * p), (tb.released.PeakAsReleased(), lambda p: math.log10(0.95 * p))],
    )
    def test_peak_equals_the_oracle(self, kind, estimator, lowest):
        values = spectrum_of(kind)
        fit = estimator.fit(values)
        distance, alpha, xmin, num_tail = oracles.peak(values.numpy(), lowest)
        assert (fit.xmin, fit.num_tail) == (xmin, num_tail)
        assert (fit.alpha, fit.ks_distance) == (pytest.approx(alpha, rel=1e-12), pytest.approx(distance, rel=1e-9))


@pytest.mark.parametrize(
    ("estimator", "values", "expected"),
    [  # worked by hand in the field's notes on the released code
        (tb.released.HillAsReleased(), range(1, 9), 5.0453),
        (tb.Hill(), range(1, 9), 3.1261),
        (tb.released.HillAsReleased(1.5), range(1, 9), 7.7899),
        (tb.Hill(3 / 8), range(1, 9), 4.0340),
        (tb.released.HillAsReleased(), [2**i for i in range(10)], 1.7213),
        (tb.Hill(), [2**i for i in range(10)], 1.4809),
        (tb.released.HillAsReleased(), range(1, 8), 4.3664),
        (tb.Hill(), range(1, 8), 3.5248),
    ],
)
def test_small_spectra_have_the_alphas_worked_out_by_hand(estimator, values, expected):
    few = type(estimator)(**{name: getattr(estimator, name) for name in vars(estimator)} | {"min_eigenvalues": 2})
    assert few.fit(torch.tensor(list(values), dtype=torch.float64)).alpha == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("alpha", [1.5, 2.0, 3.0, 4.0, 5.0, 6.0])
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=ids)
def test_alpha_of_pareto_samples_is_recovered(estimator, alpha):
    fit = estimator.fit(pareto_sample(3000, alpha, seed=int(alpha * 10)))
    assert fit.status is tb.types.Status.OK
    assert abs(fit.alpha - alpha) < 4 * fit.stderr


def test_standard_error_of_hill_is_that_of_the_maximum_likelihood_exponent():
    fit = tb.Hill().fit(pareto_sample(1000, 3.0))
    assert fit.stderr == pytest.approx((fit.alpha - 1) / math.sqrt(500), rel=1e-14)  # in float64


@pytest.mark.parametrize("shares", [(0.1, 0.5), (0.0, 0.2), (0.4, 0.4)])
def test_standard_error_of_averaged_hill_is_the_spread_over_samples(shares):
    samples = torch.stack([pareto_sample(1000, 3.0, seed=seed) for seed in range(400)])
    fits = tb.AveragedHill(*shares).fit_batch(samples)
    spread = np.std([fit.alpha for fit in fits])
    assert np.mean([fit.stderr for fit in fits]) == pytest.approx(spread, rel=0.12)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=ids)
def test_a_batch_has_the_same_fits_as_one_by_one(estimator):
    batch = torch.stack([pareto_sample(200, 2.0, seed=seed) for seed in range(4)])
    batch[1, :30] = 0.0
    batch[2] = 0.0
    together = estimator.fit_batch(batch)
    alone = [estimator.fit(row) for row in batch]
    assert repr(together) == repr(alone)


def test_ks_gives_the_same_fit_in_smaller_chunks():
    class SmallChunks(tb.KS):
        chunk = 1000

    values = pareto_sample(700, 2.2)
    assert SmallChunks().fit(values) == tb.KS().fit(values)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=ids)
def test_zero_eigenvalues_do_not_change_alpha(estimator):
    if isinstance(estimator, tb.released.HillAsReleased):
        pytest.skip("the released code counts zeros")
    values = pareto_sample(200, 3.0)
    with_zeros = torch.cat([torch.zeros(50, dtype=torch.float64), values])
    assert estimator.fit(with_zeros).alpha == pytest.approx(estimator.fit(values).alpha, rel=1e-12)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), exponent=st.integers(-30, 30), n=st.integers(12, 300))
@pytest.mark.parametrize("estimator", SCALE_FREE, ids=scale_free_ids)
def test_alpha_does_not_depend_on_scale_or_order(estimator, seed, exponent, n):
    values = pareto_sample(n, 2.5, seed=seed)
    expected = estimator.fit(values)
    shuffled = values[torch.randperm(n, generator=torch.Generator().manual_seed(seed))]
    assert estimator.fit(shuffled) == expected
    scaled = estimator.fit(values * 4.0**exponent)  # a power of two: the same digits
    if isinstance(estimator, tb.Peak):  # the edges of its histogram round differently
        assert scaled.status is expected.status
    else:
        assert scaled.num_tail == expected.num_tail
        assert scaled.alpha == pytest.approx(expected.alpha, rel=1e-6)


class TestSpectraWithoutATail:
    @pytest.mark.parametrize("estimator", ESTIMATORS, ids=ids)
    def test_a_spectrum_of_zeros_has_the_status_zero(self, estimator):
        assert estimator.fit(torch.zeros(20)).status is tb.types.Status.ZERO

    @pytest.mark.parametrize("estimator", ESTIMATORS, ids=ids)
    def test_a_matrix_of_rank_one_has_the_status_too_few(self, estimator):
        assert estimator.fit(torch.tensor([0.0] * 19 + [5.0])).status is tb.types.Status.TOO_FEW

    @pytest.mark.parametrize("estimator", ESTIMATORS, ids=ids)
    def test_four_eigenvalues_have_the_status_too_few(self, estimator):
        assert estimator.fit(torch.arange(1.0, 5.0)).status is tb.types.Status.TOO_FEW

    @pytest.mark.parametrize("estimator", ESTIMATORS, ids=ids)
    def test_a_constant_spectrum_has_no_alpha(self, estimator):
        fit = estimator.fit(torch.full((50,), 3.0))
        assert fit.status in {tb.types.Status.CONSTANT, tb.types.Status.NO_TAIL}
        assert math.isnan(fit.alpha)

    @pytest.mark.parametrize("estimator", [tb.Hill(), tb.released.HillAsReleased()])
    def test_an_orthogonal_matrix_has_the_status_constant(self, estimator):
        weight = torch.linalg.qr(torch.randn(64, 64, dtype=torch.float64)).Q.float()
        assert estimator.fit(tb.weight_spectrum(weight)).status is tb.types.Status.CONSTANT

    def test_a_failed_fit_has_nan_and_no_tail(self):
        fit = tb.KS().fit(torch.zeros(20))
        assert all(math.isnan(x) for x in (fit.alpha, fit.stderr, fit.xmin, fit.ks_distance))
        assert fit.num_tail == 0

    @pytest.mark.parametrize("status", list(tb.types.Status))
    def test_every_status_has_a_message(self, status):
        assert len(status.message) > 5


class TestBadInput:
    def test_two_dimensional_eigenvalues_raise(self):
        with pytest.raises(WeightError, match=r"shape \(n,\)"):
            tb.Hill().fit(torch.ones(3, 3))

    def test_complex_eigenvalues_raise(self):
        with pytest.raises(WeightError, match="real eigenvalues"):
            tb.Hill().fit(torch.ones(30, dtype=torch.complex64))

    def test_nan_eigenvalues_raise(self):
        with pytest.raises(NonFiniteError):
            tb.Hill().fit(torch.tensor([1.0, math.nan]))

    def test_negative_eigenvalues_raise(self):
        with pytest.raises(WeightError, match="never negative"):
            tb.Hill().fit(torch.linspace(-1, 1, 30))

    @pytest.mark.parametrize("shares", [(0.5, 0.1), (-0.1, 0.5), (0.0, 0.0), (0.1, 1.0), (math.nan, 0.5)])
    def test_shares_out_of_range_raise(self, shares):
        with pytest.raises(ValueError, match="shares"):
            tb.AveragedHill(*shares)

    @pytest.mark.parametrize("share", [0.0, 1.0, -1.0, math.nan])
    def test_share_out_of_range_raises(self, share):
        with pytest.raises(ValueError, match="share"):
            tb.Hill(share)

    def test_bins_out_of_range_raise(self):
        with pytest.raises(ValueError, match="bins"):
            tb.Peak(bins=1)

    def test_min_eigenvalues_out_of_range_raises(self):
        with pytest.raises(ValueError, match="min_eigenvalues"):
            tb.KS(min_eigenvalues=1)


@pytest.mark.parametrize("alpha", [2.0, 3.0, 4.5])
def test_a_matrix_with_a_pareto_spectrum_has_its_alpha(alpha):
    weight = matrix_with_spectrum(pareto_quantiles(400, alpha), (400, 600))
    assert tb.Hill().fit(tb.weight_spectrum(weight)).alpha == pytest.approx(alpha, rel=0.02)


def test_ks_memory_is_bounded_for_large_spectra():
    fit = tb.KS().fit(pareto_sample(16384, 3.0))  # the full n x n matrix would be 2 GB
    assert abs(fit.alpha - 3.0) < 4 * fit.stderr
    assert np.isfinite(fit.ks_distance)
