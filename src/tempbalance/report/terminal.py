"""Tables for the terminal: the layers that stand out, not three hundred rows of digits."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from statistics import fmean, median

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tempbalance.report.protocol import ComparisonReport, DeltaRow, Measured, Report
from tempbalance.report.pruning_page import Pruned, UnitSparsity, in_words
from tempbalance.types import LayerStats, Status

__all__ = [
    "print_analysis",
    "print_comparison",
    "print_perplexities",
    "print_pruning",
    "print_summary",
    "sparkline",
    "standing_out",
]

_ALL = 12  # up to so many rows, all are shown
_EXTREMES = 4
_POOR_FIT = 0.2
_BARS = "▁▂▃▄▅▆▇█"
_NAMES_SHOWN = 3
_CLEAR = 2.0  # standard errors
_ALL_UNITS = 40
_OFF_PLAN = 0.005  # of the weights of a unit
_BAR = 20  # characters
_WITHOUT_ALPHA = {
    Status.RANDOM: "looks untrained",
    Status.TOO_FEW: "too few eigenvalues",
    Status.CONSTANT: "constant spectrum",
    Status.NO_TAIL: "no tail",
    Status.ZERO: "all zero",
}


def standing_out(layers: Sequence[LayerStats]) -> list[tuple[LayerStats, str]]:
    """The rows to look at first, each with the reason, in model order.

    The heaviest and lightest tails of the two most common shapes (alphas of matrices of different shape are not
    comparable), tails that fit a power law badly, and layers without an alpha.

    Args:
        layers: All rows.

    Returns:
        All rows of a small model; of a large one those that stand out.

    Example:
        >>> standing_out([])
        []
    """
    reasons: dict[str, list[str]] = {layer.name: [] for layer in layers}
    fitted = [layer for layer in layers if layer.status is Status.OK]
    shapes = Counter(_aspect(layer) for layer in fitted)
    for shape, _ in shapes.most_common(2):
        alike = sorted((layer for layer in fitted if _aspect(layer) == shape), key=lambda layer: layer.alpha)
        count = min(_EXTREMES, len(alike) // 3)
        for layer in alike[:count]:
            reasons[layer.name].append("heavy tail")
        for layer in alike[len(alike) - count :]:
            reasons[layer.name].append("light tail")
    for layer in layers:
        if layer.status is not Status.OK:
            reasons[layer.name].append(_WITHOUT_ALPHA[layer.status])
        elif layer.ks_distance > _POOR_FIT:
            reasons[layer.name].append("poor fit")
    everything = len(layers) <= _ALL
    return [(layer, ", ".join(reasons[layer.name])) for layer in layers if everything or reasons[layer.name]]


def _aspect(layer: LayerStats) -> tuple[int, int]:
    rows, columns = layer.shape[0], layer.shape[1]
    return max(rows, columns), min(rows, columns)


def print_analysis(console: Console, report: Report) -> None:
    """Print what an analysis found.

    Args:
        console: Where to print.
        report: The analysis.
    """
    console.print(Text(f"{report.source}", style="bold"), soft_wrap=True)
    print_summary(console, report)
    rows = standing_out(report.layers)
    if rows:
        title = "All layers" if len(rows) == len(report.layers) else f"Layers that stand out ({len(rows)})"
        console.print(_layers_table(rows, title))
    hidden = len(report.layers) - len(rows)
    if hidden:
        console.print(f"{_count(hidden, 'other layer', 'other layers')} not shown; --out saves all", style="dim")
    _print_skipped(console, report)


def print_summary(console: Console, report: Report) -> None:
    """Print how many layers there are and how their alphas are spread, without any table.

    Args:
        console: Where to print.
        report: The analysis.
    """
    fitted = [layer for layer in report.layers if layer.status is Status.OK]
    estimator = str(report.settings.get("estimator", "")).partition("(")[0]
    counts = f"{_count(len(report.layers), 'weight matrix', 'weight matrices')}, {len(fitted)} with an alpha"
    console.print(f"{counts}, estimator {estimator}", highlight=False)
    if not fitted:
        return
    alphas = [layer.alpha for layer in fitted]
    console.print(
        f"alpha: median {median(alphas):.2f}, range {min(alphas):.2f} to {max(alphas):.2f}; "
        f"imbalance over layers {report.imbalance:.2f}"
        + (f", over blocks {report.block_imbalance:.2f}" if math.isfinite(report.block_imbalance) else ""),
        highlight=False,
    )
    shapes = "; compare equal shapes" if report.settings.get("windows") is None else ""
    console.print(f"smaller alpha: heavier tail, in theory better trained{shapes}", style="dim")
    blocks: dict[str, list[float]] = {}
    for layer in fitted:
        if layer.block is not None:
            blocks.setdefault(layer.block, []).append(layer.alpha)
    if len(blocks) > 1:
        means = [fmean(values) for values in blocks.values()]
        bars = sparkline(means)
        console.print(
            f"mean alpha per block: {bars}  {means[0]:.2f} (first) to {means[-1]:.2f} (last)", highlight=False
        )


def sparkline(values: Sequence[float]) -> str:
    """A bar chart of one line.

    Args:
        values: Finite numbers.

    Returns:
        One block character per number.

    Example:
        >>> sparkline([1.0, 2.0, 3.0])
        '▁▄█'
    """
    low, high = min(values), max(values)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[int((value - low) * scale)] for value in values)


def _layers_table(rows: Sequence[tuple[LayerStats, str]], title: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1), pad_edge=False)
    table.add_column("layer", overflow="fold")
    table.add_column("shape", justify="right", no_wrap=True)
    table.add_column("alpha", justify="right", no_wrap=True)
    table.add_column("stderr", justify="right", no_wrap=True)
    table.add_column("why", no_wrap=True)
    for layer, reason in rows:
        table.add_row(
            Text(layer.name.removesuffix(".weight")),
            "x".join(map(str, layer.shape)),
            _number(layer.alpha),
            _number(layer.stderr),
            Text(reason, style="" if layer.status is Status.OK else "yellow"),
        )
    return table


def _number(value: float, form: str = ".2f") -> str:
    return format(value, form) if math.isfinite(value) else "-"


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _print_skipped(console: Console, report: Report) -> None:
    reasons: dict[str, list[str]] = {}
    for name, reason in report.skipped:
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        _print_names(console, f"skipped, {reason}", names)


def _print_names(console: Console, what: str, names: Sequence[str]) -> None:
    if names:
        shown = ", ".join(names[:_NAMES_SHOWN]) + (", ..." if len(names) > _NAMES_SHOWN else "")
        console.print(Text(f"{what} ({len(names)}): {shown}", style="dim"))


def print_comparison(console: Console, comparison: ComparisonReport) -> None:
    """Print how alpha changed.

    Args:
        console: Where to print.
        comparison: Two analyses, layer by layer.
    """
    console.print(Text(f"{comparison.before}  ->  {comparison.after}", style="bold"), soft_wrap=True)
    console.print(
        f"{_count(len(comparison.layers), 'common layer', 'common layers')}; "
        f"imbalance {_number(comparison.imbalance_before)} -> {_number(comparison.imbalance_after)}",
        highlight=False,
    )
    changed = [row for row in comparison.layers if math.isfinite(row.delta)]
    ranked = sorted(changed, key=lambda row: -abs(row.z) if math.isfinite(row.z) else 0.0)[:_ALL]
    console.print(_deltas_table(ranked))
    clear = sum(abs(row.z) > _CLEAR for row in changed)
    console.print(f"{clear} of {len(changed)} changed by more than {_CLEAR:g} standard errors", highlight=False)
    has_alpha = [
        (row.name, math.isfinite(row.alpha_before), math.isfinite(row.alpha_after)) for row in comparison.layers
    ]
    _print_names(console, "with an alpha only before", [name for name, before, after in has_alpha if before > after])
    _print_names(console, "with an alpha only after", [name for name, before, after in has_alpha if before < after])
    _print_names(console, "only before", comparison.only_before)
    _print_names(console, "only after", comparison.only_after)


def _deltas_table(rows: Sequence[DeltaRow]) -> Table:
    table = Table(title="Largest changes of alpha", title_justify="left", box=None, padding=(0, 1), pad_edge=False)
    table.add_column("layer", overflow="fold")
    for heading in ("before", "after", "change", "/ stderr"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            Text(row.name.removesuffix(".weight")),
            _number(row.alpha_before),
            _number(row.alpha_after),
            _number(row.delta, "+.3f"),
            _number(row.z, "+.1f"),
        )
    return table


def print_pruning(console: Console, pruned: Pruned) -> None:
    """Print how sparse a model was to become, and became, and what it cost.

    Args:
        console: Where to print.
        pruned: The pruned model.
    """
    plan, units = pruned.plan, pruned.units
    console.print(Text(f"{plan.source}", style="bold"), soft_wrap=True)
    console.print(
        f"{_count(len(plan.layers), 'weight matrix', 'weight matrices')} pruned by {pruned.method}; "
        f"budget shared out by {plan.method}" + (f", in groups of {plan.group}" if plan.group else ""),
        highlight=False,
    )
    shown = _units_shown(units)
    console.print(_units_table(shown))
    if len(shown) < len(units):
        hidden = _count(len(units) - len(shown), "other", "others")
        console.print(f"{hidden} not shown; --report saves all", style="dim")
    console.print(
        f"{pruned.zeros:,} of {pruned.weights:,} weights are zero: {pruned.zeros / pruned.weights:.1%}", highlight=False
    )
    if pruned.perplexity is not None:
        print_perplexities(console, *pruned.perplexity)


def print_perplexities(console: Console, before: Measured, after: Measured) -> None:
    """Print how perplexity changed.

    Args:
        console: Where to print.
        before: That of the first model.
        after: That of the second.
    """
    text = f"perplexity {in_words(before)} before, {in_words(after)} after"
    console.print(text, highlight=False, soft_wrap=True)


def _units_shown(units: Sequence[UnitSparsity]) -> list[UnitSparsity]:
    """All of a small model; of a large one the least and most sparse, and those that are not as planned."""
    if len(units) <= _ALL_UNITS:
        return list(units)
    ranked = sorted(units, key=lambda unit: unit.achieved)
    chosen = {unit.name for unit in (*ranked[:_EXTREMES], *ranked[-_EXTREMES:])}
    return [unit for unit in units if unit.name in chosen or _off_plan(unit)]


def _off_plan(unit: UnitSparsity) -> bool:
    return abs(unit.achieved - unit.planned) > _OFF_PLAN


def _units_table(units: Sequence[UnitSparsity]) -> Table:
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    table.add_column("unit", overflow="fold")
    for heading in ("alpha", "stderr", "planned", "achieved"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for unit in units:
        table.add_row(
            Text(unit.name.removesuffix(".weight")),
            "-" if unit.alpha is None else _number(unit.alpha),
            "-" if unit.stderr is None else _number(unit.stderr),
            f"{unit.planned:.1%}",
            Text(f"{unit.achieved:.1%}", style="yellow" if _off_plan(unit) else ""),
            _BARS[-1] * round(_BAR * unit.achieved),
        )
    return table
