"""The figures of the pages: gains by amount of data, and numbers with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from claims import Claim, Experiment
from gains import Gain, Results, brief, control_of
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from plotting import COLOURS, render

ABREAST = 3  # panels in a row
BEYOND = 3  # a control may extend the axis to this many times the reach of the methods
CONTROL_COLOURS = ("#555555", "#888888", "#aaaaaa", "#555555", "#888888")
CONTROL_STYLES: dict[str, Any] = {  # linestyle, marker
    "uniform": ("--", "s"),
    "inverted": (":", "v"),
    "shuffled": ("-.", "D"),
    "untrained": ((0, (1, 3)), "o"),
}


class _Line(NamedTuple):
    """A method in a figure of gains."""

    method: str
    control: str | None
    style: dict[str, Any]


def gain_figure(experiment: Experiment, claim: Claim, results: Mapping[str, Results]) -> str:
    """Draw the gain over the baseline against the amount of data: a panel per data set, a line per method.

    Args:
        experiment: The experiment.
        claim: One of its claims.
        results: Results of the studies that have been run, by name.

    Returns:
        SVG.
    """
    panels = {title: [results[name] for name in names if name in results] for title, names in claim.panels.items()}
    lines = _lines(claim, [found for panel in panels.values() for found in panel])
    columns = min(len(panels), ABREAST)
    rows = -(-len(panels) // ABREAST)
    baseline = brief(claim.baseline)

    def draw(figure: Figure) -> None:
        every = figure.subplots(rows, columns, squeeze=False)
        for axes, (title, found) in zip(every.flat, panels.items(), strict=False):
            _draw_panel(axes, experiment, claim, found, lines)
            axes.set_title(title, fontweight="bold", fontsize="medium")
            axes.set_xlabel(experiment.size[1])
        for axes in every.flat[len(panels) :]:
            axes.set_axis_off()
        for axes in every[:, 0]:
            axes.set_ylabel(f"gain over {baseline}, {experiment.metric.unit}")
        handles = [every.flat[0].plot([], [], label=brief(line.method), **line.style)[0] for line in lines]
        if handles:
            figure.legend(handles=handles, loc="outside lower left", fontsize="small", frameon=False, handlelength=3.5)

    size = (max(4.8, 3.6 * columns), 2.9 * rows + 0.18 * len(lines) + 0.1)
    title = f"{claim.sentence} Gain over {baseline}, by {experiment.size[1]}"
    return render(draw, *size, name=f"{experiment.name}-{claim.name}", title=title)


def _lines(claim: Claim, results: Sequence[Results]) -> list[_Line]:
    """The claim's method, further methods to show, and the controls that were run in any study."""
    controls = {kind: control for found in results for kind, control in found.controls(claim.method).items()}
    drawn: list[_Line] = []
    for name in dict.fromkeys((claim.method, *claim.also, *controls.values())):
        if any(found.find(name) for found in results):
            kind = control_of(name)
            place = sum((line.control is None) == (kind is None) for line in drawn)
            colours = COLOURS if kind is None else CONTROL_COLOURS
            colour = colours[place % len(colours)]
            linestyle, marker = ("-", "o") if kind is None else CONTROL_STYLES[kind]
            style = {"color": colour, "linestyle": linestyle, "marker": marker, "markersize": 4.5, "linewidth": 1.2}
            drawn.append(_Line(name, kind, style | {"markerfacecolor": colour if kind is None else "white"}))
    return drawn


