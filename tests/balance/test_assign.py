"""Assignments: one without differences, monotone, in range, and equal to the papers' formulas."""

import math
from itertools import pairwise
from statistics import fmean, pstdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tempbalance as tb
from tempbalance.balance.assign import UnitFacts

ALPHAS = st.lists(st.floats(1.05, 20.0), min_size=2, max_size=30)
ALL = [
    tb.assign.Linear(0.5, 1.5),
    tb.assign.Linear(1.0, 5.0),
    tb.assign.Sqrt(),
    tb.assign.Log2(),
    tb.assign.Rank(0.5, 1.5),
    tb.released.RankAsReleased(0.5, 1.5),
    tb.assign.Sigmoid(1.0),
    tb.assign.Sigmoid((2.0, 1.0)),
]
NORMALIZED = [
    tb.assign.Linear(0.5, 1.5, normalize=True),
    tb.assign.Rank(normalize=True),
    tb.assign.Sigmoid((2.0, 1.0), normalize=True),
]
ids = [repr(assignment) for assignment in ALL + NORMALIZED]


@pytest.mark.parametrize("assignment", ALL + NORMALIZED, ids=ids)
class TestNeutral:
    def test_equal_alphas_give_multiplier_one(self, assignment):
        assert assignment([2.5] * 7) == [1.0] * 7

    def test_alphas_equal_within_their_accuracy_give_multiplier_one(self, assignment):
        assert assignment([2.5, 2.5 * (1 + 1e-9), 2.5]) == [1.0] * 3

    def test_a_single_unit_gets_multiplier_one(self, assignment):
        assert assignment([3.0]) == [1.0]

    def test_no_units_give_no_multipliers(self, assignment):
        assert assignment([]) == []

    def test_units_without_an_alpha_get_multiplier_one(self, assignment):
        assert assignment([math.nan, math.inf]) == [1.0, 1.0]

    def test_one_alpha_among_many_units_gives_multiplier_one(self, assignment):
        assert assignment([math.nan, 3.0, math.inf]) == [1.0] * 3

    def test_units_without_an_alpha_do_not_affect_the_others(self, assignment):
        fitted = assignment([2.0, 3.0, 4.5])
        assert assignment([math.nan, 2.0, 3.0, math.inf, 4.5]) == [1.0, fitted[0], fitted[1], 1.0, fitted[2]]

    def test_an_alpha_of_at_most_one_is_refused(self, assignment):
        with pytest.raises(ValueError, match="greater than 1"):
            assignment([2.0, 0.9])


@pytest.mark.parametrize("assignment", ALL + NORMALIZED, ids=ids)
class TestShape:
    @given(alphas=ALPHAS)
    def test_multipliers_never_fall_as_alpha_rises(self, assignment, alphas):
        ordered = sorted(set(alphas))
        multipliers = assignment(ordered)
        assert all(a <= b * (1 + 1e-12) for a, b in pairwise(multipliers))

    @given(alphas=ALPHAS, seed=st.randoms(use_true_random=False))
    def test_multipliers_do_not_depend_on_the_order_of_the_units(self, assignment, alphas, seed):
        alphas = list(set(alphas))
        order = list(range(len(alphas)))
        seed.shuffle(order)
        shuffled = assignment([alphas[i] for i in order])
        expected = assignment(alphas)
        assert shuffled == pytest.approx([expected[i] for i in order], rel=1e-12)

    @given(alphas=ALPHAS)
    def test_multipliers_are_finite_and_not_negative(self, assignment, alphas):
        assert all(math.isfinite(m) and m >= 0 for m in assignment(alphas))


@pytest.mark.parametrize("assignment", [*NORMALIZED, tb.assign.Sqrt(), tb.assign.Log2()], ids=repr)
@given(alphas=ALPHAS)
def test_normalized_multipliers_have_mean_one(assignment, alphas):
    assert math.fsum(assignment(alphas)) / len(alphas) == pytest.approx(1.0)


