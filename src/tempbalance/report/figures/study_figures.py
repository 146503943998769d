"""Studies and searches: gains of methods, multipliers of units."""

from __future__ import annotations

import math

from tempbalance.report.figures.figure_style import ACCENT, SOFT, Spec, axis, cut, figure, plain, rounded
from tempbalance.study import SearchResult
from tempbalance.study.method_names import line_parts
from tempbalance.study.search_result import best_first
from tempbalance.study.summary import Row, Summary

__all__ = ["search_figure", "study_figure"]

_LINE = 26  # characters
_SHORT = 8  # beside names of methods in a window of 420 pixels
_ROW = 64  # pixels
_FRAME = 130
_UNIT_ROW, _UNIT_FRAME = 26, 110  # of a search


def study_figure(summary: Summary) -> Spec:
    """Draw the gain of every method over the baseline: a dot per seed, the mean, and its 95 % interval."""
    rows = [row for row in summary.rows if row.gain is not None]
    places = range(len(rows) - 1, -1, -1)  # the first on top
    traces = [_seeds(row, place) for row, place in zip(rows, places, strict=True)]
    means = [(row.gain, place) for row, place in zip(rows, places, strict=True) if row.gain is not None]
    finite = [(gain, place) for gain, place in means if math.isfinite(gain.mean)]
    traces.append(
        {
            "type": "scatter",
            "mode": "markers",
            "x": rounded(gain.mean for gain, _ in finite),
            "y": [place + 0.1 for _, place in finite],
            "error_x": {
                "type": "data",
                "symmetric": False,
                "array": rounded(gain.high - gain.mean for gain, _ in finite),
                "arrayminus": rounded(gain.mean - gain.low for gain, _ in finite),
                "color": ACCENT,
                "thickness": 3,
                "width": 6,
            },
            "marker": {"size": 11, "symbol": "diamond", "color": ACCENT},
            "hovertemplate": "mean %{x:.4g}<extra></extra>",
        }
    )
    zero = {"type": "line", "x0": 0, "x1": 0, "yref": "paper", "y0": 0, "y1": 1, "line": {"color": SOFT, "width": 1.5}}
    return figure(
        traces,
        height=_FRAME + _ROW * max(len(rows), 1),
        showlegend=False,
        xaxis=axis("gain" if len(summary.baseline) > _SHORT else f"gain over {plain(summary.baseline)}"),
        yaxis=axis(
            "", tickvals=list(places), ticktext=[_wrapped(row.label) for row in rows], range=[-0.6, len(rows) - 0.4]
        ),
        shapes=[zero],
    )


def _seeds(row: Row, place: int) -> Spec:
    seeds = [(seed, gain) for seed, gain in row.gains.items() if math.isfinite(gain)]
    return {
        "type": "scatter",
        "mode": "markers",
        "x": rounded(gain for _, gain in seeds),
        "y": [round(place - 0.22 + 0.1 * math.sin(2.4 * i), 3) for i in range(len(seeds))],  # equal gains are visible
        "text": [f"seed {seed}" for seed, _ in seeds],
        "marker": {"size": 6, "color": SOFT, "opacity": 0.7},
        "hovertemplate": "%{text}: %{x:.4g}<extra></extra>",
    }


def _wrapped(name: str) -> str:
    """Return the name of a method in lines: its parts, as many as a line holds."""
    lines = [""]
    for part in line_parts(name):
        if lines[-1] and len(lines[-1] + part) > _LINE:
            lines.append("")
        lines[-1] += part
    return "<br>".join(plain(cut(line, _LINE)) for line in lines)


def search_figure(result: SearchResult) -> Spec:
    """Draw the multiplier of each unit in every complete trial, on a log axis; the best trial on top."""
    trials = best_first(result.trials, result.lower_is_better)[::-1]
    units = [*result.units][::-1]  # the first on top
    places = range(len(units))
    points = [(each, rank, place) for rank, each in enumerate(trials) for place in places]
    values = [each.multipliers.get(units[place], 1.0) for each, _, place in points]
    dots: Spec = {
        "type": "scatter",
        "mode": "markers",
        "x": rounded(values),
        "y": [place for _, _, place in points],
        "text": [f"{plain(units[place])} in {plain(each.origin)}, {each.mean:.4g}" for each, _, place in points],
        "marker": {
            "size": 7,
            "color": ACCENT,
            "opacity": [round(0.1 + 0.6 * (rank / len(trials)) ** 2, 3) for _, rank, _ in points],
        },
        "hovertemplate": "%{text}: %{x:.3g}<extra></extra>",
    }
    best: Spec = {
        "type": "scatter",
        "mode": "markers",
        "x": rounded(result.best.multipliers.get(unit, 1.0) for unit in units),
        "y": [*places],
        "marker": {"size": 12, "symbol": "diamond", "color": ACCENT},
        "hovertemplate": "best %{x:.3g}<extra></extra>",
    }
    return figure(
        [dots, best],
        height=_UNIT_FRAME + _UNIT_ROW * len(units),
        showlegend=False,
        xaxis=axis("multiplier", type="log", tickvals=[2.0**power for power in range(-10, 11)]),
        yaxis=axis("", tickvals=[*places], ticktext=[plain(cut(unit, _LINE)) for unit in units]),
    )
