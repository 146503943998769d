"""An assignment that shrinks alphas towards their mean by their standard errors (empirical Bayes)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tempbalance.balance.assign.assignment import AlphaTransform, Assignment, UnitFacts
from tempbalance.errors import ArgumentError, check_type

__all__ = ["Damped"]

_HALVINGS = 60
_PAIR = 2


@dataclass(frozen=True)
class Damped(AlphaTransform):
    """Shrink alphas towards their mean by their standard errors, and pass them to another assignment.

    With alphas ``a_i`` of standard errors ``s_i`` and a variance ``t`` of the true alphas between units, alpha becomes
    ``m + t / (t + s_i^2) (a_i - m)``, with ``m`` the mean weighted by ``1 / (t + s_i^2)``: the posterior mean of a
    normal model with estimated parameters (Efron and Morris 1975). ``t`` is the estimate of Paule and Mandel (1982; see
    DerSimonian and Kacker 2007): the one at which ``sum_i (a_i - m)^2 / (t + s_i^2)`` is as large as expected, the
    number of units minus one; 0 if the sum is smaller than expected at ``t = 0``. Then all alphas become equal and all
    multipliers 1.

    Use it where alphas differ by little more than their standard errors (small layers, few units), so that noise in
    alpha does not become noise in learning rates. The estimate is conservative: the standard error of a fit assumes
    independent eigenvalues, but the eigenvalues of one matrix repel each other, and alpha varies less (a quarter as
    much for a Gaussian matrix).

    Assignments that stretch any difference to a fixed range (``Linear``, ``Rank``) are refused: shrinking would have no
    effect.

    Attributes:
        assignment: Maps the shrunk alphas to multipliers, such as ``Sigmoid()``.

    Raises:
        ArgumentError: The other assignment stretches any difference of alphas to a fixed range.

    Example:
        >>> from tempbalance.balance.assign import Sigmoid
        >>> units = [UnitFacts(alpha=alpha, stderr=0.3) for alpha in (2.9, 3.0, 3.2)]
        >>> [round(multiplier, 2) for multiplier in Sigmoid().assign(units)]
        [0.51, 0.83, 2.19]
        >>> Damped(Sigmoid()).assign(units)
        [1.0, 1.0, 1.0]
    """

    def __post_init__(self) -> None:
        check_type("assignment", self.assignment, Assignment)
        if self.assignment.stretches_to_range:
            name = type(self.assignment).__name__
            raise ArgumentError(f"{name} must not be damped: it undoes the shrinking; use Sigmoid, Sqrt or Log2")

    def assign(self, units: Sequence[UnitFacts]) -> list[float]:
        """Assign a multiplier to every unit by its shrunk alpha.

        Args:
            units: Facts about each unit.

        Returns:
            One multiplier per unit; 1 for a unit without an alpha.

        Raises:
            ArgumentError: The standard error of an alpha is not positive and finite.
        """
        fitted = [unit for unit in units if math.isfinite(unit.alpha)]
        if not all(0 < unit.stderr < math.inf for unit in fitted):
            raise ArgumentError("Damped needs a positive, finite standard error for every alpha")
        if len(fitted) < _PAIR:
            return self.assignment.assign(units)
        variance = _variance_between(fitted)
        mean = _mean(fitted, variance)
        return self.assignment.assign([unit._replace(alpha=_shrunk(unit, mean, variance)) for unit in units])


def _shrunk(unit: UnitFacts, mean: float, variance: float) -> float:
    if not math.isfinite(unit.alpha):
        return unit.alpha
    return mean + variance / (variance + unit.stderr**2) * (unit.alpha - mean)


def _mean(units: Sequence[UnitFacts], variance: float) -> float:
    weights = [1 / (variance + unit.stderr**2) for unit in units]
    return math.fsum(w * unit.alpha for w, unit in zip(weights, units, strict=True)) / math.fsum(weights)


def _variance_between(units: Sequence[UnitFacts]) -> float:
    """Return the estimate of Paule and Mandel, found by bisection."""
    centre = math.fsum(unit.alpha for unit in units) / len(units)
    low, high = 0.0, math.fsum((unit.alpha - centre) ** 2 for unit in units) / (len(units) - 1)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        mean = _mean(units, middle)
        spread = math.fsum((unit.alpha - mean) ** 2 / (middle + unit.stderr**2) for unit in units)
        low, high = (middle, high) if spread > len(units) - 1 else (low, middle)
    return low
