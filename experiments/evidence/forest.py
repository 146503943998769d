"""Numbers with intervals, one below the other, as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from evidence.figure import ticks

NAMES, WIDTH, ROW, TOP, MARGIN = 340, 400, 22, 12, 24  # pixels
COLOURS = ("#0072b2", "#d55e00")


class Point(NamedTuple):
    """A number with its interval.

    Attributes:
        label: What it is of.
        series: Which of the colours.
        mean: The number.
        low: Lower end of its interval.
        high: Upper end.
    """

    label: str
    series: int
    mean: float
    low: float
    high: float


def forest(points: Sequence[Point], axis: str, series: Sequence[str]) -> str:
    """Draw.

    Args:
        points: The numbers.
        axis: What they are.
        series: What the colours stand for.

    Returns:
        SVG on white.
    """
    low = min([0.0, *(point.low for point in points)])
    high = max([0.0, *(point.high for point in points)])
    low, high = low - 0.05 * (high - low), high + 0.05 * (high - low) or 1.0
    bottom = TOP + ROW * max(1, len(points))
    width, height = NAMES + WIDTH + MARGIN, bottom + 48 + 18 * len(series)

    def x(value: float) -> float:
        """Where a number lies."""
        return NAMES + WIDTH * (value - low) / (high - low)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="13">',
        f"<title>{escape(axis)}</title>",
        '<rect width="100%" height="100%" fill="white"/>',
        f'<rect x="{NAMES}" y="{TOP}" width="{WIDTH}" height="{bottom - TOP}" fill="none" stroke="#999"/>',
        f'<path d="M{x(0):.1f} {TOP}V{bottom}" stroke="#333" stroke-dasharray="4 3"/>',
        f'<text x="{NAMES + WIDTH / 2}" y="{bottom + 38}" text-anchor="middle">{escape(axis)}</text>',
    ]
    for tick in ticks(low, high):
        parts.append(f'<text x="{x(tick):.1f}" y="{bottom + 17}" text-anchor="middle">{tick:g}</text>')
    for row, point in enumerate(points):
        y, colour = TOP + ROW * row + ROW / 2, COLOURS[point.series]
        parts.append(f'<text x="{NAMES - 8}" y="{y + 4}" text-anchor="end">{escape(point.label)}</text>')
        parts.append(f'<path d="M{x(point.low):.1f} {y}H{x(point.high):.1f}" stroke="{colour}" stroke-width="1.6"/>')
        parts.append(f'<circle cx="{x(point.mean):.1f}" cy="{y}" r="3.5" fill="{colour}"/>')
    for place, text in enumerate(series):
        y = bottom + 58 + 18 * place
        parts.append(f'<circle cx="{NAMES + 6}" cy="{y - 4}" r="3.5" fill="{COLOURS[place]}"/>')
        parts.append(f'<text x="{NAMES + 18}" y="{y}">{escape(text)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
