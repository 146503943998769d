"""Dividing a budget: exact, within bounds, in proportion."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from tempbalance.compress.budget import apportion, choose_options, raise_levels, scale_to_budget, shift_to_budget
from tempbalance.errors import ArgumentError

UNITS = st.lists(st.tuples(st.floats(0.05, 20.0), st.integers(1, 10**9)), min_size=1, max_size=60)


@given(units=UNITS, part=st.floats(0.0, 1.0))
def test_scaled_proportions_meet_the_budget_within_bounds_and_in_proportion(units, part):
    proportions, sizes = zip(*units, strict=True)
    budget = part * sum(sizes)
    values = scale_to_budget(proportions, sizes, budget)
    assert all(0 <= value <= 1 for value in values)
    assert math.fsum(v * n for v, n in zip(values, sizes, strict=True)) == pytest.approx(budget, rel=1e-9, abs=1e-6)
    free = [value / proportion for proportion, value in zip(proportions, values, strict=True) if value < 1]
    assert max(free, default=1) == pytest.approx(min(free, default=1), rel=1e-9)
    for proportion, value in zip(proportions, values, strict=True):
        if value == 1 and free:
            assert proportion * max(free) >= 1 - 1e-9  # cut off only if the factor would exceed the bound


@given(units=UNITS, part=st.floats(0.0, 1.0))
def test_rounded_amounts_add_up_to_the_total(units, part):
    proportions, sizes = zip(*units, strict=True)
    total = round(part * sum(sizes))
    values = scale_to_budget(proportions, sizes, total)
    counts = apportion(values, sizes, total)
    assert sum(counts) == total
    assert all(0 <= count <= size for count, size in zip(counts, sizes, strict=True))
    assert all(abs(c - Fraction(v) * n) < 1 + 1e-6 * n for c, v, n in zip(counts, values, sizes, strict=True))


@given(low=st.floats(0.1, 0.5), high=st.floats(0.6, 3.0), units=UNITS, part=st.floats(0.0, 1.0))
def test_scaled_proportions_meet_the_budget_within_other_bounds(low, high, units, part):
    proportions, sizes = zip(*units, strict=True)
    budget = (low + part * (high - low)) * sum(sizes)
    values = scale_to_budget(proportions, sizes, budget, low=low, high=high)
    assert all(low <= value <= high for value in values)
    assert math.fsum(v * n for v, n in zip(values, sizes, strict=True)) == pytest.approx(budget, rel=1e-9)


@given(size=st.integers(1, 10**6), value=st.floats(0.0, 1.0), count=st.integers(1, 40))
def test_equal_proportions_give_equal_values(size, value, count):
    values = scale_to_budget([2.0] * count, [size] * count, value * size * count)
    assert values == pytest.approx([value] * count, abs=1e-9)


def test_a_proportion_that_exceeds_the_upper_bound_is_cut_off_and_redistributed():
    assert scale_to_budget([1.0, 2.0, 3.0], [10, 10, 10], 24.0) == pytest.approx([0.4 + 0.2 / 3, 0.8 + 0.4 / 3, 1.0])


def test_shifted_values_keep_their_differences_within_the_bounds():
    assert shift_to_budget([0.0, 0.25, 1.0], [10, 10, 10], 15.0) == [0.125, 0.375, 1.0]


def test_the_largest_remainders_are_rounded_up_and_the_first_of_equal_ones():
    assert apportion([0.5, 0.5, 0.5], [3, 3, 2], 4) == [2, 1, 1]


@pytest.mark.parametrize("budget", [-1.0, 31.0, math.nan])
def test_a_budget_that_cannot_be_met_is_refused(budget):
    with pytest.raises(ValueError, match="cannot be met"):
        scale_to_budget([1.0, 2.0], [10, 20], budget)


@pytest.mark.parametrize(
    ("proportions", "sizes"),
    [([0.0, 1.0], [1, 1]), ([math.nan], [1]), ([math.inf], [1]), ([1.0], [-1]), ([1.0], [1, 2])],
)
def test_invalid_proportions_and_sizes_are_refused(proportions, sizes):
    with pytest.raises(ValueError, match="every unit needs"):
        scale_to_budget(proportions, sizes, 0.5)


def test_a_total_too_far_from_the_values_is_refused():
    with pytest.raises(ValueError, match="too far"):
        apportion([0.5, 0.5], [10, 10], 14)


def test_no_units_give_no_values():
    assert scale_to_budget([], [], 0.0) == []
    assert apportion([], [], 0) == []


@given(
    units=st.lists(st.tuples(st.floats(0.0, 9.0), st.integers(0, 50)), min_size=1, max_size=20),
    levels=st.lists(st.integers(0, 12), min_size=1, max_size=5, unique=True).map(sorted),
    part=st.floats(0.0, 1.5),
)
def test_levels_are_raised_until_no_step_fits_the_budget(units, levels, part):
    weights, sizes = zip(*units, strict=True)
    budget = (levels[0] + part * (levels[-1] - levels[0])) * sum(sizes)
    values = raise_levels(levels, sizes, budget, lambda i, now, _: weights[i] / (1 + now))
    left = budget - sum(v * n for v, n in zip(values, sizes, strict=True))
    assert left >= 0
    for value, size in zip(values, sizes, strict=True):
        assert all((higher - value) * size > left for higher in levels[levels.index(value) + 1 :])


def test_the_step_of_highest_worth_is_taken_first():
    assert raise_levels([1, 2, 3], [10, 10, 10], 50, lambda i, now, _: [3.0, 2.0, 5.0][i] / now) == [2, 1, 2]


@pytest.mark.parametrize("budget", [19, math.nan])
def test_a_budget_below_the_lowest_level_is_refused(budget):
    with pytest.raises(ValueError, match="at least 2"):
        raise_levels([2, 3], [4, 6], budget, lambda *_: 1.0)


OPTIONS = st.integers(1, 4).flatmap(
    lambda n: st.lists(
        st.lists(st.tuples(st.integers(0, 30), st.floats(0, 10) | st.sampled_from([0.0, 1.0])), min_size=n, max_size=n),
        min_size=1,
        max_size=5,
    )
)


def total(table, choice):
    return sum(own[i] for own, i in zip(table, choice, strict=True))


@settings(deadline=None, max_examples=50)
@given(options=OPTIONS, part=st.floats(0.0, 1.0))
def test_the_chosen_options_have_the_least_loss_of_all_within_the_budget(options, part):
    costs = [[cost for cost, _ in own] for own in options]
    losses = [[loss for _, loss in own] for own in options]
    budget = round(sum(map(min, costs)) + part * (sum(map(max, costs)) - sum(map(min, costs))))
    found = choose_options(costs, losses, budget)
    choices = itertools.product(*map(range, map(len, costs)))
    best = min(total(losses, choice) for choice in choices if total(costs, choice) <= budget)
    assert total(costs, found) <= budget
    assert total(losses, found) == pytest.approx(best)


def test_the_choice_for_blocks_of_llama_equals_that_of_a_solver_of_integer_programmes():
    rng = np.random.default_rng(0)
    sizes = ([4096 * 4096] * 4 + [11008 * 4096] * 3) * 4
    costs = [[size // 8 * (8 * width + 1) for width in (2, 3, 4, 8, 16)] for size in sizes]
    losses = [[size * rng.uniform(0.5, 2) * 4.0**-width for width in (2, 3, 4, 8, 16)] for size in sizes]
    budget = int(3.6 * sum(sizes))
    found = choose_options(costs, losses, budget)
    assert total(costs, found) <= budget
    one_each = LinearConstraint(np.kron(np.eye(len(sizes)), np.ones(5)), 1, 1)
    within = LinearConstraint(np.ravel(costs)[None] / budget, -np.inf, 1)
    scale = sum(map(min, losses))
    solved = milp(
        np.ravel(losses) / scale, integrality=np.ones(5 * len(sizes)), bounds=Bounds(0, 1),
        constraints=[one_each, within], options={"mip_rel_gap": 1e-6},
    )  # fmt: skip
    assert total(losses, found) / scale <= solved.fun * (1 + 1e-6)


@pytest.mark.parametrize(("costs", "match"), [([[4, 5], [3]], "cannot be met"), ([[1], []], "every unit")])
def test_a_budget_below_the_cheapest_options_is_refused(costs, match):
    with pytest.raises(ArgumentError, match=match):
        choose_options(costs, [[0.0] * len(own) for own in costs], 6)