@given(alphas=ALPHAS, low=st.floats(0.0, 1.0), width=st.floats(0.0, 4.0))
def test_multipliers_stay_within_the_bounds_and_reach_them(alphas, low, width):
    high = low + width
    for assignment in (tb.assign.Linear(low, high), tb.assign.Rank(low, high)):
        multipliers = assignment(alphas)
        if multipliers == [1.0] * len(alphas):
            continue  # equal alphas
        assert min(multipliers) >= low - 1e-12
        assert max(multipliers) <= high + 1e-12
    line = tb.assign.Linear(low, high)(alphas)
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
    assert tb.assign.Sigmoid(strength)(alphas) == pytest.approx(expected, rel=1e-12)


def test_sigmoid_does_not_overflow():
    assert tb.assign.Sigmoid(1.0, temperature=1e6)([1.5, 900.0]) == pytest.approx([10**-0.5, 10**0.5])


def test_a_sigmoid_of_strength_zero_gives_multiplier_one():
    assert tb.assign.Sigmoid(0.0)([1.5, 2.0, 9.0]) == [1.0] * 3


def test_equal_alphas_get_the_mean_of_their_ranks():
    assert tb.assign.Rank(0.0, 1.0)([2.0, 3.0, 3.0, 4.0]) == [0.0, 0.5, 0.5, 1.0]


def samples(exponents: list[float], seed: int) -> list[UnitFacts]:
    """Units whose alphas are fitted to samples of laws with these exponents."""
    fits = [
        tb.Hill().fit(tb.testing.pareto_sample(128, alpha, seed=1000 * seed + i)) for i, alpha in enumerate(exponents)
    ]
    return [UnitFacts(alpha=fit.alpha, stderr=fit.stderr) for fit in fits]


def spread(assignment: tb.assign.Assignment, exponents: list[float]) -> float:
    """Standard deviation of the logarithms of the multipliers, over many samples."""
    return fmean(pstdev([math.log(m) for m in assignment.assign(samples(exponents, seed))]) for seed in range(100))


FACTS = st.lists(st.tuples(st.floats(1.5, 9.0), st.floats(0.01, 3.0)), min_size=2, max_size=12)
DAMPED = [
    tb.assign.Damped(tb.assign.Sigmoid()),
    tb.assign.Damped(tb.assign.Sqrt()),
    tb.assign.Damped(tb.assign.Sigmoid(normalize=True)),
]


