"""From the alphas of all units to one number each: multipliers of rates; shares of one exact budget."""

from __future__ import annotations

from tempbalance.assign.budget import apportion, raise_levels, scale_to_budget, shift_to_budget
from tempbalance.assign.multipliers import Assignment, Linear, Log2, Rank, RankAsReleased, Sigmoid, Sqrt

__all__ = [
    "Assignment",
    "Linear",
    "Log2",
    "Rank",
    "RankAsReleased",
    "Sigmoid",
    "Sqrt",
    "apportion",
    "raise_levels",
    "scale_to_budget",
    "shift_to_budget",
]
