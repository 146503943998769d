"""The HTML report of a comparison."""

from __future__ import annotations

import math
from pathlib import PurePath
from typing import Any

from tempbalance.analysis import Comparison, LayerDelta
from tempbalance.report.findings_text import findings_data
from tempbalance.report.page import render_page

__all__ = ["render_comparison", "short_source"]

_DIGITS = 5


def render_comparison(comparison: Comparison) -> str:
    """Render a comparison as one HTML page.

    Args:
        comparison: The comparison.

    Returns:
        HTML with its style, script, plotly.js and data; the page loads no other file.
    """
    before, after = short_source(comparison.before), short_source(comparison.after)
    return render_page(
        "comparison",
        title=f"{before} and {after}",
        data={
            "findings": findings_data(comparison.findings),
            "settings": {
                "before": comparison.before,
                "after": comparison.after,
                **{key: str(value) for key, value in comparison.settings.items()},
            },
            "layers": [_row(row) for row in comparison.layers],
        },
        before=before,
        after=after,
    )


def short_source(source: str) -> str:
    """Return the last part of a path, or a name as it is."""
    return PurePath(source).name or source


def _row(row: LayerDelta) -> dict[str, Any]:
    numbers = {
        "relative": row.relative_change,
        "stableRank": row.update_stable_rank,
        "effectiveRank": row.update_effective_rank,
        "before": row.alpha_before,
        "after": row.alpha_after,
        "delta": row.delta,
        "stderr": row.stderr,
        "z": row.z,
    }
    inside = row.block is not None and row.name.startswith(f"{row.block}.")
    return {
        "name": row.name,
        "place": row.block or row.name,
        "type": row.name.removeprefix(f"{row.block}.").removesuffix(".weight") if inside else "outside blocks",
        "shape": "x".join(map(str, row.shape)),
        "identical": row.identical,
        "values": [_number(value) for value in row.update_singular_values],
        **{key: _number(value) for key, value in numbers.items()},
    }


def _number(value: float) -> float | None:
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
