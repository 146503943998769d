"""Gain over the baseline against the amount of data, as SVG: a panel per data set, a line per method, intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from evidence.compare import Compared, Gain, brief, control_of
from evidence.study import Claim, Study

WIDTH, HEIGHT, LEFT, GAP, TOP, BOTTOM = 330, 260, 64, 64, 40, 50  # pixels
LEGEND_ROW, MARKER, APART = 18, 3.5, 8
ABREAST = 3  # panels in a row
BEYOND = 3  # times the reach of the methods: what a control may have of the axis
METHODS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9")
CONTROLS = ("#555555", "#888888", "#aaaaaa", "#555555", "#888888")
DASHES = {"uniform": "6 3", "inverted": "2 3", "shuffled": "8 3 2 3", "untrained": "1 4"}
OUTLINES = {  # hollow, around a point
    "uniform": "m-3.2 -3.2h6.4v6.4h-6.4z",
    "inverted": "m-4 -3h8l-4 7z",
    "shuffled": "m0 -4.6l4.6 4.6l-4.6 4.6l-4.6 -4.6z",
    "untrained": f"m-{MARKER} 0a{MARKER} {MARKER} 0 1 0 {2 * MARKER} 0a{MARKER} {MARKER} 0 1 0 -{2 * MARKER} 0z",
}


class Line(NamedTuple):
    """A method in a figure."""

    method: str
    colour: str
    control: str | None


def figure(study: Study, claim: Claim, contests: Mapping[str, Compared]) -> str:
    """Draw a claim.

    Args:
        study: The study.
        claim: Which of its claims.
        contests: What has been run, by name.

    Returns:
        SVG on white.
    """
    panels = {title: [contests[name] for name in names if name in contests] for title, names in claim.panels.items()}
    lines = _lines(claim, [compared for found in panels.values() for compared in found])
    width = LEFT + min(len(panels), ABREAST) * (WIDTH + GAP)
    legend = -(-len(panels) // ABREAST) * (TOP + HEIGHT + BOTTOM) + 12
    baseline = escape(brief(claim.baseline))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {legend + LEGEND_ROW * len(lines)}" '
        'font-family="sans-serif" font-size="13">',
        f"<title>{escape(claim.sentence)} Gain over {baseline}, by {escape(study.size[1])}</title>",
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for place, (title, found) in enumerate(panels.items()):
        row, column = divmod(place, ABREAST)
        left, top = LEFT + column * (WIDTH + GAP), TOP + row * (TOP + HEIGHT + BOTTOM)
        if not column:
            parts.append(
                f'<text transform="translate(16 {top + HEIGHT / 2}) rotate(-90)" text-anchor="middle">'
                f"gain over {baseline}, {escape(study.metric.unit)}</text>"
            )
        parts += _Panel(study, claim, found, lines, left, top).draw(title)
    for row, line in enumerate(lines):
        y = legend + LEGEND_ROW * row
        parts.append(f'<path d="M{LEFT} {y}h36" {_stroke(line)}/>')
        parts.append(_marker(line, LEFT + 18, y))
        parts.append(f'<text x="{LEFT + 46}" y="{y + 4}">{escape(brief(line.method))}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _lines(claim: Claim, contests: Sequence[Compared]) -> list[Line]:
    """The claim's method, its controls wherever they were run, and what else the claim wants shown."""
    controls = {kind: control for compared in contests for kind, control in compared.controls(claim.method).items()}
    names = list(dict.fromkeys((claim.method, *claim.also, *controls.values())))
    drawn: list[Line] = []
    for name in names:
        if any(compared.find(name) for compared in contests):
            kind = control_of(name)
            alike = sum((line.control is None) == (kind is None) for line in drawn)
            colours = METHODS if kind is None else CONTROLS
            drawn.append(Line(name, colours[alike % len(colours)], kind))
    return drawn


