"""Divide one budget exactly: values within bounds, in given proportions, whose sum is the budget.

For sparsity, the value of a unit is its fraction of zeros, its size is its number of weights, and the budget is the
total number of zeros. Bits and ranks use the same functions.
"""

from __future__ import annotations

import bisect
import heapq
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from tempbalance.errors import ArgumentError

__all__ = ["apportion", "choose_options", "raise_levels", "scale_to_budget", "shift_to_budget"]


def scale_to_budget(
    proportions: Sequence[float], sizes: Sequence[int], budget: float, *, low: float = 0.0, high: float = 1.0
) -> list[float]:
    """Scale positive proportions by one factor, within bounds, so that ``sum_i size_i value_i = budget``."""
    # value_i = min(max(eta proportion_i, low), high). If no bound is reached, this is AlphaPruning's rule (Lu et al.
    # 2024). The excess over a bound is redistributed over the other units, which keep their proportions.
    if any(not 0 < proportion < math.inf for proportion in proportions):
        raise ArgumentError("every unit needs a positive, finite proportion")
    corners = [bound / proportion for proportion in proportions for bound in (low, high)]
    return _fill(
        lambda eta: [min(max(eta * proportion, low), high) for proportion in proportions], corners, sizes, budget
    )


def shift_to_budget(values: Sequence[float], sizes: Sequence[int], budget: float) -> list[float]:
    """Shift values by one amount, within [0, 1], so that ``sum_i size_i value_i = budget``; differences are kept."""
    if any(not math.isfinite(value) for value in values):
        raise ArgumentError("every unit needs a finite value")
    corners = [bound - value for value in values for bound in (0.0, 1.0)]
    return _fill(lambda eta: [min(max(value + eta, 0.0), 1.0) for value in values], corners, sizes, budget)


def _fill(
    values_at: Callable[[float], list[float]], corners: Sequence[float], sizes: Sequence[int], budget: float
) -> list[float]:
    """Find the ``eta`` that meets the budget, where ``values_at`` is linear between corners and not decreasing."""
    if len(corners) != 2 * len(sizes) or min(sizes, default=0) < 0:
        raise ArgumentError("every unit needs a size that is not negative")
    if not corners:
        return []

    def used(eta: float) -> float:
        return math.fsum(size * value for size, value in zip(sizes, values_at(eta), strict=True))

    ordered = sorted(set(corners))
    least, most = used(ordered[0]), used(ordered[-1])
    slack = 1e-12 * max(abs(least), abs(most))
    if not least - slack <= budget <= most + slack:
        raise ArgumentError(f"a budget of {budget} cannot be met: values within the bounds cost {least} to {most}")
    place = min(bisect.bisect_left(ordered, budget, key=used), len(ordered) - 1)
    if place == 0 or used(ordered[place]) <= budget:
        return values_at(ordered[place])
    before, after = ordered[place - 1], ordered[place]
    start, stop = used(before), used(after)
    return values_at(before + (after - before) * ((budget - start) / (stop - start)))


def apportion(values: Sequence[float], sizes: Sequence[int], total: int) -> list[int]:
    """Round ``size_i value_i`` to integers that add up to a total: the largest remainders are rounded up."""
    exact = [Fraction(value) * size for value, size in zip(values, sizes, strict=True)]
    result = [min(math.floor(amount + Fraction(1, 10**9)), size) for amount, size in zip(exact, sizes, strict=True)]
    missing = total - sum(result)
    order = sorted(range(len(result)), key=lambda i: (result[i] - exact[i], i))
    candidates = [i for i in order if result[i] < sizes[i]]
    if not 0 <= missing <= len(candidates):
        raise ArgumentError(f"{total} is too far from {float(sum(exact))}, the sum of the values")
    for i in candidates[:missing]:
        result[i] += 1
    return result


