"""An assignment by how alpha has changed since the start of the run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from tempbalance.balance.assign.assignment import Around, UnitFacts

__all__ = ["AlphaChange"]

_LEAST = 1.01  # an exponent is greater than 1


@dataclass(frozen=True)
class AlphaChange(Around):
    """Another assignment, of alpha's change since the first measurement in the place of alpha.

    Each unit is taken to have begun at the mean alpha of all, so only what training has changed counts: the unit whose
    tail has become heavier the most gets the least. No source; use it where alphas differ for reasons that are older
    than the run, such as the shapes of layers or their pre-training. At the first measurement all multipliers are 1.

    The mean is raised where a unit would end at an exponent of 1 or less; ``Linear``, ``Rank`` and ``Sigmoid`` look at
    differences of alphas alone and do not see it. A standard error stays that of alpha now.

    Attributes:
        assignment: What maps the changed alphas to multipliers.

    Example:
        >>> from tempbalance.balance.assign import Linear
        >>> units = [UnitFacts(alpha=3.0, first_alpha=3.0), UnitFacts(alpha=5.0, first_alpha=6.0)]
        >>> AlphaChange(Linear(0.5, 1.5)).assign(units)
        [1.5, 0.5]
    """

    def assign(self, units: Sequence[UnitFacts]) -> list[float]:
        """Assign a multiplier to every unit, by the change of its alpha."""
        changes = [unit.alpha - unit.first_alpha for unit in units]
        known = [unit.first_alpha for unit, change in zip(units, changes, strict=True) if math.isfinite(change)]
        least = min((change for change in changes if math.isfinite(change)), default=0.0)
        begin = max(fmean(known), _LEAST - least) if known else math.nan
        return self.assignment.assign(
            [unit._replace(alpha=begin + change) for unit, change in zip(units, changes, strict=True)]
        )
