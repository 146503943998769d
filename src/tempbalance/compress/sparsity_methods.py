"""Allocation methods for sparsity: one function each, from a budget to one sparsity per unit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tempbalance.balance.assign import Linear
from tempbalance.compress.budget import scale_to_budget, shift_to_budget
from tempbalance.compress.budget_units import BudgetUnit
from tempbalance.errors import AllocationError

__all__ = ["METHODS", "SparsityBudget", "SparsityMethod", "largest_beta"]

SparsityMethod = Literal["alpha", "uniform", "erk", "depth", "owl", "atp", "best", "search"]

_ROUNDING = 1e-9
_MIN_PROPORTION = 1e-12  # of a unit that is not pruned at all: proportions must be positive


@dataclass(frozen=True, slots=True, kw_only=True)
class SparsityBudget:
    """The number of zeros to allocate, and the inputs of the allocation methods."""

    units: Sequence[BudgetUnit]
    unit: Literal["layer", "block"]
    zeros: int  # of all units together
    epsilon: float
    outliers: Mapping[str, float]  # by block, for OWL
    beta: float | None  # for ATP

    @property
    def sizes(self) -> list[int]:
        """Number of weights of each unit."""
        return [unit.numel for unit in self.units]


def _uniform(budget: SparsityBudget) -> list[float]:
    return [budget.zeros / sum(budget.sizes)] * len(budget.units)


def _erk(budget: SparsityBudget) -> list[float]:
    """Set densities in proportion to ``sum(shape) / numel`` (Erdos-Renyi kernel)."""
    densities = [sum(sum(layer.shape) for layer in unit.layers) / unit.numel for unit in budget.units]
    return [1 - density for density in scale_to_budget(densities, budget.sizes, sum(budget.sizes) - budget.zeros)]


def _depth(budget: SparsityBudget) -> list[float]:
    """Set sparsities on a straight line from the first unit to the last."""
    low, width, last = 1 - budget.epsilon, 2 * budget.epsilon, max(1, len(budget.units) - 1)
    return _scaled(budget, [low + width * place / last for place in range(len(budget.units))])


def _atp(budget: SparsityBudget) -> list[float]:
    """Set sparsities that rise by beta from each block to the next (ATP: arXiv 2502.14770)."""
    if budget.unit != "block" or budget.beta is None:
        raise AllocationError(
            "method 'atp' needs beta, the step from block to block, and unit='block': pass beta=, or let prune_folder "
            "choose it on calibration text"
        )
    mean, steps = budget.zeros / sum(budget.sizes), max(1, len(budget.units) - 1)
    largest = largest_beta(mean, len(budget.units))
    if not 0 <= budget.beta <= largest + _ROUNDING:
        raise AllocationError(
            f"beta must be in [0, {largest:.4g}] for a sparsity of {mean:.4g} and {steps + 1} blocks, got {budget.beta}"
        )
    return shift_to_budget([budget.beta * place for place in range(len(budget.units))], budget.sizes, budget.zeros)


def largest_beta(sparsity: float, blocks: int) -> float:
    """Return the largest beta of ATP with which no block of equal blocks has a sparsity outside [0, 1]."""
    return 2 * min(sparsity, 1 - sparsity) / max(1, blocks - 1)


def _alpha(budget: SparsityBudget) -> list[float]:
    """Set sparsities on a straight line from the smallest alpha to the largest (AlphaPruning)."""
    line = Linear(1 - budget.epsilon, 1 + budget.epsilon)
    return _scaled(budget, line([unit.alpha for unit in budget.units]))


def _owl(budget: SparsityBudget) -> list[float]:
    """Set densities whose differences are in proportion to those of the outlier ratios."""
    names = [unit.name for unit in budget.units]
    missing = [name for name in names if name not in budget.outliers]
    if budget.unit != "block" or missing:
        raise AllocationError(
            "method 'owl' needs the outlier ratio of every block: pass outliers=outlier_ratios(model, calibration) and "
            "unit='block'" + (f"; {missing[0]} has none" if budget.outliers and missing else "")
        )
    ratios = [budget.outliers[name] for name in names]
    width = 2 * budget.epsilon / (max(ratios) - min(ratios)) if max(ratios) > min(ratios) else 0.0
    kept = sum(budget.sizes) - budget.zeros
    return [1 - density for density in shift_to_budget([width * ratio for ratio in ratios], budget.sizes, kept)]


METHODS: dict[str, Callable[[SparsityBudget], list[float]]] = {
    "alpha": _alpha,
    "uniform": _uniform,
    "erk": _erk,
    "depth": _depth,
    "owl": _owl,
    "atp": _atp,
}


def _scaled(budget: SparsityBudget, proportions: Sequence[float]) -> list[float]:
    return scale_to_budget([max(each, _MIN_PROPORTION) for each in proportions], budget.sizes, budget.zeros)
