"""What an assignment is: a function from what is known of all units to one multiplier each."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Around", "Assignment", "Times", "UnitFacts"]


class UnitFacts(NamedTuple):
    """What is known of a unit when multipliers are assigned.

    Attributes:
        alpha: Its exponent; NaN or infinite where it cannot be judged.
        stderr: Standard error of alpha; of a block, that of the mean over its weights.
        first_alpha: Its exponent at the first measurement.
        depth: How far it lies below the head of the model, in blocks: 0 for the head.
    """

    alpha: float = math.nan
    stderr: float = math.nan
    first_alpha: float = math.nan
    depth: int = 0


@dataclass(frozen=True)
class Assignment(ABC):
    """Turns what is known of all units into one multiplier each: a pure function."""

    @property
    def uses_alpha(self) -> bool:
        """Whether it looks at alphas; without, no spectrum is computed."""
        return False

    @property
    def uses_depth(self) -> bool:
        """Whether it looks at depths; if so, every parameter that is trained gets a multiplier."""
        return False

    @abstractmethod
    def assign(self, units: Sequence[UnitFacts]) -> list[float]:
        """Assign a multiplier to every unit.

        Args:
            units: What is known of each.

        Returns:
            One multiplier per unit, finite and not negative.
        """


@dataclass(frozen=True)
class Around(Assignment):
    """An assignment that changes what another one gets to know of the alphas.

    Attributes:
        assignment: The other one.
    """

    assignment: Assignment

    @property
    def uses_alpha(self) -> bool:
        """It does."""
        return True

    @property
    def uses_depth(self) -> bool:
        """Whether the assignment inside does."""
        return self.assignment.uses_depth


@dataclass(frozen=True)
class Times(Assignment):
    """The product of two assignments: a prior by depth times balancing by alpha.

    Where alpha says nothing (embeddings, norms, a failed fit), the factor by depth is left. Use it to find out whether
    alpha adds anything to a rate by depth that is known to work; nobody has published the combination. A product of
    three is ``Times(a, Times(b, c))``.

    Attributes:
        first: One assignment.
        second: The other.

    Example:
        >>> from tempbalance.balance.assign import LayerwiseDecay, Linear
        >>> units = [UnitFacts(depth=2), UnitFacts(alpha=2.0, depth=1), UnitFacts(alpha=4.0)]
        >>> Times(LayerwiseDecay(0.5), Linear(0.5, 1.5)).assign(units)
        [0.25, 0.25, 1.5]
    """

    first: Assignment
    second: Assignment

    @property
    def uses_alpha(self) -> bool:
        """Whether one of the two looks at alphas."""
        return self.first.uses_alpha or self.second.uses_alpha

    @property
    def uses_depth(self) -> bool:
        """Whether one of the two looks at depths."""
        return self.first.uses_depth or self.second.uses_depth

    def assign(self, units: Sequence[UnitFacts]) -> list[float]:
        """The products of what the two assign."""
        return [a * b for a, b in zip(self.first.assign(units), self.second.assign(units), strict=True)]
