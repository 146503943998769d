"""The change of one layer between two models: one row of a comparison."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["LayerDelta"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerDelta:
    """The change of one layer. What was not compared is NaN, None or empty.

    Attributes:
        name: Qualified parameter name, in the second model.
        block: Its transformer block, or None.
        alpha_before: Alpha before; NaN without a fit.
        alpha_after: Alpha after.
        delta: ``alpha_after - alpha_before``.
        stderr: Standard error of ``delta`` for independent fits; an upper bound for two states of one layer, which have
            most of their spectrum in common.
        z: ``delta / stderr``; NaN if the shapes differ.
        name_before: Its name in the first model.
        kind: Kind of weight, as in ``LayerStats``.
        shape_before: Shape before.
        shape: Shape after.
        relative_change: ``||dW|| / ||W||``, Frobenius norms, with ``dW`` the weight after minus the weight before.
        norm_before: ``||W||``, the norm before.
        identical: Whether the weights are equal; in the narrower dtype, if the dtypes differ.
        sparsity_before: Fraction of entries that are exactly zero before.
        sparsity_after: The same, after.
        update_stable_rank: ``||dW||^2`` over the largest squared singular value of ``dW``.
        update_effective_rank: ``exp`` of the entropy of the normalised singular values of ``dW`` (Roy and Vetterli
            2007).
        update_singular_values: The largest singular values of ``dW``, descending, at most 8.
    """

    name: str
    block: str | None
    alpha_before: float
    alpha_after: float
    delta: float
    stderr: float
    z: float
    name_before: str = ""
    kind: str = ""
    shape_before: tuple[int, ...] = ()
    shape: tuple[int, ...] = ()
    relative_change: float = math.nan
    norm_before: float = math.nan
    identical: bool | None = None
    sparsity_before: float = math.nan
    sparsity_after: float = math.nan
    update_stable_rank: float = math.nan
    update_effective_rank: float = math.nan
    update_singular_values: tuple[float, ...] = ()
