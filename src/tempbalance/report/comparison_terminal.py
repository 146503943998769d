"""Print a comparison: the findings, and the layers that changed most."""

from __future__ import annotations

import math

from rich.console import Console

from tempbalance.analysis import Comparison, LayerDelta
from tempbalance.report.findings_text import print_findings
from tempbalance.report.terminal_tables import count, number, plain_table, plain_text, print_names

__all__ = ["print_comparison"]

_ROWS = 12


def print_comparison(console: Console, comparison: Comparison) -> None:
    """Print the findings, the layers that changed most, and those that have an alpha on one side only."""
    console.print(plain_text(f"{comparison.before}  ->  {comparison.after}", "bold"), soft_wrap=True)
    console.print(
        f"{count(len(comparison.layers), 'common layer', 'common layers')}; "
        f"imbalance {number(comparison.imbalance_before)} -> {number(comparison.imbalance_after)}",
        highlight=False,
    )
    print_findings(console, comparison.findings)
    weights = any(row.identical is not None for row in comparison.layers)
    columns = ("||dW||/||W||", "rank of dW") if weights else ()
    title = "Largest changes of the weights" if weights else "Largest changes of alpha"
    table = plain_table("layer", *columns, "alpha", "after", "change", "/ stderr", title=title)
    for row in sorted(comparison.layers, key=_size)[:_ROWS]:
        own = (number(row.relative_change, ".3%"), number(row.update_effective_rank, ".1f")) if weights else ()
        table.add_row(
            plain_text(row.name.removesuffix(".weight")),
            *own,
            number(row.alpha_before),
            number(row.alpha_after),
            number(row.delta, "+.3f"),
            number(row.z, "+.1f"),
        )
    console.print(table)
    before = {row.name: math.isfinite(row.alpha_before) for row in comparison.layers}
    after = {row.name: math.isfinite(row.alpha_after) for row in comparison.layers}
    print_names(console, "with an alpha only before", [name for name in before if before[name] > after[name]])
    print_names(console, "with an alpha only after", [name for name in before if before[name] < after[name]])


def _size(row: LayerDelta) -> list[float]:
    """Return a key that sorts the largest changes first: of the weights, then of alpha."""
    return [-abs(value) if math.isfinite(value) else 1.0 for value in (row.relative_change, row.z)]
