"""Values of layers against their depth: one trace per type of layer."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tempbalance.report.figures.figure_style import Spec, axis, cut, figure, plain, rounded

__all__ = ["DepthPoint", "depth_figure", "place_of", "type_of"]

_HEIGHT = 480
_TICKS = 16
_LABEL = 18  # characters
_TITLE = 32  # in a window of 420 pixels, beside long labels
_FLAT = 45  # characters of all labels, beside each other in a narrow window
_NUMBER = re.compile(r"(?<![^.])\d+(?![^.:])")
_SYMBOLS = 30
_EMPTY = {"text": "no layer has a value", "showarrow": False, "xref": "paper", "yref": "paper", "x": 0.5, "y": 0.5}


@dataclass(frozen=True, slots=True, kw_only=True)
class DepthPoint:
    """A layer in a figure."""

    place: str  # from input to output: its block, or its name outside of blocks
    type: str  # in the legend
    value: float  # a layer without one is not drawn
    error: float = math.nan  # standard error
    text: tuple[str, ...]  # lines that are shown when the mouse is over it
    layer: int  # number in the table


def place_of(name: str, block: str | None) -> str:
    """Return the place of a layer: its block, or its name outside of blocks."""
    return name.removesuffix(".weight") if block is None else block


def type_of(name: str, block: str | None, kind: str = "") -> str:
    """Return the name of a layer within its block, with stars for numbers; its kind outside of blocks."""
    if block is None or not name.startswith(f"{block}."):
        return f"outside blocks ({kind})" if kind else "outside blocks"
    return _NUMBER.sub("*", name.removeprefix(f"{block}.").removesuffix(".weight"))


def depth_figure(points: Sequence[DepthPoint], blocks: Collection[str], title: str) -> Spec:
    """Draw points against their places, in the order of the model."""
    position = {place: index for index, place in enumerate(dict.fromkeys(point.place for point in points))}
    drawn = [point for point in points if math.isfinite(point.value)]
    types = list(dict.fromkeys(point.type for point in drawn))
    spread = min(0.6, 0.08 * len(types))
    traces = []
    for index, name in enumerate(types):
        same = [point for point in drawn if point.type == name]
        shift = (index / (len(types) - 1) - 0.5) * spread if len(types) > 1 else 0.0
        trace = {
            "type": "scatter",
            "mode": "markers",
            "name": plain(cut(name, 2 * _LABEL)),
            "showlegend": True,
            "x": rounded(position[point.place] + shift for point in same),
            "y": rounded(point.value for point in same),
            "marker": {"size": 8, "symbol": index % _SYMBOLS},
            "text": ["<br>".join(map(plain, point.text)) for point in same],
            "customdata": [point.layer for point in same],
            "hovertemplate": "%{text}<extra></extra>",
        }
        errors = rounded(point.error for point in same)
        if any(error is not None for error in errors):
            trace["error_y"] = {"type": "data", "array": errors, "thickness": 1, "width": 2}
        traces.append(trace)
    empty = {"annotations": [_EMPTY]} if not traces else {}
    y = axis(title, showticklabels=bool(traces))
    return figure(traces, height=_HEIGHT, xaxis=_depth_axis(list(position), blocks), yaxis=y, **empty)


def _depth_axis(places: Sequence[str], blocks: Collection[str]) -> Spec:
    labels, title = _labels(places, blocks)
    step = math.ceil(len(places) / _TICKS)
    shown = range(0, len(places), step or 1)
    texts = [plain(labels[index]) for index in shown]
    flat = len(texts) * max(map(len, texts), default=0) <= _FLAT
    ticks = {"tickvals": list(shown), "ticktext": texts, "tickangle": 0 if flat else -40}
    return axis(title, range=[-0.6, len(places) - 0.4], **ticks)


def _labels(places: Sequence[str], blocks: Collection[str]) -> tuple[list[str], str]:
    """Return short labels of places, and the title of the axis: what is the same in the names of all blocks."""
    parts = {place: place.split(".") for place in places if place in blocks}
    titles, short = ["layer, input to output"], {}
    if parts:
        titles = ["block, input to output"]
        if len(parts) > 1 and len({len(each) for each in parts.values()}) == 1:
            columns = list(zip(*parts.values(), strict=True))
            differ = [len(set(column)) > 1 for column in columns]
            short = {
                place: ".".join(part for part, other in zip(each, differ, strict=True) if other)
                for place, each in parts.items()
            }
            name = ".".join("*" if other else column[0] for column, other in zip(columns, differ, strict=True))
            titles = [f"{plain(name)}, input to output", plain(name), *titles]
    title = next((each for each in titles if len(each) <= _TITLE), titles[-1])
    return [cut(short.get(place, place), _LABEL) for place in places], title
