"""Findings of an allocation: reasons to doubt it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import fmean, pstdev

from tempbalance.analysis.change_findings import comma_names, make_finding
from tempbalance.compress.layer_allocation import UnitAllocation
from tempbalance.types import Finding, Severity

__all__ = ["find_in_units"]

_ALMOST_ONE = 1 - 1e-9


def find_in_units(units: Sequence[UnitAllocation], quantity: str, method: str) -> Iterator[Finding]:
    """Find out whether an allocation is likely to harm: see docs/results/pruning.md."""
    emptied = [unit.name for unit in units if quantity == "sparsity" and unit.value > _ALMOST_ONE]
    if emptied:
        yield make_finding(
            "emptied",
            f"the allocation sets all weights of {comma_names(emptied)} to zero",
            next_step="use a smaller epsilon",
            severity=Severity.WARNING,
            layers=emptied,
        )
    tracked = [unit for unit in units if math.isfinite(unit.alpha)]
    if not method.lower().startswith("alpha") or len(tracked) < 2:  # noqa: PLR2004
        return
    spread = pstdev(unit.alpha for unit in tracked)
    error = math.sqrt(fmean(unit.stderr**2 for unit in tracked))
    if 0 < spread < error:
        yield make_finding(
            "noise",
            f"the alphas differ by no more than their standard errors (standard deviation {spread:.2g}, mean standard "
            f"error {error:.2g}), so the allocation follows noise",
            next_step="compare with a uniform allocation"
            + (" (method='uniform', --allocation uniform)" if quantity == "sparsity" else ""),
            severity=Severity.WARNING,
            spread=spread,
            error=error,
        )
