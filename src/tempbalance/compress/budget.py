"""Shares of one budget: values within bounds, in given proportions, that add up to it exactly.

For sparsity the value of a layer is its share of zeros, its size the number of its weights, and the budget the number
of all zeros. The same sums share out bits or ranks.
"""

from __future__ import annotations

import bisect
import heapq
import math
from collections.abc import Callable, Sequence
from fractions import Fraction

__all__ = ["apportion", "raise_levels", "scale_to_budget", "shift_to_budget"]


def scale_to_budget(
    shares: Sequence[float], sizes: Sequence[int], budget: float, *, low: float = 0.0, high: float = 1.0
) -> list[float]:
    """Scale shares by one factor, within bounds, so that they use a budget up.

    ``value_i = min(max(eta share_i, low), high)`` with ``eta`` such that ``sum_i size_i value_i = budget``. Where no
    bound is met this is AlphaPruning's rule (Lu et al. 2024); what a bound cuts off is redistributed over the others,
    which keep their proportions. ``eta`` is unique unless every value is at a bound.

    Args:
        shares: Positive and finite, one per unit.
        sizes: What a value of 1 costs each unit; not negative.
        budget: What is to be used up.
        low: Least value.
        high: Greatest value.

    Returns:
        One value per unit, within the bounds.

    Raises:
        ValueError: The budget is out of reach within the bounds, or a share or size is impossible.

    Example:
        >>> scale_to_budget([1.0, 2.0, 3.0], [10, 10, 10], budget=24.0)
        [0.4666666666666667, 0.9333333333333333, 1.0]
    """
    if any(not 0 < share < math.inf for share in shares):
        raise ValueError("every unit needs a positive, finite share")
    corners = [bound / share for share in shares for bound in (low, high)]
    return _fill(lambda eta: [min(max(eta * share, low), high) for share in shares], corners, sizes, budget)


def shift_to_budget(
    values: Sequence[float], sizes: Sequence[int], budget: float, *, low: float = 0.0, high: float = 1.0
) -> list[float]:
    """Shift values by one amount, within bounds, so that they use a budget up.

    ``value_i = min(max(value_i + eta, low), high)`` with ``eta`` such that ``sum_i size_i value_i = budget``: as
    ``scale_to_budget``, where differences mean something and proportions do not.

    Args:
        values: Finite, one per unit.
        sizes: What a value of 1 costs each unit; not negative.
        budget: What is to be used up.
        low: Least value.
        high: Greatest value.

    Returns:
        One value per unit, within the bounds.

    Raises:
        ValueError: The budget is out of reach within the bounds, or a value or size is impossible.

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
    """Values that grow with ``eta``, on straight lines between corners, where they use the budget up."""
    if len(corners) != 2 * len(sizes) or min(sizes, default=0) < 0:
        raise ValueError("every unit needs a size that is not negative")
    if not corners:
        return []

    def used(eta: float) -> float:
        """What is used of the budget."""
        return math.fsum(size * value for size, value in zip(sizes, values_at(eta), strict=True))

    ordered = sorted(set(corners))
    least, most = used(ordered[0]), used(ordered[-1])
    slack = 1e-12 * max(abs(least), abs(most))
    if not least - slack <= budget <= most + slack:
        raise ValueError(f"a budget of {budget} cannot be met: values within the bounds use from {least} to {most}")
    place = min(bisect.bisect_left(ordered, budget, key=used), len(ordered) - 1)
    if place == 0 or used(ordered[place]) <= budget:
        return values_at(ordered[place])
    before, after = ordered[place - 1], ordered[place]
    start, stop = used(before), used(after)
    return values_at(before + (after - before) * ((budget - start) / (stop - start)))


def apportion(values: Sequence[float], sizes: Sequence[int], total: int) -> list[int]:
    """FullTensorCache numbers near ``size_i value_i`` that add up to a total: the largest remainders are rounded up.

    Args:
        values: One per unit, in [0, 1].
        sizes: Of the units.
        total: What the result adds up to; within one per unit of ``sum_i size_i value_i``.

    Returns:
        One whole number per unit, from 0 to its size, less than 1 away from ``size_i value_i``.

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
        raise ValueError(f"{total} is too far from {float(sum(exact))}, what the values add up to")
    for i in candidates[:missing]:
        result[i] += 1
    return result


def raise_levels(
    levels: Sequence[int], sizes: Sequence[int], budget: float, worth: Callable[[int, int, int], float]
) -> list[int]:
    """Give every unit one of a few values: all begin at the lowest, and the worthiest step that fits is taken first.

    What is left of the budget in the end is too little for any further step. Where the worth of a unit's steps falls as
    it rises (diminishing returns), the sum of ``worth * cost`` over the steps taken is the greatest that the budget
    allows, or falls short of it by less than the one step that first did not fit: up to that step it is the optimum of
    the linear relaxation (Sinha and Zoltners 1979). If all steps cost the same, it is the greatest.

    Args:
        levels: The values, ascending.
        sizes: What a value of 1 costs each unit; not negative.
        budget: What the values may cost in all: ``sum_i size_i value_i`` does not exceed it.
        worth: Of a step per unit of budget, from the unit's number, its value and its next value.

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
        """Put a unit's next step up, if there is one."""
        now, *after = levels[places[unit] : places[unit] + 2]
        if after:
            heapq.heappush(queue, (-worth(unit, now, after[0]), unit))

    for unit in range(len(sizes)):
        offer(unit)
    while queue:
        _, unit = heapq.heappop(queue)
        cost = sizes[unit] * (levels[places[unit] + 1] - levels[places[unit]])
        if cost <= left:  # else never: what is left only shrinks
            left -= cost
            places[unit] += 1
            offer(unit)
    return [levels[place] for place in places]
