"""Find out whether a refresh has any effect, or follows noise only."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tempbalance.balance.history import UnitState
from tempbalance.balance.recipe import Recipe
from tempbalance.types import Status

__all__ = ["explain_no_effect"]

_Z95 = 1.6448536269514722  # 95 % quantile of the normal distribution


def explain_no_effect(units: Sequence[UnitState], recipe: Recipe, *, first: bool) -> str:
    """Return why the multipliers of a refresh change nothing or follow noise, and what to do; empty if they do not.

    Args:
        units: All units after the refresh.
        recipe: The recipe.
        first: Whether the weights have not been trained since the balancer was built: a recipe that follows the change
            of alpha or of the weights has multipliers of 1 then.

    Returns:
        One or more sentences.
    """
    fitted = [unit for unit in units if not math.isnan(unit.alpha)]
    random = sum(unit.status is Status.RANDOM for unit in fitted)
    if first and (recipe.spectrum_of == "update" or recipe.assignment.uses_first_alpha):
        return ""
    found = []
    if all(unit.multiplier == 1.0 for unit in units):
        reasons = "; ".join(dict.fromkeys(unit.reason for unit in units if unit.reason))
        why = "" if fitted or not reasons else f", because no {recipe.unit} has an alpha: {reasons}"
        found.append(f"all {len(units)} multipliers are 1{why}")
    if recipe.assignment.uses_alpha:
        if 2 * random > len(fitted):
            found.append(f"{random} of the {len(fitted)} {recipe.unit}s with an alpha look random (untrained)")
        if len(fitted) > 1 and _within_errors(fitted):
            found.append(f"the alphas of {len(fitted)} {recipe.unit}s differ by no more than their standard errors")
    if not found:
        return ""
    noise = ", and multipliers that are not 1 follow noise" if len({unit.multiplier for unit in units}) > 1 else ""
    return f"{recipe.name}: {'; '.join(found)}{noise}; {_advice(recipe, random)}"


def _advice(recipe: Recipe, random: int) -> str:
    if not recipe.assignment.uses_alpha:
        return "leave the balancer off, or use another recipe"
    ways = ["leave the balancer off", "use an assignment that shrinks noise (assign.Damped)"]
    ways += [] if recipe.windows is not None else ["measure with windows=FARMS()"]
    ways += ["start later, when the layers are trained (start=...)"] if random else []
    return ", ".join(ways) + f", or use unit={'block' if recipe.unit == 'layer' else 'layer'!r}"


def _within_errors(units: Sequence[UnitState]) -> bool:
    """Return whether equal true alphas explain the differences (Cochran's test of homogeneity at 5 %)."""
    if not all(unit.stderr > 0 for unit in units):
        return len({unit.alpha for unit in units}) == 1
    weights = [unit.stderr**-2 for unit in units]
    mean = math.fsum(w * unit.alpha for w, unit in zip(weights, units, strict=True)) / math.fsum(weights)
    spread = math.fsum(w * (unit.alpha - mean) ** 2 for w, unit in zip(weights, units, strict=True))
    degrees = len(units) - 1
    # The 95 % quantile of chi-squared by Wilson and Hilferty (1931), within 1 % from 1 degree of freedom on.
    part = 2 / (9 * degrees)
    return spread <= degrees * (1 - part + _Z95 * math.sqrt(part)) ** 3
