"""Pruning scores, and masks with an exact number of zeros."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["magnitude_scores", "mask_by_row", "mask_smallest", "wanda_scores"]


def magnitude_scores(weight: Tensor) -> Tensor:
    """Score weights by their magnitude; the smallest are pruned first.

    Args:
        weight: Any shape and dtype, also complex.

    Returns:
        ``|w|``, of the same shape, float32 or wider.

    Example:
        >>> magnitude_scores(torch.tensor([[-2.0, 1.0]]))
        tensor([[2., 1.]])
    """
    magnitude = weight.detach().abs()
    return magnitude if magnitude.dtype == torch.float64 else magnitude.float()


def wanda_scores(weight: Tensor, norms: Tensor) -> Tensor:
    """Score weights by magnitude times the norm of their input (Wanda: Sun et al., ICLR 2024, eq. 1).

    Args:
        weight: Shape ``(outputs, inputs)``.
        norms: Norm of each input over all calibration tokens, shape ``(inputs,)``.

    Returns:
        ``|w_ij| norm_j``, of the shape of the weight.

    Example:
        >>> wanda_scores(torch.tensor([[-2.0, 1.0]]), torch.tensor([1.0, 3.0]))
        tensor([[2., 3.]])
    """
    return magnitude_scores(weight) * norms.to(weight.device)


def mask_smallest(scores: Tensor, zeros: int) -> Tensor:
    """Mark the smallest scores of a tensor; among equal scores, the first.

    Args:
        scores: Any shape, without NaN.
        zeros: Number of scores to mark.

    Returns:
        A boolean tensor of the same shape with exactly ``zeros`` true entries.

    Example:
        >>> mask_smallest(torch.tensor([[3.0, 1.0], [1.0, 1.0]]), zeros=2)
        tensor([[False,  True],
                [ True, False]])
    """
    flat = scores.flatten()
    if zeros == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = flat.kthvalue(zeros).values
    mask = flat < threshold
    ties = (flat == threshold).nonzero().flatten()
    mask[ties[: zeros - int(mask.sum())]] = True
    return mask.view(scores.shape)


def mask_by_row(scores: Tensor, zeros: int) -> Tensor:
    """Mark the smallest scores of each row, the same number in each: Wanda compares weights of one output only.

    Args:
        scores: Shape ``(rows, columns)``, without NaN.
        zeros: Number of scores to mark in all. If the rows do not divide it, the rows whose next score is smallest get
            one more.

    Returns:
        A boolean tensor of the same shape with exactly ``zeros`` true entries.

    Example:
        >>> mask_by_row(torch.tensor([[3.0, 1.0], [9.0, 8.0]]), zeros=3)
        tensor([[ True,  True],
                [False,  True]])
    """
    rows = len(scores)
    each, extra = divmod(zeros, rows)
    order = scores.argsort(dim=1, stable=True)
    mask = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order[:, :each], True)
    if extra:
        following = order[:, each : each + 1]
        chosen = scores.gather(1, following).flatten().argsort(stable=True)[:extra]
        mask[chosen, following[chosen].flatten()] = True
    return mask
