"""Gram matrices of the smaller side and their eigenvalues, with an SVD where they are not accurate enough.

An eigenvalue of the Gram matrix ``W^T W`` is a squared singular value, so its absolute error is about
``sqrt(max(rows, columns)) * eps * lambda_max``, however small it is (probabilistic rounding-error bound, Higham and
Mary 2019). Large eigenvalues, of which the tail consists, have nearly full precision. The bound is compared with the
smallest one; if less than three digits are left, singular values are computed instead, whose squares are accurate down
to ``eps**2 * lambda_max``.

In float32 it cannot tell whether the small eigenvalues are zero: a Cholesky factor of the Gram matrix in float64 can,
for a fraction of the cost of eigenvalues. If some are zero, all are computed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from tempbalance.errors import NonFiniteError, WeightError

__all__ = [
    "BATCH_NDIM",
    "GramOptions",
    "GramSource",
    "aligned",
    "cast_chunks",
    "gram_dtype",
    "gram_into",
    "gram_matrices",
    "power_of_two_scale",
    "readable",
    "scratch_rows",
    "solve_gram",
    "unscaled",
]

BATCH_NDIM = 3
_ALIGNMENT = 16  # numbers: at least 64 bytes
_SMALL = 768  # Gram matrices of fewer columns use the small blocks
_RELATIVE_ERROR = 1e-3  # of the smallest eigenvalue; above it the Gram matrix is replaced by an SVD
_LARGEST_EXPONENT = 1023  # of a power of two in float64; weights that need more are too small to be squared
_SAFE_EXPONENT = 256  # entries within 2**-256 .. 2**256 can be squared and summed in float64


@dataclass(frozen=True, slots=True, kw_only=True)
class GramOptions:
    """Precision and memory of Gram matrices. Apart from ``dtype``, they change results by rounding errors only.

    Attributes:
        dtype: float64 or float32; by default float64, or float32 on a device without float64.
        rows: Smallest number of rows that are cast to ``dtype`` at a time; they should fit into the cache.
        chunk: Number of entries to cast at a time, if this is more than ``rows`` rows.
        block: Number of columns of a Gram block. Smaller blocks waste less above the diagonal but run slower.
        small_block: Number of columns of a Gram block of a small matrix.
        group_bytes: Bytes of the Gram matrices of windows whose eigenvalues are computed in one call.
        sliding: Whether windows share a sliding Gram matrix; by default where it saves work.
        sliding_factor: Memory limit of a sliding Gram matrix, as a multiple of the memory of the weight.
        sliding_bytes: Memory limit in bytes, if this is more.
    """

    dtype: torch.dtype | None = None
    rows: int = 512
    chunk: int = 1 << 18
    block: int = 192
    small_block: int = 96
    group_bytes: int = 1 << 22
    sliding: bool | None = None
    sliding_factor: float = 1.25
    sliding_bytes: int = 1 << 24

    def on(self, weight: Tensor, device: torch.device | str | None) -> GramOptions:
        """Return a copy with the ``dtype`` to use for a weight on a device."""
        where = weight.device if device is None else torch.device(device)
        return replace(self, dtype=self.dtype or (torch.float32 if where.type == "mps" else torch.float64))

    @property
    def work(self) -> torch.dtype:
        """The dtype, float64 unless set."""
        return self.dtype or torch.float64


_FLOAT64 = GramOptions(dtype=torch.float64)


def readable(matrices: Tensor) -> Tensor:
    """Return the values detached; 8-bit floats as bfloat16, which represents all of them and has arithmetic."""
    values = matrices.detach()
    return values.to(torch.bfloat16) if values.is_floating_point() and values.itemsize == 1 else values


def power_of_two_scale(matrices: Tensor, dtype: torch.dtype) -> float:
    """Return 1, or the power of two that brings the largest entry near 1 where squares would overflow or vanish."""
    parts = torch.view_as_real(matrices.resolve_conj()) if matrices.is_complex() else matrices
    extremes = torch.stack([torch.stack(torch.aminmax(matrix)) for matrix in parts])  # NaN passes through
    largest = float(extremes.abs().max())
    if not math.isfinite(largest):
        bad = int(sum(int((~torch.isfinite(matrix)).sum()) for matrix in matrices))
        raise NonFiniteError(f"{bad} of {matrices.numel()} weights are NaN or Inf")
    exponent = math.frexp(largest)[1]
    safe = _SAFE_EXPONENT if dtype is torch.float64 else _SAFE_EXPONENT // 8
    return 1.0 if largest == 0 or abs(exponent) < safe else 2.0 ** min(-exponent, _LARGEST_EXPONENT)


def unscaled(scaled: Tensor, scale: float) -> Tensor:
    """Undo the scale of the weights; the largest value is last or, in a batch, last in each row."""
    values: Tensor = scaled / scale / scale
    vanished = float(values[..., -1].max()) == 0.0 < float(scaled[..., -1].max())
    if vanished or bool(torch.isinf(values[..., -1]).any()):
        size = "small" if scale > 1 else "large"
        raise WeightError(f"the weights are too {size}: their squares are outside the range of float64")
    return values


class GramSource(NamedTuple):
    """The matrix that a Gram matrix is computed from, for an SVD if the Gram matrix is not accurate enough.

    Attributes:
        matrix: The matrix.
        scale: Factor on its entries.
        growth: Rounding errors of the Gram matrix, relative to those of a single matrix product.
    """

    matrix: Tensor
    scale: float
    growth: float = 1.0


def solve_gram(gram: Tensor, sources: Sequence[GramSource], dtype: torch.dtype) -> Tensor:
    """Return eigenvalues of Gram matrices ``(B, n, n)``; by SVD of their sources where they are not accurate."""
    parts = [gram] if gram.device.type != "cpu" else list(torch.split(gram, 1))
    values = torch.cat([_eigvalsh(part) for part in parts])
    side = max(sources[0].matrix.shape)
    eps = torch.finfo(dtype).eps
    growth = torch.tensor([source.growth for source in sources], dtype=torch.float64)
    zero = side * eps * growth.unsqueeze(1) * values[:, -1:]
    if dtype is torch.float32:
        uncertain = ~(values > zero).all(dim=1) & (values != 0).any(dim=1)  # also where there was no convergence
        for index in uncertain.nonzero().flatten().tolist():
            values[index] = _resolved(values[index], sources[index])
        return values
    values[values <= zero] = 0.0
    smallest = torch.where(values > 0, values, math.inf).amin(dim=1)
    doubtful = ~(math.sqrt(side) * eps * growth * values[:, -1] <= _RELATIVE_ERROR * smallest)
    for index in doubtful.nonzero().flatten().tolist():
        values[index] = _by_svd(sources[index].matrix, sources[index].scale)
    return values


def _resolved(values: Tensor, source: GramSource) -> Tensor:
    """Return eigenvalues of which float32 cannot tell whether the smallest are zero."""
    matrix = source.matrix.cpu() if source.matrix.device.type == "mps" else source.matrix  # it has no float64
    gram = gram_matrices(matrix.unsqueeze(0), source.scale, _FLOAT64)
    zero = 2 * max(matrix.shape) * torch.finfo(torch.float64).eps * float(values[-1])  # twice: errors of the factor
    if math.isfinite(zero):
        gram[0].diagonal().sub_(zero)
        if int(torch.linalg.cholesky_ex(gram[0]).info) == 0:
            return values.clamp(min=zero)
        gram[0].diagonal().add_(zero)
    return solve_gram(gram, [GramSource(matrix, source.scale)], torch.float64)[0]


def _eigvalsh(gram: Tensor) -> Tensor:
    # LAPACK solves one matrix at a time anyway; in a copy of the batch the matrices would be aligned differently.
    values: Tensor
    try:
        values = torch.linalg.eigvalsh(gram, UPLO="L").to("cpu", torch.float64)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # no convergence: use the SVD
        values = torch.full(gram.shape[:2], math.nan, dtype=torch.float64)
    return values


def aligned(count: int, n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Allocate ``(count, n, n)``, each matrix aligned like a tensor: the last bits of a product depend on it."""
    stride = -(-n * n // _ALIGNMENT) * _ALIGNMENT
    memory = torch.empty(count, stride, dtype=dtype, device=device)
    return memory.as_strided((count, n, n), (stride, n, 1))


def gram_dtype(matrices: Tensor, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of a Gram matrix: the working dtype, complex for complex matrices."""
    if not matrices.is_complex():
        return dtype
    return torch.complex128 if dtype is torch.float64 else torch.complex64


def gram_matrices(matrices: Tensor, scale: float, options: GramOptions) -> Tensor:
    """Return lower triangles of the Gram matrices of the smaller side, ``(B, n, n)``; the upper ones are undefined."""
    side = min(matrices.shape[1:])
    gram = aligned(len(matrices), side, gram_dtype(matrices, options.work), matrices.device)
    for matrix, target in zip(matrices, gram, strict=True):
        gram_into(target, matrix if matrix.shape[0] >= matrix.shape[1] else matrix.mT, scale, options)
    return gram


def gram_into(target: Tensor, tall: Tensor, scale: float, options: GramOptions) -> None:
    """Write the lower triangle of the Gram matrix of a tall matrix into a target ``(n, n)``."""
    # Only blocks on and below the diagonal are multiplied: half the work of a full product.
    n = tall.shape[1]
    block = options.small_block if n < _SMALL else options.block
    for index, chunk in enumerate(cast_chunks(tall, scale, scratch_rows(tall, target.dtype, options))):
        for left in range(0, n, block):
            right = min(left + block, n)
            target[left:right, :right].addmm_(chunk[:, left:right].mH, chunk[:, :right], beta=min(index, 1))


def scratch_rows(tall: Tensor, dtype: torch.dtype, options: GramOptions) -> Tensor:
    """Allocate a chunk of rows."""
    return torch.empty_like(tall[: max(options.rows, options.chunk // tall.shape[1])], dtype=dtype)


def cast_chunks(tall: Tensor, scale: float, scratch: Tensor) -> Iterator[Tensor]:
    """Yield the rows of a matrix times the scale, cast to the dtype of the scratch, which the next chunk overwrites."""
    for top in range(0, len(tall), len(scratch)):
        rows = tall[top : top + len(scratch)]
        chunk = scratch[: len(rows)].copy_(rows)
        yield chunk.mul_(scale) if scale != 1.0 else chunk


def _by_svd(matrix: Tensor, scale: float) -> Tensor:
    work = gram_dtype(matrix, torch.float64)
    values: Tensor = torch.linalg.svdvals(matrix.to(work) * scale).to("cpu", torch.float64).square().flip(0)
    values[values <= max(matrix.shape) * torch.finfo(torch.float64).eps * values[-1]] = 0.0
    return values
