"""A pruned model as a table on the terminal and as one HTML page: sparsities, and perplexity before and after."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tempbalance._files import dumps, write_atomically
from tempbalance.compress import Perplexity, PruningResult, UnitSparsity
from tempbalance.report.allocation_terminal import print_compared, units_shown
from tempbalance.report.figures import pruned_alpha_figure, pruning_figure
from tempbalance.report.page import Html, findings_html, model_name, render_page, table_html
from tempbalance.report.page import number as cell
from tempbalance.report.terminal import bar, count, number, plain_table, plain_text, print_findings, print_table

__all__ = ["headline", "print_perplexities", "print_pruning", "render_pruning", "save_pruning_report"]

_DEVIATION = 0.005  # of the weights of a unit


def print_pruning(console: Console, result: PruningResult) -> None:
    """Print the allocated and the achieved sparsity of each unit, and the perplexity if it was measured."""
    allocation, units = result.allocation, result.units
    console.print(plain_text(allocation.source, "bold"), soft_wrap=True)
    pruned = f"{count(len(allocation.layers), 'weight matrix', 'weight matrices')} pruned by {result.method}"
    groups = f", in groups of {allocation.group}" if allocation.group else ""
    console.print(plain_text(f"{pruned}; allocation by {allocation.method}{groups}"))
    print_findings(console, allocation.findings)
    print_compared(console, allocation)
    extremes = units_shown(units, lambda unit: unit.achieved)
    shown = [unit for unit in units if unit in extremes or _deviates(unit)]
    print_table(console, _units_table(shown))
    if len(shown) < len(units):
        hidden = count(len(units) - len(shown), "other", "others")
        console.print(f"{hidden} not shown; --report saves all", style="dim")
    of_all, achieved, target = _of_all(result), f"{result.zeros / result.weights:.1%}", f"{allocation.budget:.1%}"
    console.print(
        f"{result.zeros:,} of {result.weights:,} weights are zero: {achieved}"
        + (f" (target {target})" if achieved != target else "")
        + (f", {of_all}" if of_all else ""),
        highlight=False,
    )
    if result.perplexity is not None:
        print_perplexities(console, *result.perplexity)


def _of_all(result: PruningResult) -> str:
    """Return the zeros as a fraction of all parameters of the model, as text; empty if their number is unknown."""
    size, share = result.allocation.size, result.zeros_of_all
    return "" if size is None or share is None else f"{share:.1%} of all {size.parameters:,} parameters"


def print_perplexities(console: Console, before: Perplexity, after: Perplexity) -> None:
    """Print the perplexity of a model before and after it was changed."""
    console.print(f"perplexity {before} before, {after} after", highlight=False, soft_wrap=True)


def _deviates(unit: UnitSparsity) -> bool:
    return abs(unit.achieved - unit.planned) > _DEVIATION


def _units_table(units: Sequence[UnitSparsity]) -> Table:
    table = plain_table("unit", "alpha", "stderr", "planned", "achieved")
    table.add_column("", no_wrap=True)
    for unit in units:
        table.add_row(
            plain_text(unit.name.removesuffix(".weight")),
            number(unit.alpha),
            number(unit.stderr),
            f"{unit.planned:.1%}",
            plain_text(f"{unit.achieved:.1%}", "yellow" if _deviates(unit) else ""),
            bar(unit.achieved),
        )
    return table


def headline(result: PruningResult) -> str:
    """Return the result in two or three sentences of plain text."""
    units = sorted(result.units, key=lambda unit: unit.achieved)
    sentences = [
        f"{result.zeros:,} of {result.weights:,} weights are zero: {result.zeros / result.weights:.1%}, "
        f"target {result.allocation.budget:.1%}."
    ]
    if _of_all(result):
        sentences.append(f"These are {_of_all(result)}.")
    if len(units) > 1:
        low, high = units[0], units[-1]
        sentences.append(f"It ranges from {low.achieved:.1%} in {low.name} to {high.achieved:.1%} in {high.name}.")
    if result.perplexity is not None:
        before, after = result.perplexity
        sentences.append(f"Perplexity was {before} before and is {after} after pruning.")
    return " ".join(sentences)


def render_pruning(result: PruningResult) -> str:
    """Render a pruned model as one HTML page."""
    allocation = result.allocation
    settings: dict[str, Any] = {"pruning criterion": result.method, "allocation": allocation.method}
    if allocation.group is not None:
        settings["zeros in groups of"] = allocation.group
    if allocation.estimate:
        settings["estimate of a search"] = allocation.estimate
    settings |= {f"calibration, {key}": value for key, value in (result.calibration or {}).items()}
    rows = [
        (
            layer.name,
            "x".join(map(str, layer.shape)),
            cell(layer.alpha),
            cell(layer.stderr),
            f"{layer.sparsity:.4f}",
            f"{result.achieved[layer.name]:.4f}",
        )
        for layer in allocation.layers
    ]
    columns = ("layer", "shape", "alpha", "stderr", "planned", "achieved")
    return render_page(
        "pruning",
        kicker="Pruned model: the sparsity of each layer",
        title=model_name(allocation.source),
        source=allocation.source,
        figures={"sparsity": pruning_figure(result), "alpha": pruned_alpha_figure(allocation)},
        headline=headline(result),
        findings=findings_html(allocation.findings) if allocation.findings else "",
        perplexity=Html(_perplexity_table(result) + _compared_table(result)),
        facts=_alpha_facts(result),
        table=table_html(columns, rows, text=("layer", "shape")),
        settings=settings | dict(allocation.settings),
    )


def _perplexity_table(result: PruningResult) -> Html:
    if result.perplexity is None:
        return Html("")
    rows = [
        (name, cell(found.value, ".3f"), cell(found.stderr, ".3f"), str(found.tokens))
        for name, found in zip(("before", "after"), result.perplexity, strict=True)
    ]
    return _scrolled("perplexity", ("model", "perplexity", "stderr", "tokens"), rows)


def _compared_table(result: PruningResult) -> Html:
    scores = result.allocation.compared
    rows = [(score.method, cell(score.kl, ".4f"), cell(score.perplexity, ".3f")) for score in scores]
    columns = ("allocation, on the calibration text", "KL from dense", "perplexity")
    return _scrolled("compared", columns, rows) if rows else Html("")


def _scrolled(name: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Html:
    """Return a table of numbers by the text in its first column, which scrolls if it is too wide."""
    table = table_html(columns, rows, text=columns[:1])
    return Html(f'<div class="scroll"><table id="{name}">{table}</table></div>')


def _alpha_facts(result: PruningResult) -> str:
    fitted = sorted((unit for unit in result.units if math.isfinite(unit.alpha)), key=lambda unit: unit.alpha)
    ends = [f"{unit.alpha:.2f} ± {cell(unit.stderr)} in {unit.name}" for unit in (*fitted[:1], *fitted[-1:])]
    missing = sum(not math.isfinite(layer.alpha) for layer in result.allocation.layers)
    return (
        (f"Mean alpha ranges from {ends[0]} to {ends[1]}. " if len(fitted) > 1 else "")
        + "Bars are standard errors."
        + (f" Not drawn: {missing} without an alpha." if missing else "")
    )


def save_pruning_report(result: PruningResult, path: Path) -> None:
    """Save a pruned model as an HTML page if the suffix is ``.html``, else as JSON."""
    text = render_pruning(result) if path.suffix.lower() == ".html" else dumps(result.to_dict())
    write_atomically(path, text.encode())