class TestDamped:
    """Damping removes noise and keeps differences beyond the standard errors."""

    def test_damping_removes_most_of_the_spread_of_units_with_one_true_alpha(self):
        equal = [3.0] * 8
        assert spread(tb.assign.Sigmoid(), equal) > 0.7
        assert spread(tb.assign.Damped(tb.assign.Sigmoid()), equal) < spread(tb.assign.Sigmoid(), equal) / 3

    @pytest.mark.parametrize("assignment", [tb.assign.Sigmoid(), tb.assign.Sqrt(), tb.assign.Log2()], ids=repr)
    def test_damping_hardly_changes_multipliers_of_different_alphas(self, assignment):
        for seed in range(20):
            units = samples([2.0, 2.5, 6.0, 7.0], seed)
            assert tb.assign.Damped(assignment).assign(units) == pytest.approx(assignment.assign(units), rel=0.1)

    def test_damping_is_the_estimate_of_paule_and_mandel(self):
        """Paule and Mandel 1982: the variance t at which the weighted sum of squares is the number of units less 1."""
        units = samples([2.0, 2.2, 3.0, 3.5, 4.0], seed=0)
        alphas, errors = [unit.alpha for unit in units], [unit.stderr for unit in units]

        class Seen(tb.assign.ByAlpha):
            def map_alphas(self, alphas):
                return alphas

        def excess(t: float) -> float:
            weights = [1 / (t + s * s) for s in errors]
            mean = sum(w * a for w, a in zip(weights, alphas, strict=True)) / sum(weights)
            return sum(w * (a - mean) ** 2 for w, a in zip(weights, alphas, strict=True)) - (len(alphas) - 1)

        grid = [i / 10_000 for i in range(1, 20_000)]
        t = next(t for t in grid if excess(t) <= 0)
        weights = [1 / (t + s * s) for s in errors]
        mean = sum(w * a for w, a in zip(weights, alphas, strict=True)) / sum(weights)
        expected = [mean + t / (t + s * s) * (a - mean) for a, s in zip(alphas, errors, strict=True)]
        assert tb.assign.Damped(Seen()).assign(units) == pytest.approx(expected, rel=1e-4)

    @pytest.mark.parametrize("assignment", DAMPED, ids=repr)
    @given(facts=FACTS)
    def test_damped_multipliers_are_finite_and_not_negative(self, assignment, facts):
        units = [UnitFacts(alpha=alpha, stderr=stderr) for alpha, stderr in facts]
        assert all(math.isfinite(m) and m >= 0 for m in assignment.assign(units))

    @given(facts=FACTS)
    def test_damped_alphas_stay_within_the_measured_range(self, facts):
        units = [UnitFacts(alpha=alpha, stderr=stderr) for alpha, stderr in facts]
        found = tb.assign.Damped(tb.assign.Sqrt()).assign(units)
        plain = tb.assign.Sqrt().assign(units)
        assert max(found) / min(found) <= max(plain) / min(plain) * (1 + 1e-9)

    def test_a_larger_standard_error_gives_a_smaller_change(self):
        units = [UnitFacts(alpha=2.0, stderr=s) for s in (0.1, 1.0)] + [
            UnitFacts(alpha=5.0, stderr=s) for s in (0.1, 1)
        ]
        low, low_uncertain, high, high_uncertain = tb.assign.Damped(tb.assign.Sqrt()).assign(units)
        assert low < low_uncertain < high_uncertain < high

    def test_differences_within_the_errors_give_multiplier_one(self):
        units = [UnitFacts(alpha=alpha, stderr=0.5) for alpha in (2.9, 3.0, 3.3)]
        assert tb.assign.Damped(tb.assign.Sigmoid()).assign(units) == [1.0] * 3

    def test_damping_ignores_units_without_an_alpha(self):
        fitted = [UnitFacts(alpha=alpha, stderr=0.1) for alpha in (2.0, 3.0, 4.5)]
        units = [UnitFacts(), *fitted, UnitFacts(alpha=math.inf)]
        found = tb.assign.Damped(tb.assign.Sigmoid()).assign(fitted)
        assert tb.assign.Damped(tb.assign.Sigmoid()).assign(units) == [1.0, *found, 1.0]

    @pytest.mark.parametrize("units", [[], [UnitFacts()], [UnitFacts(alpha=3.0, stderr=0.1)]], ids=len)
    def test_damping_fewer_than_two_alphas_gives_multiplier_one(self, units):
        assert tb.assign.Damped(tb.assign.Sigmoid()).assign(units) == [1.0] * len(units)

    @pytest.mark.parametrize("stderr", [math.nan, 0.0, -1.0, math.inf])
    def test_damping_refuses_an_alpha_without_a_standard_error(self, stderr):
        with pytest.raises(ValueError, match="standard error"):
            tb.assign.Damped(tb.assign.Sigmoid()).assign(
                [UnitFacts(alpha=2.0, stderr=0.1), UnitFacts(alpha=3.0, stderr=stderr)]
            )

    @pytest.mark.parametrize(
        "assignment",
        [
            tb.assign.Linear(),
            tb.assign.Rank(),
            tb.released.RankAsReleased(),
            tb.assign.Times(tb.assign.LayerwiseDecay(0.9), tb.assign.Linear()),
        ],
        ids=repr,
    )
    def test_damping_refuses_assignments_that_stretch_to_their_range(self, assignment):
        with pytest.raises(ValueError, match=rf"{type(assignment).__name__} must not be damped.*Sigmoid"):
            tb.assign.Damped(assignment)


