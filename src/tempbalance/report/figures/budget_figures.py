"""Figures of an allocation and of a pruned model: the value of each layer and unit, by depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tempbalance.compress import Allocation, LayerAllocation, PruningResult
from tempbalance.report.figures.depth_figure import DepthPoint, depth_figure, place_of, type_of
from tempbalance.report.figures.figure_style import ACCENT, Spec, plain, rounded

__all__ = ["allocation_figure", "pruned_alpha_figure", "pruning_figure"]

_TITLES = {"sparsity": "sparsity", "bits": "bits per weight", "rank": "rank", "trainable": "trained"}


def allocation_figure(allocation: Allocation) -> Spec:
    """Draw the value of each layer, and of each unit as a line, against depth."""
    return _budget_figure(allocation, allocation, "allocated")


def pruning_figure(result: PruningResult) -> Spec:
    """Draw the achieved sparsity of each layer, and the planned one of each unit as a line, against depth."""
    return _budget_figure(result.allocation, result.achieved, "achieved")


def pruned_alpha_figure(allocation: Allocation) -> Spec:
    """Draw the alpha of each layer of an allocation, with its standard error, against depth."""
    values = {layer.name: layer.alpha for layer in allocation.layers}
    texts = {layer.name: f"alpha {layer.alpha:.2f} ± {layer.stderr:.2f}" for layer in allocation.layers}
    errors = {layer.name: layer.stderr for layer in allocation.layers}
    return _by_depth(allocation.layers, values, texts, "alpha (smaller: heavier tail)", errors)


def _budget_figure(allocation: Allocation, values: Mapping[str, float], word: str) -> Spec:
    title = _TITLES[allocation.quantity]
    texts = {
        layer.name: f"{title} {values[layer.name]:.4g} {word}, {allocation[layer.name]:.4g} planned"
        for layer in allocation.layers
    }
    spec = _by_depth(allocation.layers, values, texts, title)
    units = allocation.units
    spec["data"].append(
        {
            "type": "scatter",
            "mode": "lines",
            "name": f"planned, by {allocation.unit}",
            "showlegend": True,
            "x": list(range(len(units))),
            "y": rounded(unit.value for unit in units),
            "text": [plain(unit.name) for unit in units],
            "hovertemplate": "%{text}<br>planned %{y:.4g}<extra></extra>",
            "line": {"shape": "hvh", "color": ACCENT, "width": 2},
        }
    )
    return spec


def _by_depth(
    layers: Sequence[LayerAllocation],
    values: Mapping[str, float],
    texts: Mapping[str, str],
    title: str,
    errors: Mapping[str, float] | None = None,
) -> Spec:
    inside = {layer.unit for layer in layers if layer.name.startswith(f"{layer.unit}.") and layer.name != layer.unit}
    points = []
    for index, layer in enumerate(layers):
        block = layer.unit if layer.unit in inside and f"{layer.unit}.weight" != layer.name else None
        points.append(
            DepthPoint(
                place=place_of(layer.unit, block),
                type=type_of(layer.name, block),
                value=values[layer.name],
                error=(errors or {}).get(layer.name, float("nan")),
                text=(layer.name, "x".join(map(str, layer.shape)), texts[layer.name]),
                layer=index,
            )
        )
    return depth_figure(points, inside, title)
