"""Allocate one global sparsity over the weights of a model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from tempbalance.analysis.result import Analysis
from tempbalance.compress.allocation import Allocation
from tempbalance.compress.budget import apportion
from tempbalance.compress.budget_units import (
    BudgetUnit,
    find_units,
    linear_shape,
    make_allocation,
    routers_of,
    values_of_layers,
)
from tempbalance.compress.layer_allocation import LayerAllocation
from tempbalance.compress.sparsity_methods import METHODS, SparsityBudget, SparsityMethod
from tempbalance.errors import AllocationError, check_integer, check_numbers, check_type
from tempbalance.spectra.matrices import MATRIX_NDIM
from tempbalance.types import LayerStats

__all__ = ["AllocatedZeros", "allocate_sparsity", "allocate_zeros", "check_group", "check_parameters"]

_TOLERANCE = 1e-9  # a value this close below a whole number is rounded up to it
_EPSILON = {"alpha": 0.3, "depth": 0.3, "owl": 0.08}  # by default; the other methods have none


def allocate_sparsity(  # noqa: PLR0913  most are keyword options
    analysis: Analysis,
    sparsity: float,
    epsilon: float | None = None,
    *,
    unit: Literal["layer", "block"] = "block",
    method: SparsityMethod = "uniform",
    outliers: Mapping[str, float] | None = None,
    beta: float | None = None,
    group: int | None = None,
    routers: bool = False,
) -> Allocation:
    """Allocate a global sparsity over the weights of a model.

    ``"uniform"``, the default, gives the same sparsity everywhere.

    ``"alpha"`` is AlphaPruning (Lu et al., NeurIPS 2024): the sparsity of a unit is in proportion to ``1 - epsilon`` at
    the smallest alpha, ``1 + epsilon`` at the largest and linear between, scaled to the budget. Where the published
    formula exceeds 1 (1.06 for LLaMA-7B at 80 %), the excess is redistributed over the other units. A unit without an
    alpha has the proportion 1, and so do all units if their alphas are equal. The line spreads any difference between
    alphas to its full width, so a warning is logged if alphas differ by no more than their standard errors, or if a
    unit loses all weights. On our language models it was worse than uniform: docs/results/pruning.md.

    ``"erk"``: density in proportion to ``(rows + columns) / (rows columns)``, the Erdos-Renyi kernel (Evci et al.
    2020). ``"atp"`` (Huang et al., ICML 2025): the sparsity rises by ``beta`` from each block to the next; ``"depth"``,
    the control, is the same line from ``1 - epsilon`` times the mean for the first unit to ``1 + epsilon`` for the
    last. ``"owl"`` (Yin et al., ICML 2024): densities differ by up to
    ``2 epsilon`` (0.08 in the paper), in proportion to the outlier ratios of the blocks. The released code of OWL makes
    the unweighted mean of the densities meet the target; here the number of weights does.

    Weights inside blocks are pruned; embeddings, head and other weights outside blocks are not, and neither are routers
    of experts. In a model without blocks all other analysed weights are pruned.

    Args:
        analysis: The result of ``analyze``.
        sparsity: Fraction of zeros among all weights that are pruned, in [0, 1).
        epsilon: Allowed spread around the mean sparsity (0.3 = +-30 %), in [0, 1], for ``"alpha"``, ``"depth"`` (by
            default 0.3) and ``"owl"`` (0.08). AlphaPruning uses 0.2 to 0.3 for Wanda and SparseGPT at 70 %.
        unit: Whether the weights of a block share a sparsity, by their mean alpha, or each weight has its own.
        method: Allocation method. ``"best"`` and ``"search"`` use the model: see ``measure_sparsity`` and
            ``search_sparsity``.
        outliers: For ``"owl"``: the result of ``outlier_ratios``, by block name.
        beta: For ``"atp"``: the difference in sparsity between consecutive blocks, at most
            ``2 min(sparsity, 1 - sparsity) / (blocks - 1)``.
        group: M of N:M sparsity, such as 8 for mixed N:8: each unit keeps N of every M consecutive inputs, with N such
            that the model comes as near to the budget as integers N allow.
        routers: Whether routers of experts are pruned too; they are small, and experts are chosen by them.

    Returns:
        The allocation. Without ``group`` its zeros add up to ``round(sparsity * weights)`` exactly.

    Raises:
        AllocationError: There is nothing to prune, a parameter is out of range, or the method has no epsilon.

    Example:
        >>> import tempbalance as tb, torch
        >>> from tempbalance.testing import matrix_with_spectrum, pareto_quantiles
        >>> spectra = {f"h.{i}.fc.weight": pareto_quantiles(64, 2.0 + i) for i in range(3)}
        >>> weights = {name: matrix_with_spectrum(spectrum, (64, 64)) for name, spectrum in spectra.items()}
        >>> allocation = allocate_sparsity(tb.analyze(weights), sparsity=0.5, method="alpha")
        >>> [round(value, 2) for value in allocation.values()]
        [0.35, 0.5, 0.65]
    """
    if outliers is not None and method != "owl":
        raise AllocationError(f"outliers have no effect with method {method!r}: leave them out, or choose 'owl'")
    found = allocate_zeros(
        analysis,
        sparsity,
        epsilon,
        unit=unit,
        method=method,
        outliers=outliers,
        beta=beta,
        group=group,
        routers=routers,
    )
    return make_allocation(
        analysis,
        found.layers,
        found.zeros,
        "sparsity",
        found.left_out,
        budget=sparsity,
        method=found.method,
        unit=unit,
        group=group,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocatedZeros:
    """Numbers of zeros of layers, before they become an allocation."""

    layers: Sequence[LayerAllocation]  # in model order, without a value
    zeros: Sequence[int]
    left_out: Sequence[LayerStats]
    method: str  # with its parameters


def allocate_zeros(  # noqa: PLR0913  as allocate_sparsity
    analysis: Analysis,
    sparsity: float,
    epsilon: float | None = None,
    *,
    unit: Literal["layer", "block"],
    method: SparsityMethod,
    outliers: Mapping[str, float] | None = None,
    beta: float | None = None,
    group: int | None = None,
    routers: bool = False,
) -> AllocatedZeros:
    """Compute the zeros of every layer (see ``allocate_sparsity``)."""
    check_type("analysis", analysis, Analysis)
    check_parameters(sparsity, epsilon, method, beta)
    if method in {"search", "best"}:
        name = "search_sparsity" if method == "search" else "measure_sparsity"
        raise AllocationError(f"method {method!r} needs the model and calibration text: {name}(model, ...)")
    epsilon = _EPSILON.get(method, 0.0) if epsilon is None else epsilon
    names = set[str]() if routers else routers_of(analysis)
    left_out = [row for row in analysis.layers if row.name in names]
    layers, units = find_units(analysis, unit, without=[row.name for row in left_out])
    if group is not None:
        _check_groups(units, group)
    sizes = [each.numel for each in units]
    zeros = round(sparsity * sum(sizes))
    values = METHODS[method](
        SparsityBudget(units=units, unit=unit, zeros=zeros, epsilon=epsilon, outliers=outliers or {}, beta=beta)
    )
    if group is not None:
        values = _round_to_groups(values, sizes, zeros, group)
        zeros = round(sum(value * size for value, size in zip(values, sizes, strict=True)))
    given = {"epsilon": epsilon if method in _EPSILON else None, "beta": beta}
    return AllocatedZeros(
        layers=layers,
        zeros=apportion(values_of_layers(layers, units, values), [layer.numel for layer in layers], zeros),
        left_out=left_out,
        method=", ".join([method, *(f"{name} {value}" for name, value in given.items() if value is not None)]),
    )


def check_parameters(sparsity: float, epsilon: float | None, method: str, beta: float | None = None) -> None:
    """Raise an AllocationError if a parameter of ``allocate_sparsity`` is out of range or has no effect."""
    check_numbers(sparsity=sparsity, **{k: v for k, v in {"epsilon": epsilon, "beta": beta}.items() if v is not None})
    check_type("method", method, str)
    if not 0 <= sparsity < 1 or not 0 <= (epsilon or 0.0) <= 1:
        raise AllocationError(f"sparsity must be in [0, 1) and epsilon in [0, 1], got {sparsity} and {epsilon}")
    if method not in get_args(SparsityMethod):
        raise AllocationError(f"method must be one of {', '.join(map(repr, get_args(SparsityMethod)))}, got {method!r}")
    if beta is not None and method != "atp":
        raise AllocationError(f"beta has no effect with method {method!r}: leave it out, or choose 'atp'")
    if epsilon is not None and method not in _EPSILON:
        raise AllocationError(
            f"epsilon has no effect with method {method!r}: leave it out, or choose {', '.join(map(repr, _EPSILON))}"
        )


def _check_groups(units: Sequence[BudgetUnit], group: int) -> None:
    check_integer("group", group)
    if group < 2:  # noqa: PLR2004
        raise AllocationError(f"group is the M of N:M sparsity and must be at least 2, got {group}")
    for row in (row for unit in units for row in unit.rows):
        check_group(row.name, linear_shape(row), group)


def check_group(name: str, shape: tuple[int, ...], group: int) -> None:
    """Raise an AllocationError unless a weight is a matrix ``(outputs, inputs)`` whose inputs are whole groups."""
    if len(shape) != MATRIX_NDIM or shape[1] % group:
        raise AllocationError(
            f"{name}: its inputs cannot be divided into groups of {group} weights; shape {shape}, (outputs, inputs)"
        )


def _round_to_groups(values: Sequence[float], sizes: Sequence[int], zeros: int, group: int) -> list[float]:
    """Round sparsities to multiples of ``1 / group`` whose zeros come nearest to the budget."""
    steps = [math.floor(value * group + _TOLERANCE) for value in values]
    order = sorted(range(len(values)), key=lambda i: (steps[i] - values[i] * group, i))
    missing = zeros - sum(step * size for step, size in zip(steps, sizes, strict=True)) / group
    for i in order:
        if steps[i] < group and sizes[i] / group < 2 * missing:  # one more step comes nearer
            steps[i] += 1
            missing -= sizes[i] / group
    return [step / group for step in steps]
