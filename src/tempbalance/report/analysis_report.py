"""An analysis as tables on the terminal and as one HTML page, for readers who are new to alpha."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from tempbalance.analysis import Analysis
from tempbalance.analysis.deviations import compare_similar
from tempbalance.balance import Refresh
from tempbalance.metrics import mean_alpha
from tempbalance.report.figures import alpha_figure, esd_figure, history_figure, thinned
from tempbalance.report.page import (
    Cell,
    Html,
    escaped,
    findings_html,
    fragment,
    in_words,
    model_name,
    render_page,
    table_html,
)
from tempbalance.report.page import number as cell
from tempbalance.report.terminal import (
    count,
    findings_title,
    number,
    plain_table,
    plain_text,
    print_findings,
    print_names,
    print_table,
    sparkline,
)
from tempbalance.types import LayerStats, Severity, Status

__all__ = ["coverage_text", "print_analysis", "print_overview", "render_analysis", "summary_sentences", "view_analysis"]

_NAMES = 3
_ROWS = 10  # in a notebook
_ALL = 12  # models of up to this many layers are printed in full
_STATUS = {
    Status.OK: "fitted",
    Status.RANDOM: "looks untrained",
    Status.TOO_FEW: "too few eigenvalues",
    Status.CONSTANT: "constant spectrum",
    Status.NO_TAIL: "no tail",
    Status.ZERO: "all zero",
}


def render_analysis(analysis: Analysis, history: Sequence[Refresh] = ()) -> str:
    """Return an analysis as one HTML page, with its style, script, plotly.js and data; it loads no other file.

    ``history`` is ``balancer.history``: alphas and multipliers are drawn over the steps. A long history is thinned to
    at most 400 evenly spaced refreshes.
    """
    layers = analysis.layers
    findings = [*analysis.findings, *(history[-1].findings if history else ())]
    fitted = [index for index, layer in enumerate(layers) if math.isfinite(layer.alpha)]
    figures = {"depth": alpha_figure(analysis)} | ({"history": history_figure(history)} if history else {})
    return render_page(
        "analysis",
        kicker="Spectra of the weight matrices, layer by layer",
        title=model_name(analysis.source),
        source=analysis.source,
        figures=figures,
        layers=[_selected(layer) for layer in layers],
        verdict=findings_title(findings),
        findings=findings_html(findings) if findings else "",
        headline=" ".join(filter(None, [summary_sentences(layers), coverage_text(analysis, "The rows")])),
        facts=_facts(analysis, len(fitted)),
        history=fragment("history", facts=_history_facts(history)) if history else "",
        hidden=Html("" if layers else "hidden"),
        first=str(min(fitted, key=lambda index: layers[index].alpha, default=0)),
        statuses=_statuses(layers),
        table=_table(layers),
        skipped=_skipped(analysis),
        settings=analysis.settings,
    )


def view_analysis(analysis: Analysis) -> str:
    """Return what a notebook shows of an analysis: the findings, the summary and the first rows, as HTML."""
    layers, findings = analysis.layers, analysis.findings
    found = f"<p>{escaped(findings_title(findings))}</p>{findings_html(findings) if findings else ''}"
    more = f"{len(layers) - _ROWS} more layers: .to_pandas() has all." if len(layers) > _ROWS else ""
    before = (summary_sentences(layers), coverage_text(analysis, "The rows"))
    first, last = ("".join(f"<p>{escaped(text)}</p>" for text in texts if text) for texts in (before, (more,)))
    return f"<div><b>{escaped(analysis.source)}</b>{found}{first}<table>{_table(layers[:_ROWS])}</table>{last}</div>"


def summary_sentences(layers: Sequence[LayerStats]) -> str:
    """Summarise an analysis in one to three sentences of plain text: fitted layers, alpha, untrained layers."""
    if not layers:
        return "No weight matrix was analysed."
    alphas = [layer.alpha for layer in layers if layer.status is Status.OK]
    sentences = []
    if alphas:
        sentences.append(
            f"{len(alphas)} of {len(layers)} weight matrices have a fitted tail: median alpha {median(alphas):.2f}, "
            f"range {min(alphas):.2f} to {max(alphas):.2f}."
        )
    else:
        sentences.append(f"None of the {len(layers)} weight matrices has a tail that could be fitted.")
    random = [layer.name for layer in layers if layer.status is Status.RANDOM]
    if random:
        shown = ", ".join(random[:_NAMES]) + (" and others" if len(random) > _NAMES else "")
        verb = "looks" if len(random) == 1 else "look"
        sentences.append(f"{len(random)} {verb} untrained, like a random matrix: {shown}.")
    rest = len(layers) - len(alphas) - len(random)
    if rest:
        sentences.append(f"{rest} without an alpha for other reasons: see the table.")
    return " ".join(sentences)


def coverage_text(analysis: Analysis, subject: str) -> str:
    """Return how many of the model's parameters the rows cover; empty if it is unknown, or more than the model has."""
    size = analysis.size
    if size is None or not 0 < analysis.covered <= size.parameters:
        return ""  # the matrix of a factorised weight or of an update has more entries than its factors
    share = analysis.covered / size.parameters
    return f"{subject} cover {analysis.covered:,} of the model's {size.parameters:,} parameters ({share:.1%})."


