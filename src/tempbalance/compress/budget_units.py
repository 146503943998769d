"""Rows of an analysis as modules, the things that are quantized or adapted whole, and modules as units of a plan."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Literal

from tempbalance.analysis.result import Analysis
from tempbalance.errors import AllocationError
from tempbalance.types import LayerStats

__all__ = ["MOST_POWER", "Module", "Unit", "find_units"]

MOST_POWER = 50  # of a relative alpha; more decides nothing, and its numbers become too large
_MATRIX_NDIM = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """A linear layer, or one matrix of a stack of experts.

    Attributes:
        name: Of the module (``h.0.attn.c_attn``); of an expert the name in the analysis (``experts.down_proj:3``).
        shape: ``(rows, columns)`` of its whole weight.
        alpha: Mean over its parts, where it is fused; None where there is none.
        rows: Its rows in the analysis.
    """

    name: str
    shape: tuple[int, ...]
    alpha: float | None
    rows: tuple[LayerStats, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """What gets one value: a module, or all modules of a block.

    Attributes:
        name: Of the module or block.
        modules: Its modules, in model order.
        relative_alpha: Mean alpha of its weights over the median of all units; 1 where it has none.
    """

    name: str
    modules: tuple[Module, ...]
    relative_alpha: float


def find_units(analysis: Analysis, kinds: Collection[str], unit: Literal["layer", "block"]) -> list[Unit]:
    """The modules inside blocks, grouped; in a model without blocks all modules.

    Args:
        analysis: What ``analyze`` has found.
        kinds: Which kinds of weights count.
        unit: Whether each module is a unit or each block.

    Returns:
        The units, in model order.

    Raises:
        AllocationError: There is no such weight.
    """
    rows = [row for row in analysis.layers if row.kind in kinds and len(row.shape) == _MATRIX_NDIM]
    rows = [row for row in rows if row.block is not None] or rows
    if not rows:
        raise AllocationError(f"the analysis of {analysis.source} has no weight of kind {' or '.join(sorted(kinds))}")
    groups: dict[str, dict[str, list[LayerStats]]] = {}
    for row in rows:
        module = _module_name(row)
        group = row.block if unit == "block" and row.block is not None else module
        groups.setdefault(group, {}).setdefault(module, []).append(row)
    alphas = [_mean_alpha([row for parts in group.values() for row in parts]) for group in groups.values()]
    middle = median([alpha for alpha in alphas if alpha is not None] or [1.0])
    return [
        Unit(
            name=name,
            modules=tuple(
                Module(name=module, shape=_whole_shape(parts), alpha=_mean_alpha(parts), rows=tuple(parts))
                for module, parts in group.items()
            ),
            relative_alpha=1.0 if alpha is None else alpha / middle,
        )
        for (name, group), alpha in zip(groups.items(), alphas, strict=True)
    ]


def _module_name(row: LayerStats) -> str:
    return row.name if row.kind == "experts" else row.name.partition(":")[0].removesuffix(".weight")


def _mean_alpha(rows: Sequence[LayerStats]) -> float | None:
    alphas = [row.alpha for row in rows if math.isfinite(row.alpha)]
    return fmean(alphas) if alphas else None


def _whole_shape(parts: Sequence[LayerStats]) -> tuple[int, ...]:
    """Of the weight that the parts were cut from."""
    # Along the first axis, as in nn.Linear, unless the parts say otherwise; those of GPT-2's Conv1D are square.
    axis = 0 if len({part.shape[1] for part in parts}) == 1 else 1
    shape = list(parts[0].shape)
    shape[axis] = sum(part.shape[axis] for part in parts)
    return tuple(shape)
