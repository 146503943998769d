"""Print a comparison: the largest changes of alpha."""

from __future__ import annotations

import math

from rich.console import Console

from tempbalance.analysis import Comparison
from tempbalance.report.terminal_tables import count, number, plain_table, plain_text, print_names

__all__ = ["print_comparison"]

_ROWS = 12
_CLEAR = 2.0  # standard errors


def print_comparison(console: Console, comparison: Comparison) -> None:
    """Print the largest changes of alpha in standard errors, and the layers that are not in both."""
    console.print(plain_text(f"{comparison.before}  ->  {comparison.after}", "bold"), soft_wrap=True)
    console.print(
        f"{count(len(comparison.layers), 'common layer', 'common layers')}; "
        f"imbalance {number(comparison.imbalance_before)} -> {number(comparison.imbalance_after)}",
        highlight=False,
    )
    changed = [row for row in comparison.layers if math.isfinite(row.delta)]
    table = plain_table("layer", "before", "after", "change", "/ stderr", title="Largest changes of alpha")
    for row in sorted(changed, key=lambda row: -abs(row.z) if math.isfinite(row.z) else 0.0)[:_ROWS]:
        table.add_row(
            plain_text(row.name.removesuffix(".weight")),
            number(row.alpha_before),
            number(row.alpha_after),
            number(row.delta, "+.3f"),
            number(row.z, "+.1f"),
        )
    console.print(table)
    clear = sum(abs(row.z) > _CLEAR for row in changed)
    console.print(f"{clear} of {len(changed)} changed by more than {_CLEAR:g} standard errors", highlight=False)
    before = {row.name: math.isfinite(row.alpha_before) for row in comparison.layers}
    after = {row.name: math.isfinite(row.alpha_after) for row in comparison.layers}
    print_names(console, "with an alpha only before", [name for name in before if before[name] > after[name]])
    print_names(console, "with an alpha only after", [name for name in before if before[name] < after[name]])
    print_names(console, "only before", comparison.only_before)
    print_names(console, "only after", comparison.only_after)
