"""The tables and the plots of ``prune_lm.py`` and ``prune_search.py``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure
from plotting import render

from tempbalance.study import paired

NAMES = {
    "uniform": "uniform",
    "erk": "ERK",
    "owl": "OWL",
    "atp": "ATP",
    "alpha": "AlphaPruning",
    "peak": "AlphaPruning, Peak",
    "farms": "AlphaPruning, FARMS",
    "inverted": "alpha inverted",
    "depth": "depth",
    "simple": "best simple one",
    "search_block": "search, per block",
    "search_layer": "search, per matrix",
}
CONTROLS = ("inverted", "depth")
TICKS = (-20, -10, -5, 0, 5, 10, 20, 50, 100, 200)  # per cent
PRUNERS = {"magnitude": "magnitude", "wanda": "Wanda", "sparsegpt": "SparseGPT"}


def summarize(losses: Mapping[Any, list[float]]) -> list[dict[str, Any]]:
    """One row per criterion, sparsity and allocation: all losses, and the comparison with the uniform allocation."""
    # Pairs are segments of text, each with its mean loss over the seeds.
    cells: dict[tuple[str, float, str], dict[Any, list[float]]] = {}
    for run, found in losses.items():
        cells.setdefault((run.pruner, run.sparsity, run.arm), {})[run] = found
    rows = []
    for (pruner, sparsity, arm), runs in cells.items():
        segments = [fmean(losses) for losses in zip(*runs.values(), strict=True)]
        by_seed = [fmean(losses) for losses in runs.values()]
        row: dict[str, Any] = {"pruner": pruner, "sparsity": sparsity, "arm": arm, "epsilon": next(iter(runs)).epsilon}
        row["losses"] = {run.seed: losses for run, losses in runs.items()}
        row["perplexity"] = fmean(map(math.exp, by_seed))
        uniform = list(cells[pruner, sparsity, "uniform"].values())
        if arm != "uniform":
            found = paired([fmean(losses) for losses in zip(*uniform, strict=True)], segments)
            others = [fmean(losses) for losses in uniform] * (len(by_seed) if len(uniform) == 1 else 1)
            row["change"] = [math.expm1(-gain) for gain in (found.mean, found.high, found.low)]
            row["seeds_won"] = sum(loss < other for loss, other in zip(by_seed, others, strict=True))
        rows.append(row)
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write Markdown: perplexity, and below it the change relative to the uniform allocation."""
    sparsities = sorted({row["sparsity"] for row in rows})
    cells = {(row["pruner"], row["arm"], row["sparsity"]): row for row in rows}
    lines = [
        f"| pruned by | allocation | {' | '.join(f'{100 * sparsity:.0f} %' for sparsity in sparsities)} |",
        f"|---|---|{'---|' * len(sparsities)}",
    ]
    for pruner, arm in dict.fromkeys((row["pruner"], row["arm"]) for row in rows):
        texts = [_cell(cells.get((pruner, arm, sparsity), {})) for sparsity in sparsities]
        lines.append(f"| {PRUNERS[pruner]} | {NAMES[arm]} | {' | '.join(texts)} |")
    return "\n".join(lines) + "\n"


def _cell(row: Mapping[str, Any]) -> str:
    if not row:  # not run
        return ""
    perplexity = f"{row['perplexity']:.1f}" if row["perplexity"] < 1000 else f"{row['perplexity']:,.0f}"
    if "change" not in row:
        return perplexity
    won = f"; {row['seeds_won']}/{len(row['losses'])}" if "seeds_won" in row else ""
    return f"{perplexity}<br>{written(row['change'])}{won}"


def written(change: Sequence[float]) -> str:
    """Write a mean change with its interval in per cent."""
    mean, low, high = (f"{100 * each:+.1f}".replace("-", "−") for each in change)
    return f"{mean} % ({low} to {high})"


def plot(rows: Sequence[Mapping[str, Any]]) -> str:
    """Draw perplexity relative to the uniform allocation against sparsity, a panel per criterion, as SVG."""
    pruners = list(dict.fromkeys(row["pruner"] for row in rows))
    arms = [arm for arm in NAMES if any(row["arm"] == arm for row in rows)]

    def draw(figure: Figure) -> None:
        for axes, pruner in zip(figure.subplots(1, len(pruners), squeeze=False, sharey=True)[0], pruners, strict=True):
            for place, arm in enumerate(arms):
                found = [row for row in rows if row["pruner"] == pruner and row["arm"] == arm and "change" in row]
                if not found:
                    continue
                mean, low, high = (list(values) for values in zip(*(row["change"] for row in found), strict=True))
                x = [100 * row["sparsity"] + 0.5 * (place - (len(arms) - 1) / 2) for row in found]
                spread = [[100 * (m - b) for m, b in zip(mean, low, strict=True)]]
                spread += [[100 * (b - m) for m, b in zip(mean, high, strict=True)]]
                style = {"marker": "o", "markersize": 3, "linewidth": 1, "linestyle": ":" if arm in CONTROLS else "-"}
                axes.errorbar(x, [100 * m for m in mean], yerr=spread, label=NAMES[arm], **style)
            axes.axhline(0, color="black", linewidth=0.8)
            axes.set(title=PRUNERS[pruner], xlabel="sparsity, %", xticks=sorted({100 * r["sparsity"] for r in rows}))
            axes.set_yscale("symlog", linthresh=10)
            axes.set_yticks(TICKS, [f"{tick:+d}" for tick in TICKS])
            axes.minorticks_off()
        figure.axes[0].set_ylabel("perplexity against uniform, %")
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6)

    return render(draw, 3.4 * len(pruners), 3.6, name="prune_lm")