class TestAlphaChange:
    def test_alpha_change_uses_only_the_change_of_alpha(self):
        units = [UnitFacts(alpha=2.0 + c, first_alpha=2.0) for c in (0.1, 0.2)] + [
            UnitFacts(alpha=9.3, first_alpha=9.0)
        ]
        assert tb.assign.AlphaChange(tb.assign.Sigmoid()).assign(units) == pytest.approx(
            tb.assign.Sigmoid()([5.1, 5.2, 5.3])
        )

    def test_alpha_change_starts_all_units_at_the_mean_of_first_alphas(self):
        units = [UnitFacts(alpha=3.0, first_alpha=2.0), UnitFacts(alpha=4.0, first_alpha=4.0)]
        assert tb.assign.AlphaChange(tb.assign.Sqrt()).assign(units) == pytest.approx(tb.assign.Sqrt()([4.0, 3.0]))

    def test_alpha_change_without_a_change_gives_multiplier_one(self):
        units = [UnitFacts(alpha=alpha, first_alpha=alpha) for alpha in (2.0, 3.0, 7.0)]
        assert tb.assign.AlphaChange(tb.assign.Linear()).assign(units) == [1.0] * 3

    def test_alpha_change_keeps_exponents_above_one(self):
        units = [UnitFacts(alpha=2.0, first_alpha=9.0), UnitFacts(alpha=2.0, first_alpha=2.0)]
        assert tb.assign.AlphaChange(tb.assign.Linear(0.5, 1.5)).assign(units) == [0.5, 1.5]

    def test_alpha_change_gives_units_without_both_alphas_multiplier_one(self):
        known = [UnitFacts(alpha=2.0, first_alpha=3.0), UnitFacts(alpha=4.0, first_alpha=4.0)]
        units = [*known, UnitFacts(alpha=2.0), UnitFacts(first_alpha=2.0)]
        assert tb.assign.AlphaChange(tb.assign.Linear(0.5, 1.5)).assign(units) == [0.5, 1.5, 1.0, 1.0]

    @pytest.mark.parametrize("units", [[], [UnitFacts()] * 2], ids=len)
    def test_alpha_change_without_any_alpha_gives_multiplier_one(self, units):
        assert tb.assign.AlphaChange(tb.assign.Sigmoid()).assign(units) == [1.0] * len(units)


class TestTimes:
    UNITS = (UnitFacts(alpha=2.0, stderr=0.1, depth=2), UnitFacts(alpha=4.0, stderr=0.1, depth=1), UnitFacts())

    def test_times_multiplies_its_two_assignments(self):
        a, b = tb.assign.LayerwiseDecay(0.5), tb.assign.Linear(0.5, 1.5)
        assert tb.assign.Times(a, b).assign(self.UNITS) == [0.125, 0.75, 1.0]
        assert tb.assign.Times(a, tb.assign.Times(a, b)).assign(self.UNITS) == [0.03125, 0.375, 1.0]

    def test_times_uses_alpha_or_depth_if_one_of_its_assignments_does(self):
        depth, alpha = tb.assign.LayerwiseDecay(), tb.assign.Sigmoid()
        assert (tb.assign.Times(depth, depth).uses_alpha, tb.assign.Times(depth, alpha).uses_alpha) == (False, True)
        assert (tb.assign.Times(alpha, alpha).uses_depth, tb.assign.Times(alpha, depth).uses_depth) == (False, True)

    @pytest.mark.parametrize("wrap", [tb.assign.Damped, tb.assign.AlphaChange])
    def test_alpha_transforms_pass_depth_on(self, wrap):
        wrapped = wrap(tb.assign.Times(tb.assign.LayerwiseDecay(0.5), tb.assign.Sigmoid(0.0)))
        assert wrapped.uses_depth
        assert wrapped.assign(self.UNITS) == [0.25, 0.5, 1.0]


@pytest.mark.parametrize(
    "make",
    [
        lambda: tb.assign.Linear(1.5, 0.5),
        lambda: tb.assign.Linear(-0.1, 0.5),
        lambda: tb.assign.Rank(0.5, math.inf),
        lambda: tb.assign.Sigmoid(-1.0),
        lambda: tb.assign.Sigmoid((1.0, math.nan)),
        lambda: tb.assign.Sigmoid(temperature=-1.0),
    ],
)
def test_parameters_out_of_range_are_refused(make):
    with pytest.raises(ValueError, match="must"):
        make()
