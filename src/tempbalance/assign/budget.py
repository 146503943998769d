"""Shares of one budget: values within bounds, in given proportions, that add up to it exactly.

For sparsity the value of a layer is its share of zeros, its size the number of its weights, and the budget the number
of all zeros. The same sums share out bits or ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

__all__ = ["apportion", "scale_to_budget"]


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
    if len(shares) != len(sizes) or any(not 0 < share < math.inf for share in shares) or min(sizes, default=0) < 0:
        raise ValueError("every unit needs a positive, finite share and a size that is not negative")
    if not shares:
        return []
    total = sum(sizes)
    slack = 1e-12 * total * max(abs(low), abs(high))
    if not low * total - slack <= budget <= high * total + slack:
        raise ValueError(f"a budget of {budget} cannot be met by {total} times a value from {low} to {high}")

    def used(eta: float) -> float:
        """What a factor uses of the budget."""
        return math.fsum(size * min(max(eta * share, low), high) for share, size in zip(shares, sizes, strict=True))

    corners = sorted({bound / share for share in shares for bound in (low, high)})
    after = next((corner for corner in corners if used(corner) >= budget), corners[-1])
    before = max((corner for corner in corners if corner < after), default=after)
    free, fixed = 0.0, 0.0
    middle = (before + after) / 2
    for share, size in zip(shares, sizes, strict=True):
        if low < middle * share < high:
            free += size * share
        else:
            fixed += size * min(max(middle * share, low), high)
    eta = (budget - fixed) / free if free and after > before else after
    return [min(max(eta * share, low), high) for share in shares]


def apportion(values: Sequence[float], sizes: Sequence[int], total: int) -> list[int]:
    """Whole numbers near ``size_i value_i`` that add up to a total: the largest remainders are rounded up.

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
