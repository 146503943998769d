"""Find out whether a refresh has any effect, or follows noise only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from tempbalance.analysis.change_findings import make_finding
from tempbalance.balance.history import Refresh, UnitState
from tempbalance.balance.recipe import Recipe
from tempbalance.metrics import imbalance
from tempbalance.types import Finding, Severity, Status

__all__ = ["explain_no_effect", "find_no_convergence", "find_no_decay", "find_no_effect"]

_Z95 = 1.6448536269514722  # 95 % quantile of the normal distribution


def find_no_effect(units: Sequence[UnitState], recipe: Recipe, *, first: bool) -> list[Finding]:
    """Return findings if the multipliers after a refresh change nothing or follow noise, with what to do.

    ``first``: whether the weights have not been trained since the balancer was built. A recipe that follows the change
    of alpha or of the weights has multipliers of 1 then.
    """
    fitted = [unit for unit in units if not math.isnan(unit.alpha)]
    random = [unit.name for unit in fitted if unit.status is Status.RANDOM]
    if first and (recipe.spectrum_of == "update" or recipe.assignment.uses_first_alpha):
        return []
    found: list[tuple[str, str, Sequence[str]]] = []
    if all(unit.multiplier == 1.0 for unit in units):
        reasons = "; ".join(dict.fromkeys(unit.reason for unit in units if unit.reason))
        why = "" if fitted or not reasons else f", because no {recipe.unit} has an alpha: {reasons}"
        found.append(("no_effect", f"all {len(units)} multipliers are 1{why}", ()))
    if recipe.assignment.uses_alpha:
        if 2 * len(random) > len(fitted):
            text = f"{len(random)} of the {len(fitted)} {recipe.unit}s with an alpha look random (untrained)"
            found.append(("untrained", text, random))
        if len(fitted) > 1 and _within_errors(fitted):
            text = f"the alphas of {len(fitted)} {recipe.unit}s differ by no more than their standard errors"
            found.append(("noise", text, ()))
    step = _advice(recipe, len(random))
    return [
        make_finding(kind, text, next_step=step, severity=Severity.WARNING, layers=layers)
        for kind, text, layers in found
    ]


def find_no_decay(groups: Sequence[Mapping[str, object]], recipe: Recipe) -> list[Finding]:
    """Return a finding if a recipe multiplies weight decays that are zero in all groups of the optimizer."""
    decay = "weight_decay"
    if decay not in recipe.keys or any(float(group[decay]) != 0 for group in groups):  # type: ignore[arg-type]
        return []
    also = "; only the learning rates are multiplied" if "lr" in recipe.keys else ""
    return [
        make_finding(
            "no_effect",
            f"the weight decay of the optimizer is 0, so its multipliers change nothing{also}",
            next_step="set weight_decay of the optimizer (TrainingArguments: weight_decay=...)",
            severity=Severity.WARNING,
        )
    ]


def explain_no_effect(findings: Sequence[Finding], units: Sequence[UnitState], recipe: Recipe) -> str:
    """Return the findings of ``find_no_effect`` as one text; empty without findings."""
    if not findings:
        return ""
    noise = ", and multipliers that are not 1 follow noise" if len({unit.multiplier for unit in units}) > 1 else ""
    return f"{recipe.name}: {'; '.join(finding.message for finding in findings)}{noise}; {findings[0].next_step}"


def find_no_convergence(history: Sequence[Refresh], units: Sequence[UnitState], recipe: Recipe) -> list[Finding]:
    """Return a note if the alphas of the units are no closer together than at the first refresh in the history."""
    before, now = history[0].imbalance if history else math.nan, imbalance(unit.alpha for unit in units)
    if not recipe.assignment.uses_alpha or not now >= before:
        return []
    return [
        make_finding(
            "no_convergence",
            f"the alphas did not come closer: imbalance {before:.3g} at step {history[0].step}, {now:.3g} now",
            next_step="compare with runs without a balancer (tempbalance study) before you rely on it",
            before=before,
            now=now,
        )
    ]


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
