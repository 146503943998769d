"""How sparse each layer is to be, under one global budget; as a plan."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import ClassVar, Literal

from tempbalance.analysis.result import Analysis
from tempbalance.balance.assign import Linear
from tempbalance.compress.allocation import BudgetPlan
from tempbalance.compress.budget import apportion, scale_to_budget, shift_to_budget
from tempbalance.errors import AllocationError
from tempbalance.types import LayerStats

__all__ = ["Allocation", "LayerShare", "allocate_sparsity"]

_logger = logging.getLogger("tempbalance")

_ALMOST = 1e-9  # a value that misses a whole number by this much is meant to be it
_LEAST_SHARE = 1e-12  # of a unit that is not pruned at all: shares are positive


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShare:
    """What one weight gets of the budget.

    Attributes:
        name: Name of the weight, as in the analysis.
        unit: Name of the layer or block that it is pruned with.
        shape: Its shape.
        numel: Number of its entries.
        alpha: Its exponent; None where there is none.
        stderr: Standard error of alpha; None where there is none.
        zeros: How many entries are to be zero.
    """

    name: str
    unit: str
    shape: tuple[int, ...]
    numel: int
    alpha: float | None
    stderr: float | None
    zeros: int

    @property
    def sparsity(self) -> float:
        """Share of zeros, in [0, 1]."""
        return self.zeros / self.numel


@dataclass(frozen=True, kw_only=True)
class Allocation(BudgetPlan[float]):
    """A sparsity for every weight that is to be pruned: a mapping from its name to a number in [0, 1].

    Attributes:
        source: The model that was analysed.
        sparsity: The global target.
        method: How it was shared out, and with which parameters.
        unit: Whether layers or blocks share a sparsity.
        layers: What each weight gets, in model order; their zeros add up to the budget exactly.
        group: M of N:M sparsity: of every M neighbours in a row equally many are zero; None where zeros lie anywhere.
        revision: Commit of a model from the hub, where it is known.
        settings: Of the analysis: estimator, windows, versions.

    Example:
        >>> share = LayerShare(name="a", unit="a", shape=(4, 5), numel=20, alpha=2.0, stderr=0.1, zeros=7)
        >>> plan = Allocation(source="model", sparsity=0.35, method="uniform", unit="layer", layers=(share,))
        >>> plan["a"], len(plan)
        (0.35, 1)
    """

    _share: ClassVar[type[LayerShare]] = LayerShare
    _quantity: ClassVar[str] = "sparsity"

    sparsity: float
    layers: tuple[LayerShare, ...]
    group: int | None = None


def allocate_sparsity(  # noqa: PLR0913  the front door; most are options by keyword
    analysis: Analysis,
    sparsity: float,
    epsilon: float = 0.3,
    *,
    unit: Literal["layer", "block"] = "block",
    method: Literal["alpha", "uniform", "erk", "depth", "owl"] = "alpha",
    outliers: Mapping[str, float] | None = None,
    group: int | None = None,
) -> Allocation:
    """Share a global sparsity out over the weights of a model: heavy-tailed units are pruned less.

    ``"alpha"`` is AlphaPruning (Lu et al., NeurIPS 2024): a unit's share is ``1 - epsilon`` at the smallest alpha and
    ``1 + epsilon`` at the largest, on a straight line between, and all shares are scaled by one factor so that the
    zeros add up to the budget. Where the published formula passes 1 (1.06 for LLaMA-7B at 80 %), the excess is
    redistributed over the other units. Units without an alpha, and all units where alphas are equal, get the share 1.
    However little alphas differ, the line spreads them to its full width; a warning is logged where they differ by no
    more than their standard errors, and where a unit loses every weight.
    The others are baselines: ``"uniform"``; ``"erk"``, the Erdos-Renyi kernel, whose density is in proportion to
    ``(rows + columns) / (rows columns)`` (Evci et al. 2020); ``"depth"``, a straight line from ``1 - epsilon`` for the
    first unit to ``1 + epsilon`` for the last (the arithmetic progression of arXiv 2502.14770); and ``"owl"`` (Yin et
    al., ICML 2024), whose densities differ by up to ``2 epsilon`` (0.08 in the paper) as the blocks' shares of outliers
    do. OWL's code shifts densities so that their plain mean is the target; here the weights add up to the budget.

    Weights inside blocks are pruned, embeddings, head and what lies outside are not; in a model without blocks
    everything that was analysed is.

    Args:
        analysis: What ``analyze`` has found.
        sparsity: Share of zeros among all the weights that are pruned, in [0, 1).
        epsilon: How far shares spread, in [0, 1]; the paper uses 0.2 to 0.3 for Wanda and SparseGPT at 70 %.
        unit: Whether the weights of a block share a sparsity, by their mean alpha, or each has its own.
        method: How shares are chosen.
        outliers: For ``"owl"``: what ``outlier_ratios`` has measured, by name of the block.
        group: M for N:M sparsity, such as 8 for mixed N:8: each unit keeps N of every M neighbours in a row, with N
            such that the whole model comes as near to the budget as whole N allow.

    Returns:
        The plan; its zeros add up to ``round(sparsity * weights)``, but for N:M.

    Raises:
        AllocationError: There is nothing to prune, or a parameter is out of range.

    Example:
        >>> import tempbalance as tb, torch
        >>> from tempbalance.testing import matrix_with_spectrum, pareto_quantiles
        >>> spectra = {f"h.{i}.fc.weight": pareto_quantiles(64, 2.0 + i) for i in range(3)}
        >>> weights = {name: matrix_with_spectrum(spectrum, (64, 64)) for name, spectrum in spectra.items()}
        >>> plan = allocate_sparsity(tb.analyze(weights), sparsity=0.5)
        >>> [round(value, 2) for value in plan.values()]
        [0.35, 0.5, 0.65]
    """
    if not 0 <= sparsity < 1 or not 0 <= epsilon <= 1:
        raise AllocationError(f"sparsity must be in [0, 1) and epsilon in [0, 1], got {sparsity} and {epsilon}")
    inside = [layer for layer in analysis.layers if layer.block is not None]
    layers = inside or analysis.layers
    if not layers:
        raise AllocationError(f"the analysis of {analysis.source} has no weight that could be pruned")
    if group is not None:
        _check_groups(layers, group)
    names = [layer.block if unit == "block" and layer.block is not None else layer.name for layer in layers]
    members: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        members.setdefault(name, []).append(place)
    numels = [math.prod(layer.shape) for layer in layers]
    sizes = [sum(numels[place] for place in places) for places in members.values()]
    total = round(sparsity * sum(sizes))
    units = [[layers[place] for place in places] for places in members.values()]
    if method == "owl":
        values = _by_outliers(list(members), unit, outliers or {}, sizes, total, epsilon)
    else:
        values = _values(method, units, sizes, total, epsilon)
    if method == "alpha":
        _say_what_is_doubtful(list(members), units, values)
    if group is not None:
        values = _of_groups(values, sizes, total, group)
        total = round(sum(value * size for value, size in zip(values, sizes, strict=True)))
    by_unit = dict(zip(members, values, strict=True))
    zeros = apportion([by_unit[name] for name in names], numels, total)
    return Allocation(
        source=analysis.source,
        sparsity=sparsity,
        method=f"{method}, epsilon {epsilon}" if method in {"alpha", "depth", "owl"} else method,
        unit=unit,
        group=group,
        revision=analysis.settings.get("revision"),
        layers=tuple(
            LayerShare(
                name=layer.name,
                unit=name,
                shape=layer.shape,
                numel=numel,
                alpha=layer.alpha if math.isfinite(layer.alpha) else None,
                stderr=layer.stderr if math.isfinite(layer.stderr) else None,
                zeros=count,
            )
            for layer, name, numel, count in zip(layers, names, numels, zeros, strict=True)
        ),
        settings=dict(analysis.settings),
    )


def _values(
    method: str, units: Sequence[Sequence[LayerStats]], sizes: Sequence[int], total: int, epsilon: float
) -> list[float]:
    """The sparsity of every unit."""
    if method == "uniform":
        return [total / sum(sizes)] * len(units)
    if method == "erk":  # of densities
        densities = [_erk(unit) for unit in units]
        return [1 - density for density in scale_to_budget(densities, sizes, sum(sizes) - total)]
    if method == "depth":
        shares = [1 - epsilon + 2 * epsilon * place / max(1, len(units) - 1) for place in range(len(units))]
    elif method == "alpha":
        shares = Linear(1 - epsilon, 1 + epsilon)([_mean_alpha(unit) for unit in units])
    else:
        raise AllocationError(f"method must be 'alpha', 'uniform', 'erk', 'depth' or 'owl', got {method!r}")
    return scale_to_budget([max(share, _LEAST_SHARE) for share in shares], sizes, total)


def _say_what_is_doubtful(names: Sequence[str], units: Sequence[Sequence[LayerStats]], values: Sequence[float]) -> None:
    """Log where a plan by alpha is likely to harm: see docs/results/pruning.md."""
    emptied = [name for name, value in zip(names, values, strict=True) if value > 1 - _ALMOST]
    if emptied:
        _logger.warning("the plan leaves nothing of %s: take a smaller epsilon", ", ".join(emptied))
    judged = [[layer for layer in unit if math.isfinite(layer.alpha)] for unit in units]
    alphas = [fmean(layer.alpha for layer in unit) for unit in judged if unit]
    if len(alphas) < 2:  # noqa: PLR2004
        return
    squares = [sum(layer.stderr**2 for layer in unit) / len(unit) ** 2 for unit in judged if unit]
    spread, error = pstdev(alphas), math.sqrt(fmean(squares))
    if 0 < spread < error:
        _logger.warning(
            "the alphas that the plan is made by differ by no more than their standard errors (%.2g and %.2g): "
            "compare with method='uniform'",
            spread,
            error,
        )


def _by_outliers(
    names: Sequence[str],
    unit: str,
    outliers: Mapping[str, float],
    sizes: Sequence[int],
    total: int,
    epsilon: float,
) -> list[float]:
    """The sparsity of every block by OWL's rule."""
    missing = [name for name in names if name not in outliers]
    if unit != "block" or missing:
        raise AllocationError(
            "method 'owl' needs the outliers of every block: outliers=outlier_ratios(model, calibration), unit='block'"
            + (f"; {missing[0]} has none" if outliers else "")
        )
    least, most = min(outliers[name] for name in names), max(outliers[name] for name in names)
    width = 2 * epsilon / (most - least) if most > least else 0.0
    densities = shift_to_budget([width * outliers[name] for name in names], sizes, sum(sizes) - total)
    return [1 - density for density in densities]


