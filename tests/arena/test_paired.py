import numpy as np
import pytest
import scipy.stats

from tempbalance.arena import paired


@pytest.fixture
def arms():
    random = np.random.default_rng(1)
    first = random.normal(80, 3, size=20)
    return first, first - random.normal(0.5, 1.0, size=20)


def test_the_interval_is_that_of_scipy(arms):
    first, second = arms
    found = paired(first, second)
    expected = scipy.stats.bootstrap(
        (first - second,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert found.mean == pytest.approx(np.mean(first - second))
    assert (found.low, found.high) == pytest.approx(expected, abs=0.03)


def test_the_other_way_round_signs_change(arms):
    there, back = paired(*arms), paired(*reversed(arms))
    assert (back.mean, back.low, back.high) == pytest.approx((-there.mean, -there.high, -there.low))
    assert (back.won, back.lost) == (there.lost, there.won)


def test_a_constant_difference_has_no_spread():
    found = paired([1.0, 2.0, 5.0], [0.0, 1.0, 4.0])
    assert (found.mean, found.low, found.high) == (1.0, 1.0, 1.0)
    assert (found.share_won, found.seeds) == (1.0, 3)


def test_ties_are_neither_won_nor_lost():
    found = paired([1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 4.0, 4.0])
    assert (found.won, found.tied, found.lost) == (1, 2, 1)
    assert found.share_won == 0.25


@pytest.mark.parametrize("arms", [([], []), ([1.0], [1.0, 2.0])])
def test_arms_must_fit_together(arms):
    with pytest.raises(ValueError, match="as many numbers in both arms"):
        paired(*arms)
