"""Does alpha depend on the shape of a matrix? Full matrices and FARMS windows, aspect ratios 1 to 16.

Matrices of ``SIDE`` rows and 1 to 16 times as many columns whose entries follow one distribution:

- ``gaussian``: independent normal entries, as at initialisation;
- ``student``: independent entries with the heavy tails of Student's t with 4 degrees of freedom;
- ``pareto``: independent columns whose covariance has Pareto eigenvalues (alpha = 2.5), as after training.

Run ``python experiments/farms_aspect_ratio.py``; it writes ``farms_aspect_ratio.json`` and the plot of
``docs/concepts/farms.md`` (with ``--plot`` only the plot, from the JSON).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from matplotlib.figure import Figure
from plotting import render
from torch import Tensor

import tempbalance as tb

HERE = Path(__file__).parent
PLOT = HERE.parent / "docs" / "concepts" / "farms_aspect_ratio.svg"
SIDE = 256
RATIOS = (1, 2, 3, 4, 6, 8, 11, 16)
SEEDS = 10
KINDS = ("gaussian", "student", "pareto")


def matrix(kind: str, ratio: int, seed: int) -> Tensor:
    """Make one matrix of the given distribution, ``SIDE`` by ``ratio * SIDE``."""
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
    """Measure the alphas of ``SEEDS`` matrices, full and in windows."""
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


def summarize(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Summarize by distribution how far alpha moves from aspect ratio 1, in units of its standard error."""
    rows = []
    for kind in KINDS:
        cells = [cell for cell in found if cell["kind"] == kind]
        row: dict[str, Any] = {"kind": kind}
        for name in ("whole", "farms"):
            first, *others = [[each[name] for each in cell["matrices"]] for cell in cells]
            errors = [[each[f"{name}_stderr"] for each in cell["matrices"]] for cell in cells]
            z = [
                (alpha - alpha_1) / math.hypot(error, error_1)
                for alphas, own in zip(others, errors[1:], strict=True)
                for alpha, alpha_1, error, error_1 in zip(alphas, first, own, errors[0], strict=True)
            ]
            row[name] = {
                "alpha_at_1": fmean(first),
                "alpha_at_16": fmean(others[-1]),
                "largest_change_of_the_mean": max(abs(fmean(alphas) - fmean(first)) for alphas in others),
                "mean_stderr": fmean(error for own in errors for error in own),
                "pairs_within_2_stderr": fmean(abs(value) <= 2 for value in z),
                "rms_z": math.sqrt(fmean(value**2 for value in z)),
            }
        rows.append(row)
    return rows


def plot(found: list[dict[str, Any]]) -> str:
    """Draw alpha against aspect ratio, a panel per distribution, as SVG; bars are two standard deviations."""

    def draw(figure: Figure) -> None:
        for axes, kind in zip(figure.subplots(1, len(KINDS)), KINDS, strict=True):
            cells = [cell for cell in found if cell["kind"] == kind]
            ratios = [cell["aspect_ratio"] for cell in cells]
            for name, label, colour in (("whole", "full matrix", "#d55e00"), ("farms", "FARMS windows", "#0072b2")):
                alphas = [[row[name] for row in cell["matrices"]] for cell in cells]
                spread = [2 * stdev(each) for each in alphas]
                style = {"marker": "o", "markersize": 3.5, "linewidth": 1, "elinewidth": 1.4, "color": colour}
                axes.errorbar(ratios, [fmean(each) for each in alphas], yerr=spread, label=label, **style)
            axes.set_xscale("log", base=2)
            axes.set_xticks((1, 2, 4, 8, 16), ("1", "2", "4", "8", "16"))
            axes.minorticks_off()
            axes.set_title(kind, fontweight="bold", fontsize="medium")
        figure.axes[0].set_ylabel("alpha (Hill)")
        figure.axes[1].set_xlabel(f"aspect ratio of the matrix ({SIDE} rows)")
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)

    return render(draw, 8.8, 3.0, name="farms_aspect_ratio")


def main() -> None:
    """Measure, print, write; with ``--plot`` only draw the results again."""
    file = HERE / "farms_aspect_ratio.json"
    if sys.argv[1:] != ["--plot"]:
        found = [measure(kind, ratio) for kind in KINDS for ratio in RATIOS]
        summary = summarize(found)
        for row in summary:
            for name in ("whole", "farms"):
                print(row["kind"], name, {key: round(value, 3) for key, value in row[name].items()})
        written = {
            "command": "python experiments/farms_aspect_ratio.py",
            "side": SIDE,
            "seeds": SEEDS,
            "windows": repr(tb.FARMS()),
            "estimator": repr(tb.Hill()),
            "summary": summary,
            "results": found,
        }
        file.write_text(json.dumps(written, indent=1) + "\n")
    PLOT.write_text(plot(json.loads(file.read_text())["results"]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", action="store_true")
    parser.parse_args()
    main()
