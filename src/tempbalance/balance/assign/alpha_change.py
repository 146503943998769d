"""An assignment by the change of alpha since the start of the run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from tempbalance.balance.assign.assignment import AlphaTransform, UnitFacts

__all__ = ["AlphaChange"]

_MIN_ALPHA = 1.01  # an exponent is greater than 1


@dataclass(frozen=True)
class AlphaChange(AlphaTransform):
    """Pass the change of alpha since the first refresh, instead of alpha, to another assignment.

    Every unit starts at the mean of all first alphas, so that only the change during training counts: the unit whose
    tail has become heavier the most gets the smallest multiplier. At the first refresh all multipliers are 1. There is
    no published source. Use it where alphas differ for reasons from before the run, such as the shapes of
    layers or pre-training.

    The starting mean is raised where a unit would otherwise get an exponent of 1 or less; ``Linear``, ``Rank`` and
    ``Sigmoid`` depend on differences of alphas alone and are not affected. ``stderr`` stays that of the present alpha.

    Attributes:
        assignment: Maps the changed alphas to multipliers.

    Example:
        >>> from tempbalance.balance.assign import Linear
        >>> units = [UnitFacts(alpha=3.0, first_alpha=3.0), UnitFacts(alpha=5.0, first_alpha=6.0)]
        >>> AlphaChange(Linear(0.5, 1.5)).assign(units)
        [1.5, 0.5]
    """

    @property
    def uses_first_alpha(self) -> bool:
        """Always True."""
        return True

    def assign(self, units: Sequence[UnitFacts]) -> list[float]:
        """Assign a multiplier to every unit by the change of its alpha."""
        changes = [unit.alpha - unit.first_alpha for unit in units]
        known = [unit.first_alpha for unit, change in zip(units, changes, strict=True) if math.isfinite(change)]
        least = min((change for change in changes if math.isfinite(change)), default=0.0)
        start = max(fmean(known), _MIN_ALPHA - least) if known else math.nan
        return self.assignment.assign(
            [unit._replace(alpha=start + change) for unit, change in zip(units, changes, strict=True)]
        )
