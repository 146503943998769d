"""Pruning scores, and masks with an exact number of zeros."""

from __future__ import annotations

import math

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
    # If the rows do not divide ``zeros``, the rows whose next score is smallest get one more. Among equal scores of a
    # row the first are marked. Selecting takes less than half of the time of sorting.
    each, extra = divmod(zeros, len(scores))
    mask = torch.zeros_like(scores, dtype=torch.bool)
    if each:
        threshold = scores.kthvalue(each, dim=1, keepdim=True).values
        mask = scores <= threshold
        tied = (mask.sum(dim=1) > each).nonzero().flatten()
        below = scores[tied] < threshold[tied]
        places = (mask[tied] & ~below).cumsum(dim=1)
        mask[tied] &= below | (places <= each - below.sum(dim=1, keepdim=True))
    if extra:
        following = scores.masked_fill(mask, math.inf).amin(dim=1, keepdim=True)
        chosen = following.flatten().argsort(stable=True)[:extra]
        places = ((scores[chosen] == following[chosen]) & ~mask[chosen]).int().argmax(dim=1)
        mask[chosen, places] = True
    return mask
