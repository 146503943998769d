import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from tempbalance.study import holm, paired


@pytest.fixture
def arms():
    random = np.random.default_rng(1)
    first = random.normal(80, 3, size=20)
    return first, first - random.normal(0.5, 1.0, size=20)


def test_the_interval_agrees_with_scipy(arms):
    first, second = arms
    found = paired(first, second)
    expected = scipy.stats.bootstrap(
        (first - second,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert found.mean == pytest.approx(np.mean(first - second))
    assert (found.low, found.high) == pytest.approx(expected, abs=0.03)


def test_swapping_the_methods_changes_the_signs(arms):
    there, back = paired(*arms), paired(*reversed(arms))
    assert (back.mean, back.low, back.high) == pytest.approx((-there.mean, -there.high, -there.low))
    assert (back.won, back.lost) == (there.lost, there.won)


def test_a_constant_difference_has_an_interval_of_width_0():
    found = paired([1.0, 2.0, 5.0], [0.0, 1.0, 4.0])
    assert (found.mean, found.low, found.high) == (1.0, 1.0, 1.0)
    assert (found.share_won, found.seeds) == (1.0, 3)


def test_one_difference_has_no_interval():
    for found in (paired([1.0], [0.5]), paired([1.0, math.nan], [0.5, 1.0])):
        assert found.mean == 0.5
        assert math.isnan(found.low)
        assert math.isnan(found.high)


def test_tied_seeds_are_neither_won_nor_lost():
    found = paired([1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 4.0, 4.0])
    assert (found.won, found.tied, found.lost) == (1, 2, 1)
    assert found.share_won == 0.25


def test_rounding_errors_are_ties():
    second = [0.7, 1e-20, 123.4, -5.0, 0.1]
    found = paired([np.nextafter(number, np.inf) for number in second], second)
    assert (found.won, found.tied, found.lost) == (0, 5, 0)
    assert (found.mean, found.low, found.high, found.p_value) == (0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize("arms", [([], []), ([1.0], [1.0, 2.0])])
def test_lists_of_different_lengths_and_empty_lists_are_refused(arms):
    with pytest.raises(ValueError, match="the same number of seeds"):
        paired(*arms)


class TestSignedRank:
    def test_the_signed_rank_p_value_agrees_with_scipy(self, arms):
        first, second = arms
        expected = scipy.stats.wilcoxon(first - second, method="exact").pvalue
        assert paired(first, second).p_value == pytest.approx(expected, rel=1e-9)

    def test_equal_differences_share_the_mean_of_their_ranks(self):
        differences = np.array([1.0, 1.0, -1.0, 2.0, 3.0, 0.0])
        # ranks 2, 2, -2, 4, 5: of the 32 choices of signs, 4 have a sum of negative ranks of 2 or less
        assert paired(differences, np.zeros(6)).p_value == pytest.approx(2 * 4 / 32)

    def test_rounding_errors_do_not_change_ranks(self):
        first = [0.3, 0.2, 0.8, 0.7]
        assert paired(first, [0.2, 0.1, 0.7, 0.8]).p_value == paired([1, 1, 1, 0], [0, 0, 0, 1]).p_value

    def test_without_any_difference_p_is_1(self):
        assert paired([1.0, 2.0], [1.0, 2.0]).p_value == 1.0


class TestDiverged:
    NAN = float("nan")

    def test_a_diverged_trial_loses_and_has_no_difference(self):
        found = paired([self.NAN, 2.0, 3.0], [0.0, 1.0, 2.0])
        assert (found.won, found.tied, found.lost) == (2, 0, 1)
        assert (found.mean, found.low, found.high) == (1.0, 1.0, 1.0)

    def test_infinity_counts_as_diverged(self):
        assert paired([float("inf"), 2.0], [0.0, 1.0]) == paired([self.NAN, 2.0], [0.0, 1.0])

    def test_two_diverged_trials_tie(self):
        found = paired([self.NAN, 2.0], [self.NAN, 1.0])
        assert (found.won, found.tied, found.lost) == (1, 1, 0)

    def test_p_counts_a_diverged_trial_as_the_largest_loss(self):
        as_nan = paired([self.NAN, *[1.0] * 9], [0.0] * 10)
        as_number = paired([-100.0, *[1.0] * 9], [0.0] * 10)
        assert as_nan.p_value == as_number.p_value

    def test_if_all_trials_diverge_there_is_no_mean(self):
        found = paired([self.NAN] * 3, [1.0] * 3)
        assert math.isnan(found.mean)
        assert math.isnan(found.low)
        assert found.lost == 3


class TestHolm:
    @given(st.lists(st.floats(0, 1), max_size=8))
    def test_holm_never_lowers_a_p_value_exceeds_1_or_changes_the_order(self, p_values):
        corrected = holm(p_values)
        assert all(p <= c <= 1 for p, c in zip(p_values, corrected, strict=True))
        order = sorted(range(len(p_values)), key=p_values.__getitem__)
        assert [corrected[i] for i in order] == sorted(corrected)

    def test_holm_does_not_change_a_single_p_value(self):
        assert holm([0.04]) == [0.04]
