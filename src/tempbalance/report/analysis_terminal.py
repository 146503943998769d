"""Print an analysis: its findings, a summary, and the layers with a warning."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median

from rich.console import Console
from rich.table import Table

from tempbalance.analysis import Analysis
from tempbalance.analysis.deviations import compare_similar
from tempbalance.metrics import mean_alpha
from tempbalance.report.analysis_page import coverage_text
from tempbalance.report.findings_text import findings_title, print_findings
from tempbalance.report.terminal_tables import count, number, plain_table, plain_text, print_names, sparkline
from tempbalance.types import LayerStats, Severity, Status

__all__ = ["print_analysis", "print_overview"]

_ALL = 12  # models of up to this many layers are printed in full


def print_analysis(console: Console, analysis: Analysis) -> None:
    """Print the findings, the summary, the layers with a warning (all of a small model) and the skipped weights."""
    findings = analysis.findings
    console.print(plain_text(analysis.source, "bold"), soft_wrap=True)
    console.print(findings_title(findings), style="bold", highlight=False)
    print_findings(console, findings)
    print_overview(console, analysis)
    kinds: dict[str, list[str]] = {}
    warned: set[str] = set()
    for finding in findings:
        warned |= set(finding.layers) if finding.severity is not Severity.NOTE else set()
        for name in finding.layers:
            kinds.setdefault(name, []).append(finding.kind)
    if len(analysis.layers) <= _ALL:
        rows, title = analysis.layers, "All layers"
    else:
        rows = [layer for layer in analysis.layers if layer.name in warned][:_ALL]
        title = "Layers with a warning"
    if rows:
        console.print(_layers_table(rows, kinds, title))
    hidden = len(analysis.layers) - len(rows)
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
    compared = len(compare_similar(analysis.layers, windows=analysis.settings.get("windows") is not None))
    console.print(
        "smaller alpha: heavier tail, in theory better trained; "
        f"{compared} of {len(fitted)} compared with layers like them",
        style="dim",
        highlight=False,
    )
    blocks: dict[str, list[tuple[float, float]]] = {}
    for layer in fitted:
        if layer.block is not None:
            blocks.setdefault(layer.block, []).append((layer.alpha, layer.stderr))
    if len(blocks) > 1:
        means = [mean_alpha(pairs) for pairs in blocks.values()]
        bars = sparkline([alpha for alpha, _ in means], error=median(stderr for _, stderr in means))
        console.print(
            f"mean alpha per block: {bars}  {means[0][0]:.2f} (first) to {means[-1][0]:.2f} (last)", highlight=False
        )


def _layers_table(rows: Sequence[LayerStats], kinds: Mapping[str, Sequence[str]], title: str) -> Table:
    table = plain_table("layer", "shape", "alpha", "stderr", title=title)
    table.add_column("finding", no_wrap=True)
    for layer in rows:
        found = ", ".join(kinds.get(layer.name, ()))
        table.add_row(
            plain_text(layer.name.removesuffix(".weight")),
            "x".join(map(str, layer.shape)),
            number(layer.alpha),
            number(layer.stderr),
            plain_text(found or ("" if layer.status is Status.OK else layer.status.value), "yellow" if found else ""),
        )
    return table