def raise_levels(
    levels: Sequence[int], sizes: Sequence[int], budget: float, worth: Callable[[int, int, int], float]
) -> list[int]:
    """Give every unit one of a few ascending levels: take the step of highest worth per cost while one fits."""
    # ``worth`` is per unit of budget, from the unit's index, its level and its next level. If the worth of a unit's
    # steps decreases as it rises (diminishing returns), the sum of worth * cost over the steps taken is at most one
    # step (the first that did not fit) below the maximum: up to that step it is the optimum of the linear relaxation
    # (Sinha and Zoltners 1979). If all steps cost the same, it is the maximum.
    left = budget - levels[0] * sum(sizes)
    if not left >= 0:
        raise ArgumentError(f"a budget of {budget} cannot be met by {sum(sizes)} times a value of at least {levels[0]}")
    places = [0] * len(sizes)
    queue: list[tuple[float, int]] = []

    def offer(unit: int) -> None:
        now, *after = levels[places[unit] : places[unit] + 2]
        if after:
            heapq.heappush(queue, (-worth(unit, now, after[0]), unit))

    for unit in range(len(sizes)):
        offer(unit)
    while queue:
        _, unit = heapq.heappop(queue)
        cost = sizes[unit] * (levels[places[unit] + 1] - levels[places[unit]])
        if cost <= left:  # a step that does not fit now never fits later
            left -= cost
            places[unit] += 1
            offer(unit)
    return [levels[place] for place in places]


def choose_options(costs: Sequence[Sequence[int]], losses: Sequence[Sequence[float]], budget: int) -> list[int]:
    """Choose one option per unit: the least sum of losses whose costs are within the budget, an integer programme."""
    # Exact dynamic programme over the Pareto front of (cost, loss). A partial choice is dropped if its Lagrangian lower
    # bound exceeds the loss of a known choice (Dyer, Kayal and Walker 1984), so that few are left.
    if not all(map(len, costs)):
        raise ArgumentError("every unit needs an option")
    if sum(map(min, costs)) > budget:
        raise ArgumentError(f"a budget of {budget} cannot be met by options of at least {sum(map(min, costs))}")
    prices = [np.array(each, dtype=np.int64) for each in costs]
    tables = [np.array(each, dtype=np.float64) for each in losses]
    price, found = _multiplier(prices, tables, budget)
    best = sum(table[i] for table, i in zip(tables, found, strict=True))
    bounds = np.cumsum([(table + price * cost).min() for table, cost in zip(tables, prices, strict=True)][::-1])[::-1]
    least = np.cumsum([cost.min() for cost in prices][::-1])[::-1]
    slack = 1e-12 * (abs(best) + price * budget)
    spent, loss = np.zeros(1, dtype=np.int64), np.zeros(1)
    steps: list[tuple[Any, Any]] = []
    for unit, (cost, table) in enumerate(zip(prices, tables, strict=True)):
        last = unit + 1 == len(prices)
        all_spent, all_losses = (spent[:, None] + cost).ravel(), (loss[:, None] + table).ravel()
        rest, lowest = (0, 0.0) if last else (int(least[unit + 1]), float(bounds[unit + 1]))
        kept = np.flatnonzero(
            (all_spent + rest <= budget) & (all_losses + lowest + price * (all_spent - budget) <= best + slack)
        )
        order = kept[np.lexsort((all_losses[kept], all_spent[kept]))]
        front = np.minimum.accumulate(np.append(np.inf, all_losses[order]))[:-1]
        order = order[all_losses[order] < front]
        spent, loss = all_spent[order], all_losses[order]
        steps.append(np.divmod(order, len(cost)))
    place = int(loss.argmin())
    chosen = []
    for parents, options in reversed(steps):
        chosen.append(int(options[place]))
        place = int(parents[place])
    return chosen[::-1]


def _multiplier(costs: Sequence[Any], losses: Sequence[Any], budget: int) -> tuple[float, list[int]]:
    """Return the smallest price per unit of cost at which the cheapest choice meets the budget, and that choice."""

    def choice(price: float) -> list[int]:
        """Return the option of least loss and price of each unit, the cheaper one of two equal ones."""
        return [int(np.lexsort((cost, loss + price * cost))[0]) for cost, loss in zip(costs, losses, strict=True)]

    def spent(options: Sequence[int]) -> int:
        return sum(int(cost[i]) for cost, i in zip(costs, options, strict=True))

    low, high = 0.0, 1.0
    if spent(choice(low)) <= budget:
        return low, choice(low)
    while spent(choice(high)) > budget:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (low, middle) if spent(choice(middle)) <= budget else (middle, high)
    return high, choice(high)
