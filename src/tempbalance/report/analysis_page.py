"""The analysis as one HTML page, for someone who has never heard of alpha."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch

from tempbalance.metrics import mp_cdf, mp_edges
from tempbalance.report.page import render_page
from tempbalance.report.protocol import RefreshRow, Report
from tempbalance.types import LayerStats, Status

__all__ = ["render_html"]

_DIGITS = 5
_CURVE_POINTS = 48
_HISTORY_POINTS = 400  # a page is no wider than that


def render_html(report: Report, history: Sequence[RefreshRow] = ()) -> str:
    """Render an analysis as one page.

    Args:
        report: The analysis.
        history: What a balancer has done in training, drawn over the steps; of a long one evenly spaced refreshes.

    Returns:
        HTML with its style, its script, plotly.js and the data inside; nothing is loaded from anywhere.

    Raises:
        MissingExtraError: plotly is not installed.
    """
    return render_page(
        "analysis",
        title=f"Spectra of {report.source}",
        data=_data(report) | {"history": _history(history)},
        source=report.source,
        headline=headline(report.layers),
    )


def headline(layers: Sequence[LayerStats]) -> str:
    """The finding in words.

    Args:
        layers: All rows.

    Returns:
        One to three sentences, plain text.

    Example:
        >>> headline([])
        'No weight matrix was analysed.'
    """
    if not layers:
        return "No weight matrix was analysed."
    fitted = [layer for layer in layers if layer.status is Status.OK]
    sentences = []
    if fitted:
        alphas = [layer.alpha for layer in fitted]
        sentences.append(
            f"{len(fitted)} of {len(layers)} weight matrices have a tail that was fitted; their alpha is "
            f"{median(alphas):.2f} in the middle and goes from {min(alphas):.2f} to {max(alphas):.2f}."
        )
    else:
        sentences.append(f"None of the {len(layers)} weight matrices has a tail that could be fitted.")
    random = [layer.name for layer in layers if layer.status is Status.RANDOM]
    if random:
        shown = ", ".join(random[:3]) + (" and others" if len(random) > 3 else "")  # noqa: PLR2004
        verb = "looks" if len(random) == 1 else "look"
        sentences.append(f"{len(random)} {verb} untrained, like a random matrix: {shown}.")
    rest = len(layers) - len(fitted) - len(random)
    if rest:
        sentences.append(f"{rest} could not be judged; the table says why.")
    return " ".join(sentences)


def layer_type(layer: LayerStats) -> str:
    """What a layer is within its block: its name without the block's, as in ``attention.self.query``.

    Args:
        layer: The row.

    Returns:
        The type; for a layer outside all blocks its kind.
    """
    if layer.block is None:
        return f"outside blocks ({layer.kind})"
    return layer.name.removeprefix(f"{layer.block}.").removesuffix(".weight")


def _data(report: Report) -> dict[str, Any]:
    groups: dict[str, list[str]] = {}
    for name, reason in report.skipped:
        groups.setdefault(reason, []).append(name)
    return {
        "source": report.source,
        "settings": {key: str(value) for key, value in report.settings.items()},
        "imbalance": _number(report.imbalance),
        "blockImbalance": _number(report.block_imbalance),
        "layers": [_row(layer) for layer in report.layers],
        "skipped": [{"reason": reason, "names": names} for reason, names in groups.items()],
    }


def _row(layer: LayerStats) -> dict[str, Any]:
    return {
        "name": layer.name,
        "type": layer_type(layer),
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
    """Survival function of the Marchenko-Pastur law of a matrix of the same shape and variance, on a few points."""
    rows, columns = layer.shape[:2]
    if not layer.lambda_max > 0 or layer.num_windows > 1 or layer.coverage < 1:  # windows have another shape
        return [[], []]
    variance = 10 ** (2 * layer.log10_frobenius_norm) / (layer.num_matrices * rows * columns)
    low, high = mp_edges((rows, columns), variance)
    x = torch.logspace(math.log10(max(low, high * 1e-5)), math.log10(high), _CURVE_POINTS, dtype=torch.float64)
    y = 1 - mp_cdf(x, (rows, columns), variance)
    return [[_number(value) for value in curve] for curve in (x[y > 0].tolist(), y[y > 0].tolist())]


def _history(history: Sequence[RefreshRow]) -> dict[str, Any] | None:
    """Alphas and multipliers by unit, so that each is a line."""
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
