"""The eigenvalues of whole matrices, from their Gram matrices."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tempbalance.errors import WeightError
from tempbalance.spectra.gram import (
    BATCH_NDIM,
    GramOptions,
    GramSource,
    gram_matrices,
    power_of_two_scale,
    readable,
    solve_gram,
    unscaled,
)
from tempbalance.spectra.matrices import Layout, as_matrices
from tempbalance.types import Spectrum

__all__ = ["mean_stable_rank", "spectra", "weight_spectrum"]

_OPTIONS = GramOptions()


def weight_spectrum(
    weight: Tensor, layout: Layout = Layout.MATRIX, *, device: torch.device | str | None = None
) -> Spectrum:
    """Compute the empirical spectral density of one weight: all eigenvalues of ``W^T W``.

    The dtype of the computation is float64 (float32 on devices without float64); half and 8-bit floats are cast up,
    complex numbers to complex128. Eigenvalues below ``max(rows, columns) * eps * lambda_max`` are numerically zero and
    become exactly 0. The input is not changed and never copied in full: the memory used is that of one Gram matrix,
    LAPACK's copy of it, and 512 rows.

    Args:
        weight: Floating-point or complex tensor whose axes fit ``layout``.
        layout: How the axes of ``weight`` form matrices.
        device: Device for the computation; by default that of the weight.

    Returns:
        The pooled spectrum; ``eigenvalues`` are on the CPU, float64, ascending.

    Raises:
        NonFiniteError: The weight contains NaN or Inf.
        WeightError: Its shape or dtype is not that of a weight (see ``as_matrices``).

    Example:
        >>> import torch
        >>> weight_spectrum(torch.diag(torch.tensor([3.0, 1.0, 2.0]))).eigenvalues
        tensor([1., 4., 9.], dtype=torch.float64)
    """
    return spectra([as_matrices(weight, layout)], device=device)[0]


def spectra(
    batches: Sequence[Tensor], *, device: torch.device | str | None = None, options: GramOptions = _OPTIONS
) -> list[Spectrum]:
    """Compute the spectra of several weights whose matrices all have one shape, in one batch.

    Args:
        batches: One tensor of shape ``(B_i, rows, columns)`` per weight, ``rows`` and ``columns`` the same in all.
        device: Device for the computation; by default that of each weight.
        options: Precision and memory limits.

    Returns:
        One pooled spectrum per weight; on a CPU the numbers do not depend on which weights share a batch.

    Raises:
        NonFiniteError: A weight contains NaN or Inf.
        WeightError: The tensors are not three-dimensional or differ in the shape of their matrices.
    """
    shapes = {tuple(batch.shape[1:]) if batch.ndim == BATCH_NDIM else None for batch in batches}
    if len(shapes) != 1 or None in shapes:
        raise WeightError(f"expected tensors (B, rows, columns) of one shape, got {[tuple(b.shape) for b in batches]}")
    rows, columns = batches[0].shape[1:]
    options = options.on(batches[0], device)
    pieces = [readable(matrices if device is None else matrices.to(device)) for matrices in batches]
    scales = [power_of_two_scale(matrices, options.work) for matrices in pieces]
    grams = [gram_matrices(matrices, scale, options) for matrices, scale in zip(pieces, scales, strict=True)]
    gram = grams[0] if len(grams) == 1 else torch.cat(grams)
    del grams
    sources = [GramSource(matrix, scale) for matrices, scale in zip(pieces, scales, strict=True) for matrix in matrices]
    values = solve_gram(gram, sources, options.work)
    del gram
    bound = math.sqrt(max(rows, columns)) * torch.finfo(options.work).eps
    results, start = [], 0
    for matrices, scale in zip(pieces, scales, strict=True):
        own = values[start : start + len(matrices)]
        start += len(matrices)
        pooled = unscaled(own.flatten().sort().values, scale)
        results.append(
            Spectrum(
                eigenvalues=pooled,
                shape=(rows, columns),
                num_matrices=len(matrices),
                error_bound=bound,
                stable_rank=mean_stable_rank(own),
            )
        )
    return results


def mean_stable_rank(eigenvalues: Tensor) -> float:
    """Return the mean of the stable ranks of matrices with these eigenvalues ``(B, n)``; NaN if all are zero."""
    largest = eigenvalues.amax(dim=1)
    ranks = eigenvalues.sum(dim=1)[largest > 0] / largest[largest > 0]
    return float(ranks.mean())
