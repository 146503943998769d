"""A comparison as a table on the terminal and as one HTML page."""

from __future__ import annotations

import math
from collections.abc import Callable

from rich.console import Console

from tempbalance.analysis import Comparison, LayerDelta
from tempbalance.report.figures import alpha_change_figure, weight_change_figure
from tempbalance.report.page import findings_html, fragment, model_name, render_page, table_html
from tempbalance.report.page import number as cell
from tempbalance.report.terminal import count, number, plain_table, plain_text, print_findings, print_names, print_table

__all__ = ["print_comparison", "render_comparison"]

_ROWS = 12
_COLUMNS: dict[str, Callable[[LayerDelta], str]] = {
    "layer": lambda row: row.name,
    "shape": lambda row: "x".join(map(str, row.shape)),
    "relative change": lambda row: cell(row.relative_change, ".5g"),
    "stable rank of dW": lambda row: cell(row.update_stable_rank),
    "effective rank of dW": lambda row: cell(row.update_effective_rank, ".1f"),
    "alpha before": lambda row: cell(row.alpha_before, ".3f"),
    "after": lambda row: cell(row.alpha_after, ".3f"),
    "change": lambda row: cell(row.delta, ".3f"),
    "change / stderr": lambda row: cell(row.z, ".1f"),
}


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
    print_table(console, table)
    before = {row.name: math.isfinite(row.alpha_before) for row in comparison.layers}
    after = {row.name: math.isfinite(row.alpha_after) for row in comparison.layers}
    print_names(console, "with an alpha only before", [name for name in before if before[name] > after[name]])
    print_names(console, "with an alpha only after", [name for name in before if before[name] < after[name]])


def _size(row: LayerDelta) -> list[float]:
    """Return a key that sorts the largest changes first: of the weights, then of alpha."""
    return [-abs(value) if math.isfinite(value) else 1.0 for value in (row.relative_change, row.z)]


def render_comparison(comparison: Comparison) -> str:
    """Return a comparison as one HTML page, with its style, script, plotly.js and data; it loads no other file."""
    before, after = model_name(comparison.before), model_name(comparison.after)
    rows = comparison.layers
    compared = sum(math.isfinite(row.delta) for row in rows)
    moved = any(math.isfinite(row.relative_change) for row in rows)
    figures = {"alpha": alpha_change_figure(comparison)}
    return render_page(
        "comparison",
        kicker="Changes of the weight matrices, layer by layer",
        title=f"{before} → {after}",
        source=f"{comparison.before} → {comparison.after}",
        figures=figures | ({"weights": weight_change_figure(comparison)} if moved else {}),
        findings=findings_html(comparison.findings),
        weights=fragment("weight_changes") if moved else "",
        facts=f"Bars are standard errors. Not drawn: {len(rows) - compared} of {len(rows)} without an alpha in both.",
        table=table_html(
            [*_COLUMNS], ([text(row) for text in _COLUMNS.values()] for row in rows), text=("layer", "shape")
        ),
        settings={"before": comparison.before, "after": comparison.after, **comparison.settings},
    )
