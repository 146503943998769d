"""Figures of an analysis: alpha by depth, and the spectrum of a layer with its fitted tail."""

from __future__ import annotations

import math

import torch

from tempbalance.analysis import Analysis
from tempbalance.metrics import mp_cdf, mp_edges
from tempbalance.report.figures.depth_figure import DepthPoint, depth_figure, place_of, type_of
from tempbalance.report.figures.figure_style import ACCENT, SOFT, WARN, Spec, axis, figure, rounded
from tempbalance.types import LayerStats

__all__ = ["alpha_figure", "esd_figure"]

_HEIGHT = 480
_CURVE_POINTS = 48
_DECADES = 1e-5  # of the largest eigenvalue: the smallest ones of a square matrix are many decades below the rest


def alpha_figure(analysis: Analysis) -> Spec:
    """Draw the alpha of every layer, with its standard error, against depth."""
    points = [
        DepthPoint(
            place=place_of(layer.name, layer.block),
            type=type_of(layer.name, layer.block, layer.kind),
            value=layer.alpha,
            error=layer.stderr,
            text=(layer.name, "x".join(map(str, layer.shape)), f"alpha {layer.alpha:.2f} ± {layer.stderr:.2f}"),
            layer=index,
        )
        for index, layer in enumerate(analysis.layers)
    ]
    blocks = {layer.block for layer in analysis.layers if layer.block is not None}
    return depth_figure(points, blocks, "alpha (smaller: heavier tail)")


def esd_figure(layer: LayerStats) -> Spec:
    """Draw the survival function of the spectrum of a layer, with the fitted tail and a random matrix of its shape."""
    traces: list[Spec] = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": "eigenvalues",
            "x": rounded(layer.esd.eigenvalues),
            "y": rounded(rank / layer.num_eigenvalues for rank in layer.esd.ranks),
            "marker": {"size": 5, "color": SOFT},
            "hovertemplate": "eigenvalue %{x:.4g}<br>fraction as large or larger %{y:.3g}<extra></extra>",
        }
    ]
    shapes: list[Spec] = []
    if layer.esd.eigenvalues and layer.mp_edge > 0:
        low = min(layer.esd.eigenvalues[0], layer.mp_edge) / 1.05
        bulk = {"type": "rect", "x0": low, "x1": layer.mp_edge, "fillcolor": SOFT, "opacity": 0.2, "layer": "below"}
        shapes.append({**bulk, "line": {"width": 0}, "name": "bulk (Marchenko-Pastur)"})
    x, y = _random_matrix(layer)
    if x:
        line = {"color": WARN, "dash": "dash", "width": 1.5}
        name = "random matrix of this shape and variance"
        traces.append({"type": "scatter", "mode": "lines", "name": name, "x": x, "y": y, "line": line})
        traces[-1]["hoverinfo"] = "skip"
    if math.isfinite(layer.alpha):
        share = layer.num_tail / layer.num_eigenvalues
        end = share * (layer.lambda_max / layer.xmin) ** (1 - layer.alpha)
        tail = {"x": rounded([layer.xmin, layer.lambda_max]), "y": rounded([share, end])}
        name = f"fitted tail, alpha {layer.alpha:.2f} ± {layer.stderr:.2f}"
        traces.append({"type": "scatter", "mode": "lines", "name": name, **tail, "line": {"color": ACCENT, "width": 3}})
        start = {"type": "line", "x0": layer.xmin, "x1": layer.xmin, "line": {"color": ACCENT, "dash": "dot"}}
        shapes.append({**start, "name": "xmin, start of the tail"})
    view = {}
    if layer.esd.eigenvalues:
        low = max(layer.esd.eigenvalues[0] / 1.3, layer.lambda_max * _DECADES)
        view = {"range": [math.log10(low), math.log10(layer.lambda_max * 1.5)]}
    return figure(
        traces,
        height=_HEIGHT,
        shapes=[{**shape, "yref": "paper", "y0": 0, "y1": 1, "showlegend": True} for shape in shapes],
        xaxis=axis("eigenvalue x", type="log", exponentformat="power", **view),
        yaxis=axis("fraction of eigenvalues ≥ x", type="log", exponentformat="power", dtick=1),
    )


def _random_matrix(layer: LayerStats) -> tuple[list[float | None], list[float | None]]:
    """Return points of the survival function of a random matrix of the same shape and variance (Marchenko-Pastur)."""
    if not layer.lambda_max > 0 or layer.num_windows > 1 or layer.coverage < 1:  # a window has another shape
        return [], []
    small = layer.num_eigenvalues // layer.num_matrices
    large = math.prod(layer.shape) // (layer.num_matrices * small)
    variance = 10 ** (2 * layer.log10_frobenius_norm) / (layer.num_matrices * large * small)
    low, high = mp_edges((large, small), variance)
    x = torch.logspace(math.log10(max(low, high * 1e-5)), math.log10(high), _CURVE_POINTS, dtype=torch.float64)
    y = 1 - mp_cdf(x, (large, small), variance)
    return rounded(x[y > 0].tolist()), rounded(y[y > 0].tolist())
