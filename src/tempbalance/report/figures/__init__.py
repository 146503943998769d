"""Figures of every result, as plotly's JSON for pages and as ``plotly.graph_objects`` figures in Python."""

from __future__ import annotations

from typing import Any

from tempbalance.report.figures.alpha_figures import alpha_figure, esd_figure
from tempbalance.report.figures.budget_figures import allocation_figure, pruned_alpha_figure, pruning_figure
from tempbalance.report.figures.comparison_figures import alpha_change_figure, weight_change_figure
from tempbalance.report.figures.figure_style import Spec, to_plotly
from tempbalance.report.figures.line_figures import history_figure, thinned, track_figure
from tempbalance.report.figures.study_figures import search_figure, study_figure

__all__ = [
    "Spec",
    "allocation_figure",
    "alpha_change_figure",
    "alpha_figure",
    "esd_figure",
    "history_figure",
    "plot",
    "pruned_alpha_figure",
    "pruning_figure",
    "search_figure",
    "study_figure",
    "thinned",
    "to_plotly",
    "track_figure",
    "weight_change_figure",
]


def plot(name: str, *subjects: Any) -> Any:
    """Return a figure, by the name of its function, as a ``plotly.graph_objects.Figure``."""
    return to_plotly(globals()[name](*subjects))
