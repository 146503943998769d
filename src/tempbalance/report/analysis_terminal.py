"""Print an analysis: a summary, and the layers with a finding."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from statistics import median

from rich.console import Console
from rich.table import Table

from tempbalance.analysis import Analysis
from tempbalance.metrics import mean_alpha
from tempbalance.report.analysis_page import coverage_text
from tempbalance.report.terminal_tables import count, number, plain_table, plain_text, print_names, sparkline
from tempbalance.types import LayerStats, Status

__all__ = ["layer_findings", "print_analysis", "print_overview"]

_ALL = 12  # models of up to this many layers are printed in full
_EXTREMES = 4
_POOR_FIT = 0.2  # KS distance
_WITHOUT_ALPHA = {
    Status.RANDOM: "looks untrained",
    Status.TOO_FEW: "too few eigenvalues",
    Status.CONSTANT: "constant spectrum",
    Status.NO_TAIL: "no tail",
    Status.ZERO: "all weights are zero",
}


def layer_findings(layers: Sequence[LayerStats]) -> list[tuple[LayerStats, str]]:
    """Return the layers to look at first, each with the reasons, in model order."""
    # The smallest and largest alphas are chosen within each of the two most common shapes, because alphas of different
    # shapes are not comparable.
    reasons: dict[str, list[str]] = {}
    fitted = [layer for layer in layers if layer.status is Status.OK]
    for shape, _ in Counter(map(_unordered_shape, fitted)).most_common(2):
        same_shape = sorted((row for row in fitted if _unordered_shape(row) == shape), key=lambda row: row.alpha)
        extremes = min(_EXTREMES, len(same_shape) // 3)
        for layer in same_shape[:extremes]:
            reasons.setdefault(layer.name, []).append("heavy tail")
        for layer in same_shape[len(same_shape) - extremes :]:
            reasons.setdefault(layer.name, []).append("light tail")
    for layer in layers:
        if layer.status is not Status.OK:
            reasons.setdefault(layer.name, []).append(_WITHOUT_ALPHA[layer.status])
        elif layer.ks_distance > _POOR_FIT:
            reasons.setdefault(layer.name, []).append("poor fit")
    return [(layer, ", ".join(reasons[layer.name])) for layer in layers if layer.name in reasons]


def _unordered_shape(layer: LayerStats) -> tuple[int, int]:
    rows, columns = layer.shape[0], layer.shape[1]
    return max(rows, columns), min(rows, columns)


def print_analysis(console: Console, analysis: Analysis) -> None:
    """Print the summary, the findings (all layers of a small model) and the skipped weights."""
    console.print(plain_text(analysis.source, "bold"), soft_wrap=True)
    print_overview(console, analysis)
    findings = layer_findings(analysis.layers)
    if len(analysis.layers) <= _ALL:
        reasons = {layer.name: reason for layer, reason in findings}
        findings, title = [(layer, reasons.get(layer.name, "")) for layer in analysis.layers], "All layers"
    else:
        title = f"Findings ({count(len(findings), 'layer', 'layers')})"
    if findings:
        console.print(_layers_table(findings, title))
    hidden = len(analysis.layers) - len(findings)
    if hidden:
        console.print(f"{count(hidden, 'other layer', 'other layers')} not shown; --out saves all", style="dim")
    skipped: dict[str, list[str]] = {}
    for name, reason in analysis.skipped:
        skipped.setdefault(reason, []).append(name)
    for reason, names in skipped.items():
        print_names(console, f"skipped, {reason}", names)


def print_overview(console: Console, analysis: Analysis) -> None:
    """Print the number of layers and the spread of their alphas, without a table."""
    fitted = [layer for layer in analysis.layers if layer.status is Status.OK]
    estimator = str(analysis.settings.get("estimator", "")).partition("(")[0]
    counts = f"{count(len(analysis.layers), 'weight matrix', 'weight matrices')}, {len(fitted)} with an alpha"
    console.print(plain_text(f"{counts}, estimator {estimator}"))
    covered = coverage_text(analysis, "they")
    if covered:
        console.print(covered, highlight=False)
    if not fitted:
        return
    alphas = [layer.alpha for layer in fitted]
    console.print(
        f"alpha: median {median(alphas):.2f}, range {min(alphas):.2f} to {max(alphas):.2f}; "
        f"imbalance over layers {analysis.imbalance:.2f}"
        + (f", over blocks {analysis.block_imbalance:.2f}" if math.isfinite(analysis.block_imbalance) else ""),
        highlight=False,
    )
    shapes = "; compare equal shapes" if analysis.settings.get("windows") is None else ""
    console.print(f"smaller alpha: heavier tail, in theory better trained{shapes}", style="dim")
    blocks: dict[str, list[tuple[float, float]]] = {}
    for layer in fitted:
        if layer.block is not None:
            blocks.setdefault(layer.block, []).append((layer.alpha, layer.stderr))
    if len(blocks) > 1:
        means = [mean_alpha(pairs)[0] for pairs in blocks.values()]
        bars = f"{sparkline(means)}  {means[0]:.2f} (first) to {means[-1]:.2f} (last)"
        console.print(f"mean alpha per block: {bars}", highlight=False)


def _layers_table(rows: Sequence[tuple[LayerStats, str]], title: str) -> Table:
    table = plain_table("layer", "shape", "alpha", "stderr", title=title)
    table.add_column("finding", no_wrap=True)
    for layer, reason in rows:
        table.add_row(
            plain_text(layer.name.removesuffix(".weight")),
            "x".join(map(str, layer.shape)),
            number(layer.alpha),
            number(layer.stderr),
            plain_text(reason, "" if layer.status is Status.OK else "yellow"),
        )
    return table
