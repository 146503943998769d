"""Assignments: from what is known of all units to one multiplier each."""

from __future__ import annotations

from tempbalance.balance.assign.alpha_change import AlphaChange
from tempbalance.balance.assign.assignment import Assignment, Times, UnitFacts
from tempbalance.balance.assign.by_alpha import ByAlpha, Linear, Log2, Rank, RankAsReleased, Sigmoid, Sqrt
from tempbalance.balance.assign.by_depth import LayerwiseDecay, SlowLearner
from tempbalance.balance.assign.damped import Damped

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
]
