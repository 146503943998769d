"""The HTML report of an analysis, for readers who are new to alpha."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch

from tempbalance.analysis import Analysis
from tempbalance.balance import Refresh
from tempbalance.metrics import mp_cdf, mp_edges
from tempbalance.report.page import render_page
from tempbalance.types import LayerStats, Status

__all__ = ["coverage_text", "render_analysis", "summary_sentences"]

_DIGITS = 5
_CURVE_POINTS = 48
_HISTORY_POINTS = 400  # more points than pixels would not be seen
_NAMES = 3


def render_analysis(analysis: Analysis, history: Sequence[Refresh] = ()) -> str:
    """Render an analysis as one HTML page.

    Args:
        analysis: The analysis.
        history: ``balancer.history``: alphas and multipliers are drawn over the steps. A long history is thinned to 400
            evenly spaced refreshes.

    Returns:
        HTML with its style, script, plotly.js and data; the page loads no other file.
    """
    return render_page(
        "analysis",
        title=f"Spectra of {analysis.source}",
        data=_data(analysis) | {"history": _history(history)},
        source=analysis.source,
        headline=" ".join(filter(None, [summary_sentences(analysis.layers), coverage_text(analysis, "The rows")])),
    )


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


def _type_in_block(layer: LayerStats) -> str:
    """Return the name of a layer within its block, such as ``attention.self.query``, or its kind outside blocks."""
    if layer.block is None:
        return f"outside blocks ({layer.kind})"
    return layer.name.removeprefix(f"{layer.block}.").removesuffix(".weight")


def _data(analysis: Analysis) -> dict[str, Any]:
    groups: dict[str, list[str]] = {}
    for name, reason in analysis.skipped:
        groups.setdefault(reason, []).append(name)
    return {
        "source": analysis.source,
        "settings": {key: str(value) for key, value in analysis.settings.items()},
        "imbalance": _number(analysis.imbalance),
        "blockImbalance": _number(analysis.block_imbalance),
        "layers": [_row(layer) for layer in analysis.layers],
        "skipped": [{"reason": reason, "names": names} for reason, names in groups.items()],
    }


def _row(layer: LayerStats) -> dict[str, Any]:
    return {
        "name": layer.name,
        "type": _type_in_block(layer),
        "kind": layer.kind,
        "block": layer.block,
        "shape": "x".join(map(str, layer.shape)),
        "status": layer.status.value,
        "message": layer.status.message,
        "alpha": _number(layer.alpha),
        "stderr": _number(layer.stderr),
        "xmin": _number(layer.xmin),
        "numTail": layer.num_tail,
        "ks": _number(layer.ks_distance),
        "lambdaMax": _number(layer.lambda_max),
        "stableRank": _number(layer.stable_rank),
        "entropy": _number(layer.spectral_entropy),
        "mpEdge": _number(layer.mp_edge),
        "numSpikes": layer.num_spikes,
        "mpKs": _number(layer.mp_ks_distance),
        "numEigenvalues": layer.num_eigenvalues,
        "numZero": layer.num_zero,
        "numMatrices": layer.num_matrices,
        "eigenvalues": [_number(value) for value in layer.esd.eigenvalues],
        "ranks": list(layer.esd.ranks),
        "random": _random_matrix(layer),
    }


def _random_matrix(layer: LayerStats) -> list[list[float | None]]:
    """Return points of the survival function of a random matrix of the same shape and variance (Marchenko-Pastur)."""
    rows, columns = layer.shape[:2]
    if not layer.lambda_max > 0 or layer.num_windows > 1 or layer.coverage < 1:  # a window has another shape
        return [[], []]
    variance = 10 ** (2 * layer.log10_frobenius_norm) / (layer.num_matrices * rows * columns)
    low, high = mp_edges((rows, columns), variance)
    x = torch.logspace(math.log10(max(low, high * 1e-5)), math.log10(high), _CURVE_POINTS, dtype=torch.float64)
    y = 1 - mp_cdf(x, (rows, columns), variance)
    return [[_number(value) for value in curve] for curve in (x[y > 0].tolist(), y[y > 0].tolist())]


def _history(history: Sequence[Refresh]) -> dict[str, Any] | None:
    """Return the alphas and multipliers of each unit over the steps."""
    if not history:
        return None
    last = len(history) - 1
    count = min(last, _HISTORY_POINTS - 1)
    shown = [history[round(i * last / count)] for i in range(count + 1)] if count else [history[0]]
    states = [{unit.name: unit for unit in refresh.units} for refresh in shown]
    names = list(dict.fromkeys(name for state in states for name in state))
    return {
        "refreshes": len(history),
        "steps": [refresh.step for refresh in shown],
        "imbalance": [_number(history[0].imbalance), _number(history[-1].imbalance)],
        "units": [
            {
                "name": name,
                "alphas": [_number(state[name].alpha) if name in state else None for state in states],
                "multipliers": [_number(state[name].multiplier) if name in state else None for state in states],
            }
            for name in names
        ],
    }


def _number(value: float) -> float | None:
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
