"""The HTML report of a comparison."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tempbalance.analysis import Comparison, LayerDelta
from tempbalance.report.figures import alpha_change_figure, weight_change_figure
from tempbalance.report.page import (
    Html,
    findings_html,
    fragment,
    model_name,
    number,
    render_page,
    table_html,
)

__all__ = ["render_comparison"]


def render_comparison(comparison: Comparison) -> str:
    """Render a comparison as one HTML page.

    Args:
        comparison: The comparison.

    Returns:
        HTML with its style, script, plotly.js and data; the page loads no other file.
    """
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
        table=_table(rows),
        settings={"before": comparison.before, "after": comparison.after, **comparison.settings},
    )


def _table(layers: Sequence[LayerDelta]) -> Html:
    columns = (
        *("layer", "shape", "relative change", "stable rank of dW", "effective rank of dW"),
        *("alpha before", "after", "change", "change / stderr"),
    )
    rows = (
        (
            row.name,
            "x".join(map(str, row.shape)),
            number(row.relative_change, ".5g"),
            number(row.update_stable_rank),
            number(row.update_effective_rank, ".1f"),
            number(row.alpha_before, ".3f"),
            number(row.alpha_after, ".3f"),
            number(row.delta, ".3f"),
            number(row.z, ".1f"),
        )
        for row in layers
    )
    return table_html(columns, rows, text=("layer", "shape"))
