"""What all figures have in common. A figure is a dict of plotly's JSON, for pages and for ``plotly.graph_objects``."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable
from typing import Any, TypeAlias

from tempbalance.errors import require_extra

__all__ = ["ACCENT", "SOFT", "WARN", "Spec", "axis", "cut", "figure", "plain", "rounded", "to_plotly"]

Spec: TypeAlias = dict[str, Any]

# Middle tones: they can be read on white and on black.
ACCENT, WARN, SOFT = "#2f83d8", "#d0661c", "#84919e"
_COLORS = (ACCENT, "#e0812b", "#2fa05a", "#d6504f", "#9a73c9", "#a0756a", "#db6fb5", "#7f8b96", "#a9a52c", "#1fa9b8")
_DIGITS = 5
_LEGEND = 24  # names; more would fill the figure


def figure(traces: list[Spec], *, height: int, **layout: Any) -> Spec:
    """Return a figure: the legend is below it, and the tool bar above."""
    named = sum(trace.get("showlegend", True) for trace in traces)
    return {
        "data": traces,
        "layout": {
            "height": height,
            "colorway": _COLORS,
            "hovermode": "closest",
            "margin": {"l": 8, "r": 16, "t": 40, "b": 8},  # the axes add what their labels need
            "legend": {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0},
            "showlegend": named <= _LEGEND,
            **layout,
        },
    }


def axis(title: str, **more: Any) -> Spec:
    """Return an axis whose title and tick labels are whole at any width."""
    return {
        "title": {"text": title, "standoff": 8},
        "automargin": True,
        "ticklabeloverflow": "allow",
        "zeroline": False,
        **more,
    }


def plain(text: str) -> str:
    """Return a text that plotly shows as it is: it reads a few tags of HTML, and ``%{`` in templates."""
    return html.escape(text, quote=False).replace("%{", "%&#123;")


def cut(name: str, length: int) -> str:
    """Return the end of a long name: it says more than its beginning."""
    return name if len(name) <= length else f"…{name[1 - length :]}"


def rounded(values: Iterable[float]) -> list[float | None]:
    """Return numbers with the digits that a figure shows; None for those that are not finite."""
    return [float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None for value in values]


def to_plotly(spec: Spec) -> Any:
    """Return a figure as a ``plotly.graph_objects.Figure``; a MissingExtraError if plotly is not installed."""
    with require_extra("report", "figures in Python need plotly"):
        from plotly.graph_objects import Figure  # slow to import
    return Figure(spec)
