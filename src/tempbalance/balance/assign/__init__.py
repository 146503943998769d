"""Assignments: functions from facts about all units (alpha, depth, role, shape) to one multiplier per unit."""

from __future__ import annotations

from tempbalance.balance.assign.alpha_change import AlphaChange
from tempbalance.balance.assign.assignment import AlphaTransform, Assignment, Times, UnitFacts
from tempbalance.balance.assign.by_alpha import Bounded, ByAlpha, Linear, Log2, Rank, Sigmoid, Sqrt
from tempbalance.balance.assign.by_depth import ByDepth, LayerwiseDecay, SlowLearner
from tempbalance.balance.assign.by_parameter import ByParameter, ByRole, ByShape, Fixed
from tempbalance.balance.assign.damped import Damped

__all__ = [
    "AlphaChange",
    "AlphaTransform",
    "Assignment",
    "Bounded",
    "ByAlpha",
    "ByDepth",
    "ByParameter",
    "ByRole",
    "ByShape",
    "Damped",
    "Fixed",
    "LayerwiseDecay",
    "Linear",
    "Log2",
    "Rank",
    "Sigmoid",
    "SlowLearner",
    "Sqrt",
    "Times",
    "UnitFacts",
]
