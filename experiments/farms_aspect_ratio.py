"""Does alpha depend on the shape of a matrix? FullTensorCache matrices and FARMS windows, aspect ratios 1 to 16.

Matrices of ``SIDE`` rows and 1 to 16 times as many columns whose entries follow one distribution:

- ``gaussian``: independent normal entries, as at initialisation;
- ``student``: independent entries with the heavy tails of Student's t with 4 degrees of freedom;
- ``pareto``: independent columns whose covariance has Pareto eigenvalues (alpha = 2.5), as after training.

Run with ``python experiments/farms_aspect_ratio.py``; writes ``farms_aspect_ratio.json`` beside this file, and the plot
of ``docs/concepts/farms.md`` (needs no package beyond tempbalance).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

import tempbalance as tb

HERE = Path(__file__).parent
PLOT = HERE.parent / "docs" / "concepts" / "farms_aspect_ratio.svg"
SIDE = 256
RATIOS = (1, 2, 3, 4, 6, 8, 11, 16)
SEEDS = 10
KINDS = ("gaussian", "student", "pareto")


def matrix(kind: str, ratio: int, seed: int) -> Tensor:
    """One matrix of the given distribution, ``SIDE`` by ``ratio * SIDE``."""
    generator = torch.Generator().manual_seed(1000 * ratio + seed)
    shape = (SIDE, ratio * SIDE)
    normal = torch.randn(*shape, generator=generator, dtype=torch.float64)
    if kind == "gaussian":
        return normal
    if kind == "student":
        squares = torch.randn(4, *shape, generator=generator, dtype=torch.float64).square().sum(0)
        return normal / (squares / 4).sqrt()
    population = tb.testing.pareto_quantiles(SIDE, 2.5)
    return tb.testing.matrix_with_spectrum(population, (SIDE, SIDE), seed=0) @ normal


def measure(kind: str, ratio: int) -> dict[str, Any]:
    """Alphas of ``SEEDS`` matrices, whole and in windows."""
    rows = []
    for seed in range(SEEDS):
        weight = matrix(kind, ratio, seed)
        whole, windows = tb.Hill().fit(tb.weight_spectrum(weight)), tb.weight_fit.fit_weight(weight, windows=tb.FARMS())
        rows.append(
            {
                "whole": whole.alpha,
                "whole_stderr": whole.stderr,
                "farms": windows.fit.alpha,
                "farms_stderr": windows.fit.stderr,
                "windows": windows.num_windows,
            }
        )
    return {"kind": kind, "aspect_ratio": ratio, "matrices": rows}


def judge(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each distribution: how far alpha moves from aspect ratio 1 on, and by how many standard errors."""
    verdicts = []
    for kind in KINDS:
        cells = [cell for cell in found if cell["kind"] == kind]
        verdict: dict[str, Any] = {"kind": kind}
        for name in ("whole", "farms"):
            first, *others = [[row[name] for row in cell["matrices"]] for cell in cells]
            errors = [[row[f"{name}_stderr"] for row in cell["matrices"]] for cell in cells]
            z = [
                (alpha - alpha_1) / math.hypot(error, error_1)
                for alphas, own in zip(others, errors[1:], strict=True)
                for alpha, alpha_1, error, error_1 in zip(alphas, first, own, errors[0], strict=True)
            ]
            verdict[name] = {
                "alpha_at_1": fmean(first),
                "alpha_at_16": fmean(others[-1]),
                "largest_change_of_the_mean": max(abs(fmean(alphas) - fmean(first)) for alphas in others),
                "mean_stderr": fmean(error for own in errors for error in own),
                "pairs_within_2_stderr": fmean(abs(value) <= 2 for value in z),
                "rms_z": math.sqrt(fmean(value**2 for value in z)),
            }
        verdicts.append(verdict)
    return verdicts


def plot(found: list[dict[str, Any]]) -> str:
    """Alpha against aspect ratio, a panel for each distribution, as SVG."""
    width, height, left, top = 250, 190, 46, 34
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + len(KINDS) * (width + 40)} {height + 90}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for panel, kind in enumerate(KINDS):
        cells = [cell for cell in found if cell["kind"] == kind]
        everything = [row[name] for cell in cells for row in cell["matrices"] for name in ("whole", "farms")]
        low, high = math.floor(min(everything)), math.ceil(max(everything))
        x0 = left + panel * (width + 40)

        def place(ratio: float, alpha: float, x0: int = x0, low: int = low, high: int = high) -> tuple[float, float]:
            x, y = math.log2(ratio) / 4, (alpha - low) / (high - low)
            return x0 + x * width, top + (1 - y) * height

        parts.append(f'<text x="{x0}" y="{top - 12}" font-weight="bold">{kind}</text>')
        parts.append(f'<rect x="{x0}" y="{top}" width="{width}" height="{height}" fill="none" stroke="#999"/>')
        for ratio in (1, 2, 4, 8, 16):
            x, y = place(ratio, low)
            parts.append(f'<text x="{x:.1f}" y="{y + 16:.1f}" text-anchor="middle">{ratio}</text>')
        for alpha in range(low, high + 1, max(1, (high - low) // 5)):
            x, y = place(1, alpha)
            parts.append(f'<text x="{x - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{alpha}</text>')
        for name, colour in (("whole", "#c0392b"), ("farms", "#1f5fa8")):
            points = []
            for cell in cells:
                alphas = [row[name] for row in cell["matrices"]]
                x, y = place(cell["aspect_ratio"], fmean(alphas))
                points.append(f"{x:.1f},{y:.1f}")
                (_, y_low), (_, y_high) = (place(1, fmean(alphas) + sign * 2 * stdev(alphas)) for sign in (-1, 1))
                parts.append(f'<path d="M{x:.1f} {y_low:.1f}V{y_high:.1f}" stroke="{colour}" stroke-width="1.5"/>')
                parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>')
            parts.append(f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}"/>')
    middle = (left + len(KINDS) * (width + 40)) / 2
    parts.append(
        f'<text x="{middle}" y="{top + height + 36}" text-anchor="middle">aspect ratio of the matrix '
        f"({SIDE} rows)</text>"
        f'<text x="12" y="{top + height / 2}" transform="rotate(-90 12 {top + height / 2})" '
        'text-anchor="middle">alpha (Hill)</text>'
        f'<text x="{middle - 130}" y="{top + height + 54}" fill="#c0392b">whole matrix</text>'
        f'<text x="{middle + 30}" y="{top + height + 54}" fill="#1f5fa8">FARMS windows</text></svg>'
    )
    return "\n".join(parts) + "\n"


def main() -> None:
    """Run, print, write."""
    found = [measure(kind, ratio) for kind in KINDS for ratio in RATIOS]
    verdicts = judge(found)
    for verdict in verdicts:
        for name in ("whole", "farms"):
            print(verdict["kind"], name, {key: round(value, 3) for key, value in verdict[name].items()})
    results = {
        "command": "python experiments/farms_aspect_ratio.py",
        "side": SIDE,
        "seeds": SEEDS,
        "windows": repr(tb.FARMS()),
        "estimator": repr(tb.Hill()),
        "summary": verdicts,
        "results": found,
    }
    (HERE / "farms_aspect_ratio.json").write_text(json.dumps(results, indent=1) + "\n")
    PLOT.write_text(plot(found))


if __name__ == "__main__":
    main()
