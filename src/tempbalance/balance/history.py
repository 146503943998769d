"""What a balancer has done: values for loggers, reports and people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tempbalance.metrics import imbalance

__all__ = ["Refresh", "UnitState"]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitState:
    """A layer or block at one moment of training.

    Attributes:
        name: Its qualified name.
        alpha: Its exponent (of a block the mean over its weights); NaN where it cannot be judged.
        multiplier: Its factor on the learning rate or weight decay: the one it has, or is on the way to.
    """

    name: str
    alpha: float
    multiplier: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Refresh:
    """One refresh of the multipliers.

    Attributes:
        step: Optimizer steps taken before it.
        units: Every unit as it is after it.
        measured: How many weight matrices were measured anew; the others cannot have moved by more than the tolerance.
        seconds: How long training waited for it.
        delay: Optimizer steps from it until its multipliers take effect.
    """

    step: int
    units: Sequence[UnitState]
    measured: int
    seconds: float
    delay: int = 0

    @property
    def applied(self) -> int:
        """Optimizer steps taken before the first one with its multipliers."""
        return self.step + self.delay

    @property
    def imbalance(self) -> float:
        """Standard deviation of alpha over the judged units (Model Balancing); NaN without any."""
        return imbalance(unit.alpha for unit in self.units)
