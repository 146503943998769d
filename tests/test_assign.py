"""Assignments: neutral where they should be, monotone, in range, and the same numbers as the papers' formulas."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tempbalance as tb

ALPHAS = st.lists(st.floats(1.05, 20.0), min_size=2, max_size=30)
ALL = [
    tb.Linear(0.5, 1.5),
    tb.Linear(1.0, 5.0),
    tb.Sqrt(),
    tb.Log2(),
    tb.Rank(0.5, 1.5),
    tb.RankAsReleased(0.5, 1.5),
    tb.Sigmoid(1.0),
    tb.Sigmoid((2.0, 1.0)),
]
NORMALIZED = [tb.Linear(0.5, 1.5, normalize=True), tb.Rank(normalize=True), tb.Sigmoid((2.0, 1.0), normalize=True)]
ids = [repr(assignment) for assignment in ALL + NORMALIZED]


@pytest.mark.parametrize("assignment", ALL + NORMALIZED, ids=ids)
class TestNeutral:
    def test_equal_alphas(self, assignment):
        assert assignment([2.5] * 7) == [1.0] * 7

    def test_alphas_equal_up_to_their_error(self, assignment):
        assert assignment([2.5, 2.5 * (1 + 1e-9), 2.5]) == [1.0] * 3

    def test_one_unit(self, assignment):
        assert assignment([3.0]) == [1.0]

    def test_no_unit(self, assignment):
        assert assignment([]) == []

    def test_nothing_judged(self, assignment):
        assert assignment([math.nan, math.inf]) == [1.0, 1.0]

    def test_one_judged_among_many(self, assignment):
        assert assignment([math.nan, 3.0, math.inf]) == [1.0] * 3

    def test_what_cannot_be_judged_does_not_count(self, assignment):
        judged = assignment([2.0, 3.0, 4.5])
        assert assignment([math.nan, 2.0, 3.0, math.inf, 4.5]) == [1.0, judged[0], judged[1], 1.0, judged[2]]

    def test_no_exponent(self, assignment):
        with pytest.raises(ValueError, match="greater than 1"):
            assignment([2.0, 0.9])


@pytest.mark.parametrize("assignment", ALL + NORMALIZED, ids=ids)
class TestShape:
    @given(alphas=ALPHAS)
    def test_never_falls_as_alpha_rises(self, assignment, alphas):
        ordered = sorted(set(alphas))
        multipliers = assignment(ordered)
        assert all(a <= b * (1 + 1e-12) for a, b in pairwise(multipliers))

    @given(alphas=ALPHAS, seed=st.randoms(use_true_random=False))
    def test_does_not_depend_on_the_order_of_the_units(self, assignment, alphas, seed):
        alphas = list(set(alphas))
        order = list(range(len(alphas)))
        seed.shuffle(order)
        shuffled = assignment([alphas[i] for i in order])
        expected = assignment(alphas)
        assert shuffled == pytest.approx([expected[i] for i in order], rel=1e-12)

    @given(alphas=ALPHAS)
    def test_finite_and_not_negative(self, assignment, alphas):
        assert all(math.isfinite(m) and m >= 0 for m in assignment(alphas))


@pytest.mark.parametrize("assignment", [*NORMALIZED, tb.Sqrt(), tb.Log2()], ids=repr)
@given(alphas=ALPHAS)
def test_mean_one(assignment, alphas):
    assert math.fsum(assignment(alphas)) / len(alphas) == pytest.approx(1.0)


@given(alphas=ALPHAS, low=st.floats(0.0, 1.0), width=st.floats(0.0, 4.0))
def test_bounds_are_kept_and_reached(alphas, low, width):
    high = low + width
    for assignment in (tb.Linear(low, high), tb.Rank(low, high)):
        multipliers = assignment(alphas)
        if multipliers == [1.0] * len(alphas):
            continue  # equal alphas
        assert min(multipliers) >= low - 1e-12
        assert max(multipliers) <= high + 1e-12
    line = tb.Linear(low, high)(alphas)
    if max(alphas) - min(alphas) > 1e-3:
        assert (min(line), max(line)) == pytest.approx((low, high))


@pytest.mark.parametrize("strength", [0.25, 1.0, 1.25, (2.0, 1.0)])
def test_sigmoid_is_the_published_formula(strength):
    """Model Balancing, section 3: 10^(s (1 / (1 + exp(-10 (alpha - mean))) - 1/2))."""
    alphas = [1.9, 2.0, 2.3, 4.0]
    mean = sum(alphas) / len(alphas)
    below, above = strength if isinstance(strength, tuple) else (strength, strength)
    expected = [
        10 ** ((above if alpha > mean else below) * (1 / (1 + math.exp(-10 * (alpha - mean))) - 0.5))
        for alpha in alphas
    ]
    assert tb.Sigmoid(strength)(alphas) == pytest.approx(expected, rel=1e-12)


def test_sigmoid_does_not_overflow():
    assert tb.Sigmoid(1.0, temperature=1e6)([1.5, 900.0]) == pytest.approx([10**-0.5, 10**0.5])


def test_a_strength_of_zero_is_neutral():
    assert tb.Sigmoid(0.0)([1.5, 2.0, 9.0]) == [1.0] * 3


def test_equal_alphas_share_their_rank():
    assert tb.Rank(0.0, 1.0)([2.0, 3.0, 3.0, 4.0]) == [0.0, 0.5, 0.5, 1.0]


@pytest.mark.parametrize(
    "make",
    [
        lambda: tb.Linear(1.5, 0.5),
        lambda: tb.Linear(-0.1, 0.5),
        lambda: tb.Rank(0.5, math.inf),
        lambda: tb.Sigmoid(-1.0),
        lambda: tb.Sigmoid((1.0, math.nan)),
        lambda: tb.Sigmoid(temperature=-1.0),
    ],
)
def test_impossible_parameters(make):
    with pytest.raises(ValueError, match="must"):
        make()