def _check_groups(layers: Sequence[LayerStats], group: int) -> None:
    if group < 2:  # noqa: PLR2004
        raise AllocationError(f"group is M of N:M sparsity, 2 or more, got {group}")
    for layer in layers:
        if len(layer.shape) != 2 or math.prod(layer.shape) % group:  # noqa: PLR2004
            raise AllocationError(f"{layer.name}: {layer.shape} has no rows of groups of {group} weights")


def _of_groups(values: Sequence[float], sizes: Sequence[int], total: int, group: int) -> list[float]:
    """The nearest sparsities of which every ``group`` weights can have the same, whose sum is nearest to the total."""
    steps = [math.floor(value * group + _ALMOST) for value in values]
    order = sorted(range(len(values)), key=lambda i: (steps[i] - values[i] * group, i))
    missing = total - sum(step * size for step, size in zip(steps, sizes, strict=True)) / group
    for i in order:
        if steps[i] < group and sizes[i] / group < 2 * missing:  # one step more comes nearer
            steps[i] += 1
            missing -= sizes[i] / group
    return [step / group for step in steps]


def _mean_alpha(unit: Sequence[LayerStats]) -> float:
    alphas = [layer.alpha for layer in unit if math.isfinite(layer.alpha)]
    return fmean(alphas) if alphas else math.nan


def _erk(unit: Sequence[LayerStats]) -> float:
    """Density of a unit by the Erdos-Renyi kernel, up to a factor."""
    weights = sum(math.prod(layer.shape) for layer in unit)
    return sum(sum(layer.shape) for layer in unit) / weights