class _Panel:
    """Where things lie in a panel: the amount of data to the right, on a log scale, the gain upward."""

    def __init__(
        self, study: Study, claim: Claim, contests: Sequence[Compared], lines: Sequence[Line], left: float, top: float
    ) -> None:
        self.left, self.top, self.lines, self.label = left, top, lines, escape(study.size[1])
        self.sizes = sorted({float(compared.contest.settings[study.size[0]]) for compared in contests})
        self.gains: dict[str, dict[float, Gain]] = {line.method: {} for line in lines}
        for compared in contests:
            baseline = compared.find(claim.baseline)
            for name, found in self.gains.items():
                method = compared.find(name)
                gain = compared.gain(method, baseline) if method and baseline else None
                if gain is not None and math.isfinite(gain.mean):
                    found[float(compared.contest.settings[study.size[0]])] = gain
        self.low, self.high = self._reach()

    def _reach(self) -> tuple[float, float]:
        """The ends of the axis: all intervals of methods, and those of controls as far as they leave room for these."""
        own = [gain for name, found in self.gains.items() if control_of(name) is None for gain in found.values()]
        every = [gain for found in self.gains.values() for gain in found.values()]
        most = max((abs(end) for gain in own for end in (gain.low, gain.high)), default=0.0) or 1.0
        low = max(min((gain.low for gain in every), default=-1.0), -BEYOND * most)
        high = min(max((gain.high for gain in every), default=1.0), BEYOND * most)
        low, high = min(low, 0.0), max(high, 0.0)
        room = 0.06 * (high - low) or 1.0
        return low - room, high + room

    def x(self, size: float) -> float:
        """Where an amount of data lies."""
        if len(self.sizes) == 1:
            return self.left + WIDTH / 2
        margin = 12 + APART * len(self.lines) / 2
        along = math.log(size / self.sizes[0]) / math.log(self.sizes[-1] / self.sizes[0])
        return self.left + margin + along * (WIDTH - 2 * margin)

    def y(self, gain: float) -> float:
        """Where a gain lies; at the edge if beyond."""
        inside = min(max(gain, self.low), self.high)
        return self.top + HEIGHT * (self.high - inside) / (self.high - self.low)

    def draw(self, title: str) -> list[str]:
        """The panel as SVG."""
        middle, bottom = self.left + WIDTH / 2, self.top + HEIGHT
        parts = [
            f'<text x="{middle}" y="{self.top - 16}" text-anchor="middle" font-weight="bold">{escape(title)}</text>',
            f'<rect x="{self.left}" y="{self.top}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#999"/>',
            f'<path d="M{self.left} {self.y(0):.1f}h{WIDTH}" stroke="#333" stroke-dasharray="4 3"/>',
            f'<text x="{middle}" y="{bottom + 40}" text-anchor="middle">{self.label}</text>',
        ]
        for size in self.sizes:
            parts.append(f'<text x="{self.x(size):.1f}" y="{bottom + 18}" text-anchor="middle">{size:g}</text>')
        for tick in ticks(self.low, self.high):
            y = self.y(tick)
            parts.append(f'<path d="M{self.left - 4} {y:.1f}h4" stroke="#999"/>')
            parts.append(f'<text x="{self.left - 8}" y="{y + 4:.1f}" text-anchor="end">{_sign(tick)}</text>')
        if not self.sizes:
            where = f'x="{middle}" y="{self.top + HEIGHT / 3:.1f}"'
            parts.append(f'<text {where} text-anchor="middle" fill="#777">not run yet</text>')
        for place, line in enumerate(self.lines):
            parts += self._series(line, APART * (place - (len(self.lines) - 1) / 2))
        return parts

    def _series(self, line: Line, shift: float) -> list[str]:
        """A method: a line through its means, an interval at each; an arrow where the mean lies beyond the edge."""
        points = [(self.x(size) + shift, gain) for size, gain in sorted(self.gains[line.method].items())]
        if not points:
            return []
        path = " ".join(f"{x:.1f},{self.y(gain.mean):.1f}" for x, gain in points)
        parts = [f'<polyline points="{path}" fill="none" opacity="0.6" {_stroke(line)}/>']
        for x, gain in points:
            low, mean, high = (self.y(value) for value in (gain.low, gain.mean, gain.high))
            parts.append(f'<path d="M{x:.1f} {low:.1f}V{high:.1f}" stroke="{line.colour}" stroke-width="1.6"/>')
            if self.low <= gain.mean <= self.high:
                parts.append(_marker(line, x, mean))
            else:
                arrow = "\u25bc" if gain.mean < self.low else "\u25b2"
                text = f'x="{x:.1f}" y="{mean + (-4 if gain.mean < self.low else 12):.1f}" font-size="11"'
                parts.append(f'<text {text} text-anchor="middle" fill="{line.colour}">{arrow}{gain.mean:+.3g}</text>')
        return parts


def _stroke(line: Line) -> str:
    dash = f' stroke-dasharray="{DASHES[line.control]}"' if line.control else ""
    return f'stroke="{line.colour}" stroke-width="1.8"{dash}'


def _marker(line: Line, x: float, y: float) -> str:
    """Filled for a method; hollow for a control, with a shape for each kind."""
    if line.control is None:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{MARKER}" fill="{line.colour}"/>'
    outline = f"M{x:.1f} {y:.1f}{OUTLINES[line.control]}"
    return f'<path d="{outline}" fill="white" stroke="{line.colour}" stroke-width="1.5"/>'


def _sign(tick: float) -> str:
    return f"{tick:+g}" if tick else "0"


def ticks(low: float, high: float) -> list[float]:
    """Round numbers for an axis, about five.

    Args:
        low: Where the axis begins.
        high: Where it ends.

    Returns:
        Numbers within.
    """
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step * power for step in (1, 2, 5, 10) if step * power >= rough)
    return [round(step * i, 10) + 0.0 for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
