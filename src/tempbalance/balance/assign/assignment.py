"""The base class of assignments: functions from facts about all units to one multiplier per unit."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["AlphaTransform", "Assignment", "Times", "UnitFacts"]


class UnitFacts(NamedTuple):
    """Facts about one unit, which an assignment maps to a multiplier.

    Attributes:
        alpha: Exponent of the unit, greater than 1; the mean over its weights. NaN without a fit.
        stderr: Standard error of ``alpha``; NaN without a fit.
        first_alpha: ``alpha`` at the first refresh at which the unit had one; NaN before.
        depth: Number of blocks between the unit and the head of the model: 0 for the head, 1 for the last block. Always
            0 unless the assignment has ``uses_depth``.
    """

    alpha: float = math.nan
    stderr: float = math.nan
    first_alpha: float = math.nan
    depth: int = 0


@dataclass(frozen=True)
class Assignment(ABC):
    """Base class of all assignments. To write your own, implement ``assign``; see also ``ByAlpha`` and ``ByDepth``.

    An assignment must be a pure function, and a frozen dataclass if it has parameters.

    Example:
        >>> class Extremes(Assignment):
        ...     def assign(self, units):
        ...         largest = max(unit.alpha for unit in units)
        ...         return [2.0 if unit.alpha == largest else 1.0 for unit in units]
        >>> Extremes().assign([UnitFacts(alpha=2.0), UnitFacts(alpha=4.0)])
        [1.0, 2.0]
    """

    @property
    def uses_alpha(self) -> bool:
        """Whether ``assign`` reads alphas. If False, no spectrum is computed. True unless overridden."""
        return True

    @property
    def uses_depth(self) -> bool:
        """Whether ``assign`` reads depths. If True, every trained parameter is in a unit. False unless overridden."""
        return False

    @property
    def uses_first_alpha(self) -> bool:
        """Whether ``assign`` reads first alphas, so that all multipliers may be 1 at first. False unless overridden."""
        return False

    @property
    def stretches_to_range(self) -> bool:
        """Whether the multipliers span a fixed range however little the alphas differ. False unless overridden."""
        return False

    @abstractmethod
    def assign(self, units: Sequence[UnitFacts]) -> list[float]:
        """Assign a multiplier to every unit.

        Args:
            units: Facts about each unit, in the order of the model.

        Returns:
            One multiplier per unit, finite and not negative.
        """


@dataclass(frozen=True)
class AlphaTransform(Assignment):
    """Base class of assignments that change the alphas and pass them to another assignment.

    Attributes:
        assignment: The other assignment.
    """

    assignment: Assignment

    @property
    def uses_depth(self) -> bool:
        """Whether the other assignment reads depths."""
        return self.assignment.uses_depth

    @property
    def uses_first_alpha(self) -> bool:
        """Whether the other assignment reads first alphas."""
        return self.assignment.uses_first_alpha


@dataclass(frozen=True)
class Times(Assignment):
    """The product of two assignments, such as a prior by depth times balancing by alpha.

    A unit without an alpha (embeddings, norms, a failed fit) gets the factor by depth alone. Use it to find out whether
    alpha improves on a learning rate by depth that is known to work; the combination is not published. A product of
    three is ``Times(a, Times(b, c))``.

    Attributes:
        first: One assignment.
        second: The other assignment.

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
        """Whether one of the two reads alphas."""
        return self.first.uses_alpha or self.second.uses_alpha

    @property
    def uses_depth(self) -> bool:
        """Whether one of the two reads depths."""
        return self.first.uses_depth or self.second.uses_depth

    @property
    def uses_first_alpha(self) -> bool:
        """Whether one of the two reads first alphas."""
        return self.first.uses_first_alpha or self.second.uses_first_alpha

    def assign(self, units: Sequence[UnitFacts]) -> list[float]:
        """Return the products of the multipliers of the two assignments."""
        return [a * b for a, b in zip(self.first.assign(units), self.second.assign(units), strict=True)]
