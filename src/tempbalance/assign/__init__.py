"""From the alphas of all units to one number each: multipliers of learning rate or weight decay."""

from __future__ import annotations

from tempbalance.assign.multipliers import Assignment, Linear, Log2, Rank, RankAsReleased, Sigmoid, Sqrt

__all__ = ["Assignment", "Linear", "Log2", "Rank", "RankAsReleased", "Sigmoid", "Sqrt"]