def _draw_panel(
    axes: Axes, experiment: Experiment, claim: Claim, results: Sequence[Results], lines: Sequence[_Line]
) -> None:
    """Draw the lines of a panel, with an interval at each mean, and an arrow where a mean is beyond the axis."""
    axes.axhline(0, color="#333333", linewidth=0.8, linestyle="--")
    if not results:
        axes.text(0.5, 0.6, "not run yet", color="#777777", ha="center", transform=axes.transAxes)
        axes.set(xticks=[], yticks=[])
        return
    gains = [_gains(experiment, claim, results, line.method) for line in lines]
    low, high = _limits(gains, [line.control is None for line in lines])
    sizes = sorted({float(found.study.parameters[experiment.size[0]]) for found in results})
    ends = sizes[0] / 1.6, sizes[-1] * 1.6
    axes.set_xscale("log")
    for place, (line, found) in enumerate(zip(lines, gains, strict=True)):
        shift = (ends[1] / ends[0]) ** (0.025 * (place - (len(lines) - 1) / 2))
        x, y = [shift * size for size in found], [gain.mean for gain in found.values()]
        spread = [[g.mean - g.low for g in found.values()], [g.high - g.mean for g in found.values()]]
        axes.errorbar(x, y, yerr=spread, elinewidth=1.2, **line.style)
        for left, mean in zip(x, y, strict=True):
            if not low <= mean <= high:
                edge, arrow, align = (low, "\u25bc", "bottom") if mean < low else (high, "\u25b2", "top")
                text = f"{arrow}{mean:+.3g}"
                axes.text(left, edge, text, color=line.style["color"], ha="center", va=align, fontsize="small")
    axes.set(ylim=(low, high), xlim=ends)
    axes.minorticks_off()
    axes.set_xticks(sizes, [f"{size:g}" for size in sizes])


def _gains(experiment: Experiment, claim: Claim, results: Sequence[Results], name: str) -> dict[float, Gain]:
    """The gains of a method by amount of data."""
    found: dict[float, Gain] = {}
    for each in results:
        method, baseline = each.find(name), each.find(claim.baseline)
        gain = each.gain(method, baseline) if method and baseline else None
        if gain is not None and math.isfinite(gain.mean):
            found[float(each.study.parameters[experiment.size[0]])] = gain
    return dict(sorted(found.items()))


def _limits(gains: Sequence[Mapping[float, Gain]], is_method: Sequence[bool]) -> tuple[float, float]:
    """The ends of the axis: all intervals of methods, and those of controls within ``BEYOND`` times their reach."""
    every = [gain for found in gains for gain in found.values()]
    methods = [gain for found, own in zip(gains, is_method, strict=True) if own for gain in found.values()]
    reach = BEYOND * (max((abs(end) for gain in methods for end in (gain.low, gain.high)), default=0.0) or 1.0)
    low = min(0.0, max(min((gain.low for gain in every), default=-1.0), -reach))
    high = max(0.0, min(max((gain.high for gain in every), default=1.0), reach))
    room = 0.06 * (high - low) or 1.0
    return low - room, high + room


class Point(NamedTuple):
    """A number with its interval.

    Attributes:
        label: Its label.
        series: Index of its series.
        mean: The number.
        low: Lower end of its interval.
        high: Upper end.
    """

    label: str
    series: int
    mean: float
    low: float
    high: float


def forest_figure(points: Sequence[Point], axis: str, series: Sequence[str]) -> str:
    """Draw numbers with intervals, one per row.

    Args:
        points: The numbers.
        axis: Label of the axis.
        series: Names of the series.

    Returns:
        SVG.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.axvline(0, color="#333333", linewidth=0.8, linestyle="--")
        for place, name in enumerate(series):
            rows = [(row, point) for row, point in enumerate(points) if point.series == place]
            spread = [[p.mean - p.low for _, p in rows], [p.high - p.mean for _, p in rows]]
            style = {"fmt": "o", "markersize": 4, "elinewidth": 1.2, "color": COLOURS[place], "label": name}
            axes.errorbar([p.mean for _, p in rows], [row for row, _ in rows], xerr=spread, **style)
        axes.set_yticks(range(len(points)), [point.label for point in points])
        axes.set(xlabel=axis, ylim=(len(points) - 0.4, -0.6))
        figure.legend(loc="outside lower left", fontsize="small", frameon=False)

    return render(draw, 7.2, 1.2 + 0.2 * len(points), name=axis, title=axis)
