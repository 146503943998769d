"""Layers of an analysis, grouped into the units that get one value each."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Literal, TypeVar

from tempbalance.analysis.result import Analysis
from tempbalance.compress.allocation import Allocation, Quantity
from tempbalance.compress.layer_allocation import LayerAllocation
from tempbalance.errors import AllocationError
from tempbalance.layers import Weight
from tempbalance.layers.routers import find_routers
from tempbalance.metrics import mean_alpha
from tempbalance.spectra.matrices import MATRIX_NDIM
from tempbalance.types import LayerStats

__all__ = [
    "MAX_POWER",
    "BudgetUnit",
    "find_units",
    "linear_shape",
    "make_allocation",
    "module_name",
    "relative_alphas",
    "routers_of",
    "values_of_layers",
]

_logger = logging.getLogger("tempbalance")

MAX_POWER = 50  # of a relative alpha; larger ones change no decision and overflow
_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetUnit:
    """A layer, or all layers of a block, with its mean alpha (see ``mean_alpha``)."""

    name: str
    layers: tuple[LayerAllocation, ...]  # in model order, without a value yet
    rows: tuple[LayerStats, ...]  # of the analysis
    alpha: float
    stderr: float

    @property
    def numel(self) -> int:
        """Number of weights."""
        return sum(layer.numel for layer in self.layers)


def find_units(
    analysis: Analysis,
    unit: Literal["layer", "block"],
    kinds: Collection[str] | None = None,
    without: Collection[str] = (),
) -> tuple[list[LayerAllocation], list[BudgetUnit]]:
    """Return the layers, without a value yet, and the units of the weights inside blocks, or else of all weights."""
    # ``kinds``: kinds of weights that count, the parts of fused weights joined to modules, with the shape of nn.Linear;
    # routers of experts, which quantizers and LoRA leave as they are, do not. None for every row, with its own shape.
    # ``without``: names of rows that get no value.
    if unit not in ("layer", "block"):
        raise AllocationError(f"unit must be 'layer' or 'block', got {unit!r}")
    rows = [row for row in analysis.layers if row.name not in without]
    if kinds is not None:
        routers = routers_of(analysis)
        rows = [row for row in rows if row.kind in kinds and len(row.shape) == MATRIX_NDIM and row.name not in routers]
    inside = [row for row in rows if row.block is not None]
    if kinds is None and not inside and analysis.size and analysis.size.block_weights:
        raise AllocationError(f"no weight inside the blocks of {analysis.source} was analysed: see analysis.skipped")
    rows = inside or rows
    if not rows:
        which = f" of kind {' or '.join(sorted(kinds))}" if kinds else ""
        raise AllocationError(f"the analysis of {analysis.source} has no weight{which} to allocate a budget to")
    parts: dict[str, list[LayerStats]] = {}
    for row in rows:
        parts.setdefault(row.name if kinds is None else module_name(row), []).append(row)
    layers = [_layer(name, found, unit, joined=kinds is not None) for name, found in parts.items()]
    members: dict[str, list[LayerAllocation]] = {}
    for layer in layers:
        members.setdefault(layer.unit, []).append(layer)
    units = []
    for name, own in members.items():
        joined = [row for layer in own for row in parts[layer.name]]
        alpha, stderr = mean_alpha((row.alpha, row.stderr) for row in joined)
        units.append(BudgetUnit(name=name, layers=tuple(own), rows=tuple(joined), alpha=alpha, stderr=stderr))
    return layers, units


def routers_of(analysis: Analysis) -> set[str]:
    """Return the names of the routers of experts in an analysis."""
    return find_routers([*(row.name for row in analysis.layers), *(row.name for row in analysis.skipped)])


def relative_alphas(units: Sequence[BudgetUnit]) -> list[float]:
    """Divide the alpha of each unit by the median of all; a unit without an alpha gets 1."""
    middle = median([unit.alpha for unit in units if math.isfinite(unit.alpha)] or [1.0])
    return [unit.alpha / middle if math.isfinite(unit.alpha) else 1.0 for unit in units]


def values_of_layers(
    layers: Sequence[LayerAllocation], units: Sequence[BudgetUnit], values: Sequence[_Number]
) -> list[_Number]:
    """Return for every layer the value of its unit."""
    by_unit = {unit.name: value for unit, value in zip(units, values, strict=True)}
    return [by_unit[layer.unit] for layer in layers]


def make_allocation(
    analysis: Analysis,
    layers: Sequence[LayerAllocation],
    amounts: Sequence[float],
    quantity: Quantity,
    left_out: Sequence[LayerStats] = (),
    *,
    quiet: bool = False,
    **head: Any,
) -> Allocation:
    """Put zeros, bits or a rank into every layer; ``head`` is the rest of the fields of the allocation."""
    # ``left_out``: rows that get no value on purpose. ``quiet``: findings are not logged, of one method among many.
    field = "zeros" if quantity == "sparsity" else quantity
    given: list[dict[str, Any]] = [{field: amount} for amount in amounts]
    size = analysis.size
    if size is not None:
        weights, inside = (
            sum(math.prod(row.shape) for row in rows)
            for rows in (left_out, [row for row in left_out if row.block is not None])
        )
        size = size._replace(weights=size.weights - weights, block_weights=size.block_weights - inside)
    allocation = Allocation(
        source=analysis.source,
        quantity=quantity,
        layers=tuple(replace(layer, **amount) for layer, amount in zip(layers, given, strict=True)),
        size=size,
        revision=analysis.settings.get("revision"),
        settings=dict(analysis.settings),
        **head,
    )
    for finding in () if quiet else allocation.findings:
        _logger.warning("%s: %s", finding.message, finding.next_step)
    return allocation


def module_name(row: LayerStats | Weight) -> str:
    """Return the name of the module of a weight; an expert, and a part of it, has a name of its own."""
    return row.name if row.kind == "experts" else row.name.partition(":")[0].removesuffix(".weight")


def linear_shape(weight: LayerStats | Weight) -> tuple[int, ...]:
    """Return the shape ``(outputs, inputs)`` of a matrix, also of one that is stored as ``(inputs, outputs)``."""
    return weight.shape[::-1] if weight.transposed else weight.shape


def _layer(name: str, parts: Sequence[LayerStats], unit: str, *, joined: bool) -> LayerAllocation:
    alpha, stderr = mean_alpha((part.alpha, part.stderr) for part in parts)
    owner = parts[0].block if unit == "block" else None
    shape = _joined_shape([linear_shape(part) for part in parts]) if joined else parts[0].shape
    return LayerAllocation(name=name, unit=owner or name, shape=shape, alpha=alpha, stderr=stderr)


def _joined_shape(parts: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    if len(parts) == 1:
        return parts[0]
    # Along the outputs, unless the shapes rule that out: parts of (inputs, outputs) in an analysis of an older version.
    axis = 0 if len({part[1] for part in parts}) == 1 else 1
    shape = list(parts[0])
    shape[axis] = sum(part[axis] for part in parts)
    return tuple(shape)
