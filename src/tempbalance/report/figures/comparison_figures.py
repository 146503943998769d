"""Figures of a comparison: how far each weight moved, and how alpha changed, by depth."""

from __future__ import annotations

from collections.abc import Callable

from tempbalance.analysis import Comparison, LayerDelta
from tempbalance.report.figures.depth_figure import DepthPoint, depth_figure, place_of, type_of
from tempbalance.report.figures.figure_style import Spec

__all__ = ["alpha_change_figure", "weight_change_figure"]

_VALUES = 4  # singular values in the text of a point


def weight_change_figure(comparison: Comparison) -> Spec:
    """Draw the relative change of each weight against depth."""

    def text(row: LayerDelta) -> str:
        if row.identical:
            return "identical"
        values = ", ".join(f"{value:.3g}" for value in row.update_singular_values[:_VALUES])
        return f"relative change {row.relative_change:.4g}; singular values of dW {values}"

    return _by_depth(comparison, "relative change ‖dW‖/‖W‖", lambda row: row.relative_change, text)


def alpha_change_figure(comparison: Comparison) -> Spec:
    """Draw the change of alpha of each layer, with its standard error, against depth."""
    return _by_depth(
        comparison,
        "change of alpha",
        lambda row: row.delta,
        lambda row: f"alpha {row.alpha_before:.2f} to {row.alpha_after:.2f}: {row.delta:+.3f} ± {row.stderr:.3f}",
        lambda row: row.stderr,
    )


def _by_depth(
    comparison: Comparison,
    title: str,
    value: Callable[[LayerDelta], float],
    text: Callable[[LayerDelta], str],
    error: Callable[[LayerDelta], float] = lambda _: float("nan"),
) -> Spec:
    points = [
        DepthPoint(
            place=place_of(row.name, row.block),
            type=type_of(row.name, row.block),
            value=value(row),
            error=error(row),
            text=(row.name, "x".join(map(str, row.shape)), text(row)),
            layer=index,
        )
        for index, row in enumerate(comparison.layers)
    ]
    blocks = {row.block for row in comparison.layers if row.block is not None}
    return depth_figure(points, blocks, title)
