"""Pruning scores, and masks with an exact number of zeros."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["magnitude_scores", "mask_by_row", "mask_smallest", "wanda_scores"]


def magnitude_scores(weight: Tensor) -> Tensor:
    """Return ``|w|`` in float32 or wider, for weights of any shape and dtype, also complex."""
    magnitude = weight.detach().abs()
    return magnitude if magnitude.dtype == torch.float64 else magnitude.float()


def wanda_scores(weight: Tensor, norms: Tensor) -> Tensor:
    """Return ``|w_ij| norm_j``, with the norm of each input over all tokens (Wanda: Sun et al., ICLR 2024, eq. 1)."""
    return magnitude_scores(weight) * norms.to(weight.device)


def mask_smallest(scores: Tensor, zeros: int) -> Tensor:
    """Mark the given number of smallest scores of a tensor; among equal scores, the first."""
    flat = scores.flatten()
    if zeros == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = flat.kthvalue(zeros).values
    mask = flat < threshold
    ties = (flat == threshold).nonzero().flatten()
    mask[ties[: zeros - int(mask.sum())]] = True
    return mask.view(scores.shape)


def mask_by_row(scores: Tensor, zeros: int) -> Tensor:
    """Mark the smallest scores of a matrix, the same number in each row: Wanda compares weights of one output only."""
    # If the rows do not divide ``zeros``, the rows whose next score is smallest get one more.
    rows = len(scores)
    each, extra = divmod(zeros, rows)
    order = scores.argsort(dim=1, stable=True)
    mask = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order[:, :each], True)
    if extra:
        following = order[:, each : each + 1]
        chosen = scores.gather(1, following).flatten().argsort(stable=True)[:extra]
        mask[chosen, following[chosen].flatten()] = True
    return mask
