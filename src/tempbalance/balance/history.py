"""Results of a refresh: the state of each unit, for loggers and reports."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tempbalance.metrics import imbalance
from tempbalance.types import Finding, Status

__all__ = ["Refresh", "UnitState"]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitState:
    """A layer or block at one moment of training.

    Attributes:
        name: Qualified name.
        alpha: Exponent, the mean over the weights of the unit; NaN without a fit.
        stderr: Standard error of alpha; NaN without a fit.
        multiplier: Latest factor on the learning rate or weight decay; during a ramp, the value at its end.
        status: ``OK`` with an alpha. ``RANDOM`` with an alpha, if the spectrum of every fitted weight is that of a
            random matrix: the unit looks untrained. Without an alpha, the reason for the first weight of the unit. None
            if the unit was not measured: by a recipe by depth, before the first refresh, or where measuring failed.
        reason: Why there is no alpha, or why it says little; empty for a good fit and before the first refresh.
        parameters: Names of its parameters, which all get the multiplier.
    """

    name: str
    alpha: float
    multiplier: float
    stderr: float = math.nan
    status: Status | None = None
    reason: str = ""
    parameters: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Refresh:
    """One refresh of the multipliers.

    Attributes:
        step: Optimizer steps taken before it.
        units: Every unit after it.
        measured: Number of weight matrices that were measured; the alphas of the others cannot have changed by more
            than the tolerance.
        seconds: Time that training waited for it.
        delay: Optimizer steps from it until its multipliers take effect.
        findings: What is wrong with it: no effect, noise, untrained layers, weights that are not finite; alphas that
            are no closer together than at the first refresh.
    """

    step: int
    units: Sequence[UnitState]
    measured: int
    seconds: float
    delay: int = 0
    findings: tuple[Finding, ...] = ()

    @property
    def applied(self) -> int:
        """Optimizer steps taken before the first step with its multipliers."""
        return self.step + self.delay

    @property
    def imbalance(self) -> float:
        """Standard deviation of alpha over the units with an alpha (Model Balancing); NaN if there are none."""
        return imbalance(unit.alpha for unit in self.units)
