"""The mean of the entries of a weight."""

from __future__ import annotations

import math

from torch import Tensor

from tempbalance.spectra.gram import GramOptions, cast_chunks, gram_dtype, power_of_two_scale, readable, scratch_rows

__all__ = ["mean_over_std"]


def mean_over_std(matrices: Tensor) -> float:
    """Return the absolute mean of all entries over their standard deviation; infinity if all entries are equal.

    The matrices ``(B, rows, columns)`` are finite.

    Example:
        >>> import torch
        >>> mean_over_std(torch.tensor([[[1.0, 3.0], [1.0, 3.0]]]))
        2.0
    """
    options = GramOptions().on(matrices, None)
    pieces = readable(matrices)
    scale = power_of_two_scale(pieces, options.work)
    total, squares = 0.0, 0.0
    for matrix in pieces:
        for rows in cast_chunks(matrix, scale, scratch_rows(matrix, gram_dtype(matrix, options.work), options)):
            total += rows.sum().item()
            squares += rows.abs().square().sum().item()
    mean = abs(total) / matrices.numel()
    variance = squares / matrices.numel() - mean**2
    return mean / math.sqrt(variance) if variance > 0 else math.inf
