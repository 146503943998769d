"""Allocate LoRA ranks over the layers of a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

from tempbalance.analysis.result import Analysis
from tempbalance.compress.allocation import Allocation
from tempbalance.compress.budget import raise_levels, scale_to_budget
from tempbalance.compress.budget_units import (
    MAX_POWER,
    BudgetUnit,
    find_units,
    make_allocation,
    relative_alphas,
    values_of_layers,
)
from tempbalance.errors import AllocationError, check_integer, check_numbers, check_type

__all__ = ["allocate_ranks"]

_MAX_RANK = 2**16
_KNOWN = 64  # largest eigenvalues of a weight that an analysis keeps
_Method = Literal["alpha", "error", "uniform"]


def allocate_ranks(  # noqa: PLR0913  most are keyword options
    analysis: Analysis,
    rank: int,
    *,
    method: _Method = "alpha",
    low: int = 1,
    high: int | None = None,
    beta: float = 2.5,
    unit: Literal["layer", "block"] = "block",
) -> Allocation:
    """Allocate the parameters of a uniform LoRA rank over the linear layers.

    ``"alpha"``: light-tailed layers get more. The rank is in proportion to ``alpha^beta``, the rule by which AlphaLoRA
    (Qing et al., EMNLP 2024, arXiv:2410.10054) sets the number of LoRA experts of each block. If all experts have one
    rank, that is the total rank of the block. To our knowledge, the rule has not been tested for the rank of a single
    LoRA; we have not tested it either.

    Deviations: the budget counts parameters, not experts; the excess over a bound is redistributed; ranks are rounded
    such that no further rank fits. A unit without an alpha counts as one of median alpha.

    ``"error"``, a baseline: the least sum of the squared errors of the weights, each cut to its rank by a truncated
    SVD; the next rank goes where the next squared singular value per parameter is largest. ``"uniform"``: ``rank``.

    Args:
        analysis: The result of ``analyze``. All its linear layers inside blocks are adapted, except routers of experts
            (in a model without blocks, all linear layers); select fewer to adapt fewer (``analyze(model,
            select="*.q_proj.*")``). A fused weight is one module and needs all its parts.
        rank: The budget is the number of LoRA parameters at this rank, ``sum_i rank (rows_i + columns_i)``.
        method: What decides.
        low: Smallest rank, at least 1.
        high: Largest rank; by default four times ``rank``. At most 64 for ``"error"``, because an analysis keeps the
            largest 64 eigenvalues of each weight.
        beta: For ``"alpha"``: strength of the dependence on alpha; 0 is uniform.
        unit: Whether the modules of a block share a rank, by their mean alpha, or each module has its own.

    Returns:
        The allocation. It has at most as many parameters as the budget, and no further rank fits.

    Raises:
        AllocationError: There is nothing to adapt, a parameter is out of range, or, for ``"error"``, the analysis is of
            windows or of the parts of fused weights.

    Example:
        >>> import tempbalance as tb, torch
        >>> from tempbalance.testing import matrix_with_spectrum, pareto_quantiles
        >>> spectra = {f"h.{i}.fc.weight": pareto_quantiles(64, 2.0 + i / 2) for i in range(3)}
        >>> weights = {name: matrix_with_spectrum(spectrum, (64, 64)) for name, spectrum in spectra.items()}
        >>> dict(allocate_ranks(tb.analyze(weights), rank=8))
        {'h.0.fc': 4, 'h.1.fc': 8, 'h.2.fc': 12}
    """
    check_type("analysis", analysis, Analysis)
    for name, value in (("rank", rank), ("low", low), ("high", rank if high is None else high)):
        check_integer(name, value)
        if value > _MAX_RANK:
            raise AllocationError(f"{name} must be at most {_MAX_RANK}, got {value}")
    check_numbers(beta=beta)
    check_type("method", method, str)
    if method not in get_args(_Method):
        raise AllocationError(f"method must be one of {', '.join(map(repr, get_args(_Method)))}, got {method!r}")
    if high is None:
        high = min(4 * rank, max(rank, _KNOWN)) if method == "error" else 4 * rank
    if not 1 <= low <= rank <= high:
        raise AllocationError(f"ranks must be 1 <= low <= rank <= high, got low {low}, rank {rank}, high {high}")
    if not 0 <= beta <= MAX_POWER:
        raise AllocationError(f"beta must be in [0, {MAX_POWER}], got {beta}")
    layers, units = find_units(analysis, unit, {"linear"})
    sizes = [sum(sum(layer.shape) for layer in each.layers) for each in units]
    budget = rank * sum(sizes)
    if method == "uniform":
        found = [rank] * len(units)
    elif method == "error":
        gains = [_squared_singular_values(each, high) for each in units]
        found = raise_levels(range(low, high + 1), sizes, budget, lambda i, now, _: gains[i][now] / sizes[i])
    else:
        proportions = [alpha**beta for alpha in relative_alphas(units)]
        exact = scale_to_budget(proportions, sizes, budget, low=low, high=high)
        found = raise_levels(range(low, high + 1), sizes, budget, lambda i, now, _: exact[i] - now)
    described = {"alpha": f"alpha^{beta}", "error": "least error", "uniform": "uniform"}[method]
    return make_allocation(
        analysis,
        layers,
        values_of_layers(layers, units, found),
        "rank",
        budget=rank,
        method=described if method == "uniform" else f"{described}, from {low} to {high}",
        unit=unit,
    )


def _squared_singular_values(unit: BudgetUnit, high: int) -> Sequence[float]:
    """Return the squared singular values of the layers of a unit, summed by rank, largest first."""
    if high > _KNOWN:
        raise AllocationError(f"method 'error' needs ranks of at most {_KNOWN}, got high {high}")
    if len(unit.rows) != len(unit.layers) or any(row.num_windows > 1 for row in unit.rows):
        raise AllocationError(
            f"{unit.name}: method 'error' needs the spectra of whole weights: analyse without windows, and fused "
            "weights with select=Select(split=False)"
        )
    tops = [row.esd.eigenvalues[::-1] for row in unit.rows]
    return [math.fsum(top[i] if i < len(top) else 0.0 for top in tops) for i in range(high)]
