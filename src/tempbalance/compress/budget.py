"""Divide one budget exactly: values within bounds, in given proportions, whose sum is the budget.

For sparsity, the value of a unit is its fraction of zeros, its size is its number of weights, and the budget is the
number of zeros in all. Bits and ranks use the same functions.
"""

from __future__ import annotations

import bisect
import heapq
import math
from collections.abc import Callable, Sequence
from fractions import Fraction

__all__ = ["apportion", "raise_levels", "scale_to_budget", "shift_to_budget"]


def scale_to_budget(
    proportions: Sequence[float], sizes: Sequence[int], budget: float, *, low: float = 0.0, high: float = 1.0
) -> list[float]:
    """Scale proportions by one factor, within bounds, so that they add up to a budget.

    ``value_i = min(max(eta proportion_i, low), high)`` with ``eta`` such that ``sum_i size_i value_i = budget``. If no
    bound is reached, this is AlphaPruning's rule (Lu et al. 2024). What a bound cuts off is redistributed over the
    other units, which keep their proportions. ``eta`` is unique unless every value is at a bound.

    Args:
        proportions: One per unit; positive and finite.
        sizes: Cost of a value of 1 for each unit; not negative.
        budget: Cost of all values together.
        low: Smallest value.
        high: Largest value.

    Returns:
        One value per unit, within the bounds.

    Raises:
        ValueError: The budget cannot be met within the bounds, or a proportion or size is invalid.

    Example:
        >>> scale_to_budget([1.0, 2.0, 3.0], [10, 10, 10], budget=24.0)
        [0.4666666666666667, 0.9333333333333333, 1.0]
    """
    if any(not 0 < proportion < math.inf for proportion in proportions):
        raise ValueError("every unit needs a positive, finite proportion")
    corners = [bound / proportion for proportion in proportions for bound in (low, high)]
    return _fill(
        lambda eta: [min(max(eta * proportion, low), high) for proportion in proportions], corners, sizes, budget
    )


def shift_to_budget(
    values: Sequence[float], sizes: Sequence[int], budget: float, *, low: float = 0.0, high: float = 1.0
) -> list[float]:
    """Shift values by one amount, within bounds, so that they add up to a budget.

    ``value_i = min(max(value_i + eta, low), high)`` with ``eta`` such that ``sum_i size_i value_i = budget``. Like
    ``scale_to_budget``, but differences are kept and not proportions.

    Returns:
        One value per unit, within the bounds.

    Raises:
        ValueError: The budget cannot be met within the bounds, or a value or size is invalid.

    Example:
        >>> shift_to_budget([0.0, 0.25, 1.0], [10, 10, 10], budget=15.0)
        [0.125, 0.375, 1.0]
    """
    if any(not math.isfinite(value) for value in values):
        raise ValueError("every unit needs a finite value")
    corners = [bound - value for value in values for bound in (low, high)]
    return _fill(lambda eta: [min(max(value + eta, low), high) for value in values], corners, sizes, budget)


def _fill(
    values_at: Callable[[float], list[float]], corners: Sequence[float], sizes: Sequence[int], budget: float
) -> list[float]:
    """Find the ``eta`` that meets the budget, where ``values_at`` is linear between corners and not decreasing."""
    if len(corners) != 2 * len(sizes) or min(sizes, default=0) < 0:
        raise ValueError("every unit needs a size that is not negative")
    if not corners:
        return []

    def used(eta: float) -> float:
        """Cost of the values at ``eta``."""
        return math.fsum(size * value for size, value in zip(sizes, values_at(eta), strict=True))

    ordered = sorted(set(corners))
    least, most = used(ordered[0]), used(ordered[-1])
    slack = 1e-12 * max(abs(least), abs(most))
    if not least - slack <= budget <= most + slack:
        raise ValueError(f"a budget of {budget} cannot be met: values within the bounds cost {least} to {most}")
    place = min(bisect.bisect_left(ordered, budget, key=used), len(ordered) - 1)
    if place == 0 or used(ordered[place]) <= budget:
        return values_at(ordered[place])
    before, after = ordered[place - 1], ordered[place]
    start, stop = used(before), used(after)
    return values_at(before + (after - before) * ((budget - start) / (stop - start)))


def apportion(values: Sequence[float], sizes: Sequence[int], total: int) -> list[int]:
    """Round ``size_i value_i`` to integers that add up to a total: the largest remainders are rounded up.

    Args:
        values: One per unit, in [0, 1].
        sizes: Sizes of the units.
        total: Sum of the result; within one per unit of ``sum_i size_i value_i``.

    Returns:
        One integer per unit, from 0 to its size, less than 1 away from ``size_i value_i``.

    Raises:
        ValueError: The total is too far from the values.

    Example:
        >>> apportion([0.5, 0.5, 0.5], [3, 3, 2], total=4)
        [2, 1, 1]
    """
    exact = [Fraction(value) * size for value, size in zip(values, sizes, strict=True)]
    result = [min(math.floor(amount + Fraction(1, 10**9)), size) for amount, size in zip(exact, sizes, strict=True)]
    missing = total - sum(result)
    order = sorted(range(len(result)), key=lambda i: (result[i] - exact[i], i))
    candidates = [i for i in order if result[i] < sizes[i]]
    if not 0 <= missing <= len(candidates):
        raise ValueError(f"{total} is too far from {float(sum(exact))}, the sum of the values")
    for i in candidates[:missing]:
        result[i] += 1
    return result


def raise_levels(
    levels: Sequence[int], sizes: Sequence[int], budget: float, worth: Callable[[int, int, int], float]
) -> list[int]:
    """Give every unit one of a few levels: start at the lowest, and take the step of highest worth that fits.

    No further step fits into the rest of the budget. If the worth of a unit's steps decreases as the unit rises
    (diminishing returns), the sum of ``worth * cost`` over the steps taken is at most one step (the first one that did
    not fit) below the maximum: up to that step it is the optimum of the linear relaxation (Sinha and Zoltners 1979). If
    all steps cost the same, it is the maximum.

    Args:
        levels: The levels, ascending.
        sizes: Cost of a level of 1 for each unit; not negative.
        budget: Upper bound of ``sum_i size_i value_i``.
        worth: Worth of a step per unit of budget, from the unit's index, its level and its next level.

    Returns:
        One of the levels per unit.

    Raises:
        ValueError: The lowest level of all units already costs more than the budget.

    Example:
        >>> raise_levels([2, 3, 4], [10, 10], budget=60, worth=lambda unit, now, _: [5.0, 1.0][unit] / now)
        [4, 2]
    """
    left = budget - levels[0] * sum(sizes)
    if not left >= 0:
        raise ValueError(f"a budget of {budget} cannot be met by {sum(sizes)} times a value of at least {levels[0]}")
    places = [0] * len(sizes)
    queue: list[tuple[float, int]] = []

    def offer(unit: int) -> None:
        """Queue the next step of a unit, if it has one."""
        now, *after = levels[places[unit] : places[unit] + 2]
        if after:
            heapq.heappush(queue, (-worth(unit, now, after[0]), unit))

    for unit in range(len(sizes)):
        offer(unit)
    while queue:
        _, unit = heapq.heappop(queue)
        cost = sizes[unit] * (levels[places[unit] + 1] - levels[places[unit]])
        if cost <= left:  # else never: the rest only shrinks
            left -= cost
            places[unit] += 1
            offer(unit)
    return [levels[place] for place in places]
