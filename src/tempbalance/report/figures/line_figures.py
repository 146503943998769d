"""Values of units over the steps of training, in panels above each other: a balancer's history, a tracked run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tempbalance.analysis import Track
from tempbalance.balance import Refresh
from tempbalance.report.figures.figure_style import SOFT, Spec, axis, cut, figure, plain, rounded

__all__ = ["history_figure", "thinned", "track_figure"]

_PANEL = 270  # pixels
_FRAME = 110
_GAP = 0.06  # of the height
_POINTS = 400  # more than pixels would not be seen
_VALUES = 40_000  # of all units together
_NAME = 44  # characters
_TICKS = 5  # up to this many steps each have one


def thinned(history: Sequence[Refresh]) -> list[Refresh]:
    """Return the refreshes that are drawn: evenly spaced, with the first and the last."""
    units = max((len(refresh.units) for refresh in history), default=0)
    points = max(2, min(_POINTS, _VALUES // max(units, 1)))
    last = len(history) - 1
    if last < points:
        return list(history)
    return [history[round(i * last / (points - 1))] for i in range(points)]


def history_figure(history: Sequence[Refresh]) -> Spec:
    """Draw the alpha and the multiplier of each unit over the steps; a long history is thinned."""
    shown = thinned(history)
    panels = _values([refresh.units for refresh in shown], "alpha", "multiplier")
    spec = _lines("step", [refresh.step for refresh in shown], panels)
    neutral = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "yref": "y2", "y0": 1, "y1": 1}
    spec["layout"]["shapes"] = [{**neutral, "line": {"color": SOFT, "dash": "dot", "width": 1.5}}]
    for trace in spec["data"]:
        if trace["yaxis"] == "y2":
            trace["line"]["shape"] = "hv"
    return spec


def track_figure(tracked: Track) -> Spec:
    """Draw alpha, drift and stable rank of each layer over the checkpoints."""
    known = all(checkpoint.step is not None for checkpoint in tracked.checkpoints)
    panels = _values([checkpoint.layers for checkpoint in tracked.checkpoints], "alpha", "drift", "stable_rank")
    return _lines("step" if known else "checkpoint", tracked.steps, panels)


def _values(steps: Sequence[Sequence[Any]], *attributes: str) -> dict[str, dict[str, list[float]]]:
    """Return the attributes of units or layers over the steps, by attribute and name; NaN where one is missing."""
    states = [{each.name: each for each in step} for step in steps]
    names = list(dict.fromkeys(name for state in states for name in state))
    return {
        attribute.replace("_", " "): {
            name: [getattr(state[name], attribute) if name in state else math.nan for state in states] for name in names
        }
        for attribute in attributes
    }


def _lines(title: str, steps: Sequence[int], panels: Mapping[str, Mapping[str, Sequence[float]]]) -> Spec:
    """Draw a line per name in each panel; a click on a name in the legend hides its lines."""
    traces: list[Spec] = []
    axes: dict[str, Spec] = {}
    named: set[str] = set()
    for number, (panel, lines) in enumerate(panels.items()):
        suffix = str(number + 1) if number else ""
        bottom = 1 - (number + 1) / len(panels)
        gap = _GAP if number + 1 < len(panels) else 0
        domain = [round(bottom + gap, 4), round(1 - number / len(panels), 4)]
        axes[f"yaxis{suffix}"] = axis(panel, domain=domain)
        for index, (name, values) in enumerate(lines.items()):
            hue = round(215 * (1 - index / max(len(lines) - 1, 1)))  # blue at the input, red at the output
            y = rounded(values)
            if all(value is None for value in y):
                continue
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines" if len(steps) > 1 else "markers",
                    "name": plain(cut(name, _NAME)),
                    "x": list(steps),
                    "y": y,
                    "yaxis": f"y{suffix}",
                    "line": {"color": f"hsl({hue}, 65%, 52%)", "width": 2},
                    "legendgroup": str(index),
                    "showlegend": name not in named,
                    "hovertemplate": f"{plain(name)}<br>{title} %{{x}}: {panel} %{{y:.4g}}<extra></extra>",
                }
            )
            named.add(name)
    height = _FRAME + _PANEL * len(panels)
    whole = {} if len(steps) > _TICKS else {"tickvals": list(steps)}
    return figure(traces, height=height, xaxis=axis(title, anchor=f"y{len(panels)}", **whole), **axes)
