"""The base class of assignments: functions from facts about all units to one multiplier per unit."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tempbalance.layers import ParameterFacts

__all__ = ["AlphaTransform", "Assignment", "Times", "UnitFacts"]


class UnitFacts(NamedTuple):
    """Facts about one unit, which an assignment maps to a multiplier.

    Attributes:
        alpha: Exponent of the unit, greater than 1; the mean over its weights. NaN without a fit.
        stderr: Standard error of ``alpha``; NaN without a fit.
        first_alpha: ``alpha`` at the first refresh at which the unit had one; NaN before.
        depth: Number of blocks between the unit and the head of the model: 0 for the head, 1 for the last block. Always
            0 unless the assignment has ``uses_depth``.
        parameter: Name of its first parameter. This and the following are empty unless the assignment has
            ``uses_parameters``.
        role: What its parameters do: one of ``tempbalance.layers.ROLES``.
        kind: Kind of its first parameter, as in a row of an analysis; ``"vector"`` without a weight matrix.
        fan_in: Inputs of that weight, kernel taps included, 1 for an embedding; 0 for a vector.
        fan_out: Outputs of that weight; the size of a vector.
    """

    alpha: float = math.nan
    stderr: float = math.nan
    first_alpha: float = math.nan
    depth: int = 0
    parameter: str = ""
    role: str = ""
    kind: str = ""
    fan_in: int = 0
    fan_out: int = 0


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
    def inner(self) -> tuple[Assignment, ...]:
        """Assignments that this one passes units to; none unless overridden. What they use, it uses."""
        return ()

    @property
    def uses_alpha(self) -> bool:
        """Whether ``assign`` reads alphas. If False, no spectrum is computed. True unless overridden."""
        return not self.inner or any(each.uses_alpha for each in self.inner)

    @property
    def uses_depth(self) -> bool:
        """Whether ``assign`` reads depths. If True, every trained parameter is in a unit. False unless overridden."""
        return any(each.uses_depth for each in self.inner)

    @property
    def uses_parameters(self) -> bool:
        """Whether ``assign`` reads roles, shapes or names. False unless overridden.

        If True, units are divided by ``group_of``, and every trained parameter is in a unit.
        """
        return any(each.uses_parameters for each in self.inner)

    @property
    def uses_first_alpha(self) -> bool:
        """Whether ``assign`` reads first alphas, so that all multipliers may be 1 at first. False unless overridden."""
        return any(each.uses_first_alpha for each in self.inner)

    @property
    def stretches_to_range(self) -> bool:
        """Whether the multipliers span a fixed range however little the alphas differ. False unless overridden."""
        return any(each.stretches_to_range for each in self.inner)

    @property
    def optimizer_family(self) -> str | None:
        """Family of optimizers that it is meant for, ``"adam"``, ``"sgd"`` or ``"muon"``; None for all."""
        return next(filter(None, (each.optimizer_family for each in self.inner)), None)

    def group_of(self, name: str, facts: ParameterFacts) -> str:
        """Return the group of a parameter; the parameters of a unit are of one group. All of one unless overridden."""
        return ", ".join(dict.fromkeys(filter(None, (each.group_of(name, facts) for each in self.inner))))

    def check_model(self, parameters: Mapping[str, ParameterFacts]) -> None:
        """Raise a BalanceError if the model is not as the assignment expects; any model is fine unless overridden."""
        for each in self.inner:
            each.check_model(parameters)

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
    def inner(self) -> tuple[Assignment, ...]:
        """The other assignment."""
        return (self.assignment,)

    @property
    def uses_alpha(self) -> bool:
        """Always True."""
        return True


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
    def inner(self) -> tuple[Assignment, ...]:
        """The two."""
        return (self.first, self.second)

    def assign(self, units: Sequence[UnitFacts]) -> list[float]:
        """Return the products of the multipliers of the two assignments."""
        return [a * b for a, b in zip(self.first.assign(units), self.second.assign(units), strict=True)]
