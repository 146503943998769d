"""Which LoRA rank each layer gets under one budget of parameters, and PEFT's configuration for it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tempbalance.analysis.result import Analysis
from tempbalance.compress.allocation import BudgetPlan
from tempbalance.compress.budget import raise_levels, scale_to_budget
from tempbalance.compress.budget_units import MOST_POWER, find_units
from tempbalance.errors import AllocationError, MissingExtraError

if TYPE_CHECKING:
    from peft import LoraConfig

__all__ = ["RankAllocation", "RankShare", "allocate_ranks", "lora_config"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankShare:
    """What one module gets of the LoRA parameters.

    Attributes:
        name: Name of the module.
        unit: Name of the module or block whose rank it shares.
        shape: Shape of its weight.
        alpha: Its exponent, the mean over its parts; None where there is none.
        rank: Rank of its update.
    """

    name: str
    unit: str
    shape: tuple[int, ...]
    alpha: float | None
    rank: int

    @property
    def parameters(self) -> int:
        """``rank (rows + columns)``, those of the update."""
        return self.rank * sum(self.shape)


@dataclass(frozen=True, kw_only=True)
class RankAllocation(BudgetPlan[int]):
    """A LoRA rank for every module that is to be adapted: a mapping from its name to the rank.

    Attributes:
        source: The model that was analysed.
        rank: The uniform rank whose parameters are the budget.
        method: How it was shared out, and with which parameters.
        unit: Whether layers or blocks share a rank.
        layers: What each module gets, in model order.
        revision: Commit of a model from the hub, where it is known.
        settings: Of the analysis: estimator, windows, versions.
    """

    _share: ClassVar[type[RankShare]] = RankShare
    _quantity: ClassVar[str] = "rank"

    rank: int
    layers: tuple[RankShare, ...]


def allocate_ranks(
    analysis: Analysis,
    rank: int,
    *,
    low: int = 1,
    high: int | None = None,
    beta: float = 2.5,
    unit: Literal["layer", "block"] = "block",
) -> RankAllocation:
    """Share the parameters of a uniform LoRA rank out over the linear layers: light-tailed ones get more.

    The rank is in proportion to ``alpha^beta``, the rule by which AlphaLoRA (Qing et al., EMNLP 2024, arXiv:2410.10054)
    gives each block its number of LoRA experts: where all experts have one rank, that is the total rank of the block.
    No publication that we know measures the rule for the rank of a single LoRA, and neither have we.

    Deviations: the budget counts parameters, not experts; what the bounds cut off is redistributed; ranks are rounded
    so that what is left is too little for any further one. A unit without an alpha counts as one of median alpha.

    Args:
        analysis: What ``analyze`` has found. All its linear layers inside blocks are adapted (in a model without
            blocks, all): to adapt fewer, select fewer (``analyze(model, select="*.q_proj.*")``). A fused weight is one
            module, and needs all its parts.
        rank: The budget is what LoRA has of parameters at this rank, ``sum_i rank (rows_i + columns_i)``.
        low: Least rank, at least 1.
        high: Greatest rank; by default four times ``rank``.
        beta: How strongly alpha counts; 0 is uniform.
        unit: Whether the modules of a block share a rank, by their mean alpha, or each has its own.

    Returns:
        The plan. It has no more parameters than the budget, and what is left is too little for any further rank.

    Raises:
        AllocationError: There is nothing to adapt, or a parameter is out of range.

    Example:
        >>> import tempbalance as tb, torch
        >>> from tempbalance.testing import matrix_with_spectrum, pareto_quantiles
        >>> spectra = {f"h.{i}.fc.weight": pareto_quantiles(64, 2.0 + i / 2) for i in range(3)}
        >>> weights = {name: matrix_with_spectrum(spectrum, (64, 64)) for name, spectrum in spectra.items()}
        >>> dict(allocate_ranks(tb.analyze(weights), rank=8))
        {'h.0.fc': 4, 'h.1.fc': 8, 'h.2.fc': 12}
    """
    high = 4 * rank if high is None else high
    if not 1 <= low <= rank <= high:
        raise AllocationError(f"ranks must be 1 <= low <= rank <= high, got low {low}, rank {rank}, high {high}")
    if not 0 <= beta <= MOST_POWER:
        raise AllocationError(f"beta must be in [0, {MOST_POWER}], got {beta}")
    units = find_units(analysis, {"linear"}, unit)
    sizes = [sum(sum(module.shape) for module in each.modules) for each in units]
    budget = rank * sum(sizes)
    exact = scale_to_budget([each.relative_alpha**beta for each in units], sizes, budget, low=low, high=high)
    found = raise_levels(range(low, high + 1), sizes, budget, lambda i, now, _: exact[i] - now)
    return RankAllocation(
        source=analysis.source,
        rank=rank,
        method=f"alpha^{beta}, from {low} to {high}",
        unit=unit,
        layers=tuple(
            RankShare(name=module.name, unit=each.name, shape=module.shape, alpha=module.alpha, rank=value)
            for each, value in zip(units, found, strict=True)
            for module in each.modules
        ),
        revision=analysis.settings.get("revision"),
        settings=dict(analysis.settings),
    )


def lora_config(plan: RankAllocation, *, scaling: float = 1, **options: Any) -> LoraConfig:
    """A plan as a configuration of PEFT, for ``peft.get_peft_model(model, config)``.

    Every module is named by a pattern that matches its full name and no other: ``layers.1`` is not ``layers.10``.

    Args:
        plan: The plan.
        scaling: The factor ``lora_alpha / r`` on the update, the same for every module whatever its rank.
        **options: Of ``peft.LoraConfig``, such as ``lora_dropout``. Not those set here, and not ``use_rslora``, which
            makes the factor depend on the rank.

    Returns:
        The configuration, with ``target_modules``, ``rank_pattern`` and ``alpha_pattern``.

    Raises:
        MissingExtraError: PEFT is not installed.

    Example:
        >>> share = RankShare(name="h.1.fc", unit="h.1", shape=(64, 64), alpha=3.0, rank=5)
        >>> plan = RankAllocation(source="model", rank=8, method="by hand", unit="block", layers=(share,))
        >>> config = lora_config(plan, scaling=2, lora_dropout=0.1)
        >>> config.lora_alpha, list(config.rank_pattern.values()), list(config.alpha_pattern.values())
        (16, [5], [10])
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise MissingExtraError("LoRA needs PEFT: pip install 'tempbalance[peft]'") from error
    patterns = {f"^{re.escape(name)}": rank for name, rank in plan.items()}
    return LoraConfig(
        r=plan.rank,
        lora_alpha=scaling * plan.rank,
        target_modules="|".join(re.escape(name) for name in plan),
        rank_pattern=patterns,
        alpha_pattern={pattern: scaling * rank for pattern, rank in patterns.items()},
        **options,
    )
