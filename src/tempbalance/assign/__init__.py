"""From what is known of all units to one number each: multipliers of rates; shares of one exact budget."""

from __future__ import annotations

from tempbalance.assign.base import Assignment, Times, UnitFacts
from tempbalance.assign.budget import apportion, raise_levels, scale_to_budget, shift_to_budget
from tempbalance.assign.change import AlphaChange
from tempbalance.assign.damped import Damped
from tempbalance.assign.depth import LayerwiseDecay, SlowLearner
from tempbalance.assign.multipliers import ByAlpha, Linear, Log2, Rank, RankAsReleased, Sigmoid, Sqrt

__all__ = [
    "AlphaChange",
    "Assignment",
    "ByAlpha",
    "Damped",
    "LayerwiseDecay",
    "Linear",
    "Log2",
    "Rank",
    "RankAsReleased",
    "Sigmoid",
    "SlowLearner",
    "Sqrt",
    "Times",
    "UnitFacts",
    "apportion",
    "raise_levels",
    "scale_to_budget",
    "shift_to_budget",
]
