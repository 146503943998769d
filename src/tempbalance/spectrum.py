"""Matrices to eigenvalues: the Gram matrix of the smaller side, and an SVD where that is not accurate enough.

An eigenvalue of the Gram matrix ``W^T W`` is a squared singular value, so its absolute error is about
``sqrt(max(rows, columns)) * eps * lambda_max``, however small it is itself (probabilistic rounding-error bound,
Higham and Mary 2019). Large eigenvalues, which the tail is made of, come out to nearly full precision; the bound is
checked against the smallest one, and where it says that less than three digits are left, singular values are
computed instead, whose squares are accurate down to ``eps**2 * lambda_max``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tempbalance.errors import NonFiniteError, WeightError
from tempbalance.matrices import Layout, as_matrices
from tempbalance.types import Spectrum

__all__ = ["spectra", "weight_spectrum"]

_ROWS, _CHUNK = 512, 1 << 18  # rows, or numbers if more, cast at a time: they stay in the cache until multiplied
_BLOCK, _SMALL_BLOCK = 192, 96  # columns of a Gram block: smaller ones waste less above the diagonal but run slower
_SMALL = 768  # Gram matrices of fewer columns use the small blocks
_RELATIVE_ERROR = 1e-3  # of the smallest eigenvalue; beyond it the Gram matrix gives way to an SVD
_BATCH_NDIM = 3
_SAFE_EXPONENT = 256  # entries within 2**-256 .. 2**256 can be squared and summed in float64


def weight_spectrum(
    weight: Tensor, layout: Layout = Layout.MATRIX, *, device: torch.device | str | None = None
) -> Spectrum:
    """The empirical spectral density of one weight: all eigenvalues of ``W^T W``.

    Computed in float64, in float32 on devices that have no float64; half and 8-bit floats are cast up, complex ones
    to complex128. Eigenvalues below ``max(rows, columns) * eps * lambda_max`` are numerically zero and become exactly
    0. The input is neither changed nor copied as a whole: beside it, memory is one Gram matrix, LAPACK's copy of it,
    and 512 rows.

    Args:
        weight: Floating-point or complex tensor whose axes fit ``layout``.
        layout: How the axes of ``weight`` form matrices.
        device: Where to compute; by default where the weight is.

    Returns:
        The pooled spectrum; ``eigenvalues`` lie on the CPU, float64, ascending.

    Raises:
        NonFiniteError: The weight holds NaN or Inf.
        WeightError: Its shape or dtype is not a weight's (see ``as_matrices``).

    Example:
        >>> import torch
        >>> weight_spectrum(torch.diag(torch.tensor([3.0, 1.0, 2.0]))).eigenvalues
        tensor([1., 4., 9.], dtype=torch.float64)
    """
    return spectra([as_matrices(weight, layout)], device=device)[0]


def spectra(batches: Sequence[Tensor], *, device: torch.device | str | None = None) -> list[Spectrum]:
    """The spectra of several weights whose matrices all have one shape, in one batch.

    Args:
        batches: One tensor of shape ``(B_i, rows, columns)`` per weight, ``rows`` and ``columns`` the same in all.
        device: Where to compute; by default where each weight is.

    Returns:
        One pooled spectrum per weight; the numbers do not depend on which weights share a batch on a CPU.

    Raises:
        NonFiniteError: A weight holds NaN or Inf.
        WeightError: The tensors are not three-dimensional or differ in the shape of their matrices.

    Example:
        >>> import torch
        >>> [s.num_matrices for s in spectra([torch.ones(9, 4, 4), torch.ones(1, 4, 4)])]
        [9, 1]
    """
    shapes = {tuple(batch.shape[1:]) if batch.ndim == _BATCH_NDIM else None for batch in batches}
    if len(shapes) != 1 or None in shapes:
        raise WeightError(f"expected tensors (B, rows, columns) of one shape, got {[tuple(b.shape) for b in batches]}")
    rows, columns = batches[0].shape[1:]
    dtype = _working_dtype(batches[0] if device is None else torch.empty(0, device=device))
    pieces = [_readable(matrices if device is None else matrices.to(device)) for matrices in batches]
    values, scales = _eigenvalues(pieces, dtype)
    bound = math.sqrt(max(rows, columns)) * torch.finfo(dtype).eps
    results, start = [], 0
    for matrices, scale in zip(pieces, scales, strict=True):
        own = values[start : start + len(matrices)] / scale / scale
        start += len(matrices)
        pooled = own.flatten().sort().values
        if bool(torch.isinf(pooled[-1])) or (float(pooled[-1]) == 0.0 and scale != 1.0):
            size = "small" if scale > 1 else "large"
            raise WeightError(f"the weights are too {size}: their squares lie outside the range of float64")
        results.append(
            Spectrum(eigenvalues=pooled, shape=(rows, columns), num_matrices=len(matrices), error_bound=bound)
        )
    return results


def _working_dtype(weight: Tensor) -> torch.dtype:
    return torch.float32 if weight.device.type == "mps" else torch.float64


def _readable(matrices: Tensor) -> Tensor:
    """8-bit floats know no arithmetic; bfloat16 holds each of them exactly."""
    return matrices.to(torch.bfloat16) if matrices.is_floating_point() and matrices.itemsize == 1 else matrices


def _scale(matrices: Tensor, dtype: torch.dtype) -> float:
    """1, or the power of two that brings the largest entry near 1 where squares would overflow or vanish."""
    parts = torch.view_as_real(matrices.resolve_conj()) if matrices.is_complex() else matrices
    extremes = torch.stack([torch.stack(torch.aminmax(matrix)) for matrix in parts])  # NaN passes through
    largest = float(extremes.abs().max())
    if not math.isfinite(largest):
        bad = int(sum(int((~torch.isfinite(matrix)).sum()) for matrix in matrices))
        raise NonFiniteError(f"{bad} of {matrices.numel()} weights are NaN or Inf")
    exponent = math.frexp(largest)[1]
    safe = _SAFE_EXPONENT if dtype is torch.float64 else _SAFE_EXPONENT // 8
    return 1.0 if largest == 0 or abs(exponent) < safe else 2.0**-exponent


def _eigenvalues(pieces: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, list[float]]:
    """Eigenvalues ``(sum B_i, min(rows, columns))`` on the CPU, float64, of each piece times its scale."""
    scales = [_scale(matrices, dtype) for matrices in pieces]
    grams = [_gram(matrices, scale, dtype) for matrices, scale in zip(pieces, scales, strict=True)]
    gram = grams[0] if len(grams) == 1 else torch.cat(grams)
    del grams
    try:
        values = torch.linalg.eigvalsh(gram, UPLO="L").to("cpu", torch.float64)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # no convergence: as inaccurate as can be
        values = torch.full(gram.shape[:2], math.nan, dtype=torch.float64)
    del gram
    side = max(pieces[0].shape[1:])
    eps = torch.finfo(dtype).eps
    values[values <= side * eps * values[:, -1:]] = 0.0
    smallest = torch.where(values > 0, values, math.inf).amin(dim=1)
    doubtful = ~(math.sqrt(side) * eps * values[:, -1] <= _RELATIVE_ERROR * smallest)
    if doubtful.any():
        zero = max(side * torch.finfo(torch.float64).eps, (side * eps) ** 2)
        first = 0
        for matrices, scale in zip(pieces, scales, strict=True):
            for index in doubtful[first : first + len(matrices)].nonzero().flatten().tolist():
                values[first + index] = _by_svd(matrices[index], scale, dtype, zero)
            first += len(matrices)
    return values, scales


def _gram(matrices: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """Lower triangles of the Gram matrices of the smaller side, ``(B, n, n)``; what lies above is undefined."""
    # A matrix is read once, a chunk of rows at a time, and only blocks on and below the diagonal are multiplied: half
    # the work of a full product.
    tall = matrices if matrices.shape[1] >= matrices.shape[2] else matrices.mT
    batch, rows, n = tall.shape
    work = dtype if not tall.is_complex() else torch.complex128 if dtype is torch.float64 else torch.complex64
    gram = torch.empty(batch, n, n, dtype=work, device=tall.device)
    step = max(_ROWS, _CHUNK // n)
    block = _SMALL_BLOCK if n < _SMALL else _BLOCK
    for source, target in zip(tall, gram, strict=True):
        for top in range(0, rows, step):
            chunk = source[top : top + step].to(work)
            chunk = chunk * scale if scale != 1.0 else chunk
            for left in range(0, n, block):
                right = min(left + block, n)
                target[left:right, :right].addmm_(chunk[:, left:right].mH, chunk[:, :right], beta=min(top, 1))
    return gram


def _by_svd(matrix: Tensor, scale: float, dtype: torch.dtype, zero: float) -> Tensor:
    work = dtype if not matrix.is_complex() else torch.complex128 if dtype is torch.float64 else torch.complex64
    values: Tensor = torch.linalg.svdvals(matrix.to(work) * scale).to("cpu", torch.float64).square().flip(0)
    values[values <= zero * values[-1]] = 0.0
    return values
