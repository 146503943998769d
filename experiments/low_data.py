"""What ``results/digits.json`` says: the tables of ``docs/results/low-data.md``, printed, and its figure, drawn.

Run with ``python experiments/low_data.py``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tempbalance.arena import paired

HERE = Path(__file__).parent
FIGURE = HERE.parent / "docs" / "results" / "low-data.svg"
PANELS = {
    "8": "8 images, tuned",
    "2": "2 images, tuned",
    "8-rate-0.001": "8 images, rate 0.001",
    "2-rate-0.003": "2 images, rate 0.003",
}
REACH, TICKS = 4.5, (-4, -2, 0, 2, 4)  # points of accuracy
NAMES, WIDTH, GAP, ROW, TOP = 250, 150, 16, 20, 34  # pixels
METHOD, CONTROL = "#1f5fa8", "#777"


class Gain(NamedTuple):
    """A mean paired difference with its interval, in points, and the share of seeds won."""

    mean: float
    low: float
    high: float
    won: int
    seeds: int

    def __str__(self) -> str:
        """Three cells of a table."""
        mean, low, high = (round(value, 2) + 0.0 for value in self[:3])  # no -0.00
        return f"{mean:+.2f} | {low:+.2f} to {high:+.2f} | {self.won} of {self.seeds}"


def gain(first: Mapping[int, float], second: Mapping[int, float]) -> Gain:
    """The first over the second, in points."""
    found = paired([first[seed] for seed in first], [second[seed] for seed in first])
    return Gain(100 * found.mean, 100 * found.low, 100 * found.high, found.won, found.seeds)


def tested(study: Mapping[str, Any]) -> dict[str, dict[int, float]]:
    """Test accuracy by method and seed, of the trial that was chosen for each method."""
    chosen = {row["chosen"]: row["method"] for row in study["summary"]["rows"]}
    found: dict[str, dict[int, float]] = {method: {} for method in chosen.values()}
    for run in study["runs"]:
        trial = f"{run['method']} lr={run['lr']:g}"
        if trial in chosen and run["seed"] < study["summary"]["seeds"]:
            found[chosen[trial]][run["seed"]] = run["metrics"]["test"]
    return found


def tables(name: str, study: Mapping[str, Any]) -> str:
    """Every method against plain, and against its controls, in Markdown."""
    scores = tested(study)
    lines = [f"\n{name}\n", *_head("method", "rate", "accuracy", "gain", "95 % interval", "seeds won", "p")]
    for row in study["summary"]["rows"]:
        cells = gain(scores[row["method"]], scores["plain"]) if row["gain"] else "| |"
        rate = row["chosen"].rpartition("lr=")[2]
        p_value = f"{row['p_value']:.2g}" if row["gain"] else ""
        lines.append(f"| `{row['method']}` | {rate} | {100 * row['mean']:.2f} | {cells} | {p_value} |")
    lines += ["", *_head("method", "against control", "difference", "95 % interval", "seeds won")]
    for control in scores:
        of, separator, kind = control.rpartition("control=")
        if separator:
            lines.append(f"| `{of[:-1]}` | {kind} | {gain(scores[of[:-1]], scores[control])} |")
    return "\n".join(lines)


def _head(*names: str) -> list[str]:
    return [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]


def figure(studies: Mapping[str, Mapping[str, Any]]) -> str:
    """The gain over plain of every method, a panel for each number of images, as SVG."""
    methods = [row["method"] for row in studies["8"]["summary"]["rows"][1:]]
    bottom = TOP + ROW * len(methods)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {NAMES + len(PANELS) * (WIDTH + GAP)} {bottom + 48}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for row, method in enumerate(methods):
        of, _, control = method.rpartition("control=")
        text, x, colour = (f"control={control}", 24, CONTROL) if of else (method, 8, METHOD)
        parts.append(f'<text x="{x}" y="{TOP + ROW * row + 14}" fill="{colour}">{text}</text>')
    for panel, name in enumerate(PANELS):
        parts += _panel(name, tested(studies[name]), methods, NAMES + panel * (WIDTH + GAP))
    middle = NAMES + (WIDTH * len(PANELS) + GAP) / 2
    text = "test accuracy over plain training, points (95 % interval)"
    parts.append(f'<text x="{middle}" y="{bottom + 40}" text-anchor="middle">{text}</text></svg>')
    return "\n".join(parts) + "\n"


def _panel(name: str, scores: Mapping[str, Mapping[int, float]], methods: list[str], left: int) -> list[str]:
    """One panel; what lies beyond its edge is an arrow with a number."""
    bottom = TOP + ROW * len(methods)

    def place(points: float) -> float:
        """Where a gain is drawn."""
        return left + WIDTH * (min(max(points, -REACH), REACH) + REACH) / (2 * REACH)

    parts = [
        f'<text x="{place(0)}" y="22" text-anchor="middle" font-weight="bold">{PANELS[name]}</text>',
        f'<rect x="{left}" y="{TOP}" width="{WIDTH}" height="{bottom - TOP}" fill="none" stroke="#999"/>',
        f'<path d="M{place(0)} {TOP}V{bottom}" stroke="#999" stroke-dasharray="3 3"/>',
    ]
    for tick in TICKS:
        parts.append(f'<text x="{place(tick)}" y="{bottom + 16}" text-anchor="middle">{tick:+d}</text>')
    for row, method in enumerate(methods):
        if method not in scores:
            continue
        y, found = TOP + ROW * row + 10, gain(scores[method], scores["plain"])
        colour = CONTROL if "control=" in method else METHOD
        if found.mean < -REACH:
            parts.append(f'<text x="{left + 4}" y="{y + 4}" fill="{colour}">\u25c2 {found.mean:.1f}</text>')
            continue
        ends = f"M{place(found.low):.1f} {y}H{place(found.high):.1f}"
        parts.append(f'<path d="{ends}" stroke="{colour}" stroke-width="1.5"/>')
        parts.append(f'<circle cx="{place(found.mean):.1f}" cy="{y}" r="3.5" fill="{colour}"/>')
    return parts


def main() -> None:
    """Read, print, draw."""
    studies = json.loads((HERE / "results" / "digits.json").read_text(encoding="utf-8"))
    for name, study in studies.items():
        print(tables(name, study))
    FIGURE.write_text(figure(studies), encoding="utf-8")


if __name__ == "__main__":
    main()
