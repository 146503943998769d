"""Multipliers of a search, unit by unit."""

from __future__ import annotations

from tempbalance.report.figures.figure_style import ACCENT, Spec, axis, cut, figure, plain, rounded
from tempbalance.study import SearchResult
from tempbalance.study.search_result import best_first

__all__ = ["search_figure"]

_NAME = 26  # characters
_ROW, _FRAME = 26, 110  # pixels


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
        height=_FRAME + _ROW * len(units),
        showlegend=False,
        xaxis=axis("multiplier", type="log", tickvals=[2.0**power for power in range(-10, 11)]),
        yaxis=axis("", tickvals=[*places], ticktext=[plain(cut(unit, _NAME)) for unit in units]),
    )