def _facts(analysis: Analysis, fitted: int) -> str:
    spreads = {"imbalance over layers": analysis.imbalance, "over blocks": analysis.block_imbalance}
    pieces = [
        f"{len(analysis.layers)} weight matrices",
        f"estimator {in_words(analysis.settings.get('estimator', 'unknown'))}",
        *(f"{name} {value:.2f}" for name, value in spreads.items() if math.isfinite(value)),
    ]
    missing = len(analysis.layers) - fitted
    without = f" Not drawn: {missing} without an alpha (see the table)." if missing else ""
    select = " Click a point or a row of the table to select a layer; arrow keys move in the table."
    return f"{', '.join(pieces)}. Bars are standard errors.{without}{select}"


def _selected(layer: LayerStats) -> dict[str, Any]:
    """Return what the page shows of a layer that is selected."""
    fit = f"alpha {layer.alpha:.2f} ± {layer.stderr:.2f}, KS distance {layer.ks_distance:.3f}"
    pooled = f", {layer.num_matrices} matrices pooled" if layer.num_matrices > 1 else ""
    return {
        "name": layer.name,
        "verdict": fit if layer.status is Status.OK else layer.status.message,
        "detail": (
            f"{layer.kind} {_shape(layer)}{pooled}; {layer.num_eigenvalues} eigenvalues, {layer.num_zero} are zero, "
            f"largest {cell(layer.lambda_max, '.4g')}; MP edge {cell(layer.mp_edge, '.4g')}, {layer.num_spikes} "
            f"spikes above it; stable rank {cell(layer.stable_rank, '.4g')}, entropy "
            f"{cell(layer.spectral_entropy, '.4g')}; KS distance from a random matrix "
            f"{cell(layer.mp_ks_distance, '.4g')}."
        ),
        "figure": esd_figure(layer),
    }


def _shape(layer: LayerStats) -> str:
    return "x".join(map(str, layer.shape))


def _statuses(layers: Sequence[LayerStats]) -> Html:
    found = dict.fromkeys(layer.status for layer in layers)
    return Html("".join(f'<option value="{status.value}">{_STATUS[status]}</option>' for status in found))


_COLUMNS: dict[str, Callable[[LayerStats], str | Cell]] = {
    "layer": lambda layer: layer.name,
    "kind": lambda layer: layer.kind,
    "shape": _shape,
    "status": lambda layer: Cell(_STATUS[layer.status], "" if layer.status is Status.OK else layer.status.message),
    "alpha": lambda layer: cell(layer.alpha),
    "stderr": lambda layer: cell(layer.stderr),
    "KS": lambda layer: cell(layer.ks_distance, ".3f"),
    "in tail": lambda layer: str(layer.num_tail),
    "stable rank": lambda layer: cell(layer.stable_rank, ".1f"),
    "spikes": lambda layer: str(layer.num_spikes),
    "MP distance": lambda layer: cell(layer.mp_ks_distance, ".3f"),
}


def _table(layers: Sequence[LayerStats]) -> Html:
    rows = ([text(layer) for text in _COLUMNS.values()] for layer in layers)
    groups = [layer.status.value for layer in layers]
    return table_html([*_COLUMNS], rows, text=("layer", "kind", "status"), groups=groups)


def _by_reason(analysis: Analysis) -> dict[str, list[str]]:
    """Return the names of the skipped weights by reason."""
    groups: dict[str, list[str]] = {}
    for name, reason in analysis.skipped:
        groups.setdefault(reason, []).append(name)
    return groups


def _skipped(analysis: Analysis) -> Html:
    groups = _by_reason(analysis)
    texts = "".join(
        f'<p>{len(names)}: {escaped(reason)}</p><p class="facts">{escaped(", ".join(names))}</p>'
        for reason, names in groups.items()
    )
    return Html(f'<section id="skipped"><h2>Not analysed</h2>{texts}</section>' if groups else "")


def _history_facts(history: Sequence[Refresh]) -> str:
    drawn = thinned(history)
    units = {unit.name: unit for refresh in drawn for unit in refresh.units if math.isfinite(unit.alpha)}
    without = [unit.name for unit in history[-1].units if unit.name not in units]
    return (
        f"{count(len(history[-1].units), 'unit', 'units')}, {count(len(history), 'refresh', 'refreshes')} from step "
        f"{history[0].step} to {history[-1].step}"
        + (f", {len(drawn)} drawn" if len(drawn) < len(history) else "")
        + f"; imbalance {cell(history[0].imbalance, '.3f')} at the first, "
        f"{cell(history[-1].imbalance, '.3f')} at the last."
        + (f" Without an alpha: {', '.join(without)}." if without else "")
        + " Blue = input, red = output; hover for names."
    )


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
        print_table(console, _layers_table(rows, kinds, title))
    hidden = len(analysis.layers) - len(rows)
    if hidden:
        console.print(f"{count(hidden, 'other layer', 'other layers')} not shown; --out saves all", style="dim")
    for reason, names in _by_reason(analysis).items():
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
            _shape(layer),
            number(layer.alpha),
            number(layer.stderr),
            plain_text(found or ("" if layer.status is Status.OK else layer.status.value), "yellow" if found else ""),
        )
    return table
