"""Matrices to eigenvalues: the Gram matrix of the smaller side, and an SVD where that is not accurate enough.

An eigenvalue of the Gram matrix ``W^T W`` is a squared singular value, so its absolute error is about
``sqrt(max(rows, columns)) * eps * lambda_max``, however small it is itself (probabilistic rounding-error bound,
Higham and Mary 2019). Large eigenvalues, which the tail is made of, come out to nearly full precision; the bound is
checked against the smallest one, and where it says that less than three digits are left, singular values are
computed instead, whose squares are accurate down to ``eps**2 * lambda_max``.

The Gram matrices of overlapping windows over the same rows are diagonal blocks of one larger Gram matrix, which slides
down the matrix: the rows that enter are added, those that leave are subtracted.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tempbalance.errors import NonFiniteError, WeightError
from tempbalance.matrices import Layout, as_matrices
from tempbalance.types import Spectrum

__all__ = ["WindowValues", "spectra", "weight_spectrum", "window_values"]

_ROWS, _CHUNK = 512, 1 << 18  # rows, or numbers if more, cast at a time: they stay in the cache until multiplied
_BLOCK, _SMALL_BLOCK = 192, 96  # columns of a Gram block: smaller ones waste less above the diagonal but run slower
_SMALL = 768  # Gram matrices of fewer columns use the small blocks
_RELATIVE_ERROR = 1e-3  # of the smallest eigenvalue; beyond it the Gram matrix gives way to an SVD
_BATCH_NDIM = 3
_GROUP = 1 << 22  # bytes of Gram matrices of windows that are always worth one call for their eigenvalues
_GROWTH = 16.0  # sums of squares that passed through a sliding Gram matrix, over those in it; beyond, it is not used
_SLIDING = 1.25  # a sliding Gram matrix may take so many times the memory of the weight,
_SLIDING_BYTES = 1 << 24  # or this
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
    scales = [_scale(matrices, dtype) for matrices in pieces]
    values = _eigenvalues(pieces, scales, dtype)
    bound = math.sqrt(max(rows, columns)) * torch.finfo(dtype).eps
    results, start = [], 0
    for matrices, scale in zip(pieces, scales, strict=True):
        own = values[start : start + len(matrices)]
        start += len(matrices)
        pooled = _unscaled(own.flatten().sort().values, scale)
        results.append(
            Spectrum(eigenvalues=pooled, shape=(rows, columns), num_matrices=len(matrices), error_bound=bound)
        )
    return results


def _working_dtype(weight: Tensor) -> torch.dtype:
    return torch.float32 if weight.device.type == "mps" else torch.float64


def _readable(matrices: Tensor) -> Tensor:
    """8-bit floats know no arithmetic; bfloat16 holds each of them exactly. No history is recorded."""
    values = matrices.detach()
    return values.to(torch.bfloat16) if values.is_floating_point() and values.itemsize == 1 else values


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


def _unscaled(scaled: Tensor, scale: float) -> Tensor:
    """Undo the scale of the weights; the largest value is last or, in a batch, last in each row."""
    values: Tensor = scaled / scale / scale
    vanished = float(values[..., -1].max()) == 0.0 < float(scaled[..., -1].max())
    if vanished or bool(torch.isinf(values[..., -1]).any()):
        size = "small" if scale > 1 else "large"
        raise WeightError(f"the weights are too {size}: their squares lie outside the range of float64")
    return values


def _eigenvalues(pieces: Sequence[Tensor], scales: Sequence[float], dtype: torch.dtype) -> Tensor:
    """Eigenvalues ``(sum B_i, min(rows, columns))`` on the CPU, float64, of each piece times its scale."""
    grams = [_gram(matrices, scale, dtype) for matrices, scale in zip(pieces, scales, strict=True)]
    gram = grams[0] if len(grams) == 1 else torch.cat(grams)
    del grams
    sources = [_Block(matrix, scale) for matrices, scale in zip(pieces, scales, strict=True) for matrix in matrices]
    return _solve(gram, sources, dtype)


class _Block(NamedTuple):
    """A matrix whose Gram matrix is at hand, for the case that it is not accurate enough.

    ``growth`` is by how much its rounding errors exceed those of a Gram matrix computed in one go.
    """

    matrix: Tensor
    scale: float
    growth: float = 1.0


def _solve(gram: Tensor, sources: Sequence[_Block], dtype: torch.dtype) -> Tensor:
    """Eigenvalues of Gram matrices ``(B, n, n)``, or of the matrices they are of where those are not accurate."""
    values: Tensor
    try:
        values = torch.linalg.eigvalsh(gram, UPLO="L").to("cpu", torch.float64)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # no convergence: as inaccurate as can be
        values = torch.full(gram.shape[:2], math.nan, dtype=torch.float64)
    side = max(sources[0].matrix.shape)
    eps = torch.finfo(dtype).eps
    growth = torch.tensor([source.growth for source in sources], dtype=torch.float64)
    values[values <= side * eps * growth.unsqueeze(1) * values[:, -1:]] = 0.0
    smallest = torch.where(values > 0, values, math.inf).amin(dim=1)
    doubtful = ~(math.sqrt(side) * eps * growth * values[:, -1] <= _RELATIVE_ERROR * smallest)
    zero = max(side * torch.finfo(torch.float64).eps, (side * eps) ** 2)
    for index in doubtful.nonzero().flatten().tolist():
        values[index] = _by_svd(sources[index].matrix, sources[index].scale, dtype, zero)
    return values


def _work_dtype(matrices: Tensor, dtype: torch.dtype) -> torch.dtype:
    if not matrices.is_complex():
        return dtype
    return torch.complex128 if dtype is torch.float64 else torch.complex64


def _gram(matrices: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """Lower triangles of the Gram matrices of the smaller side, ``(B, n, n)``; what lies above is undefined."""
    side = min(matrices.shape[1:])
    gram = torch.empty(len(matrices), side, side, dtype=_work_dtype(matrices, dtype), device=matrices.device)
    for matrix, target in zip(matrices, gram, strict=True):
        _gram_into(target, matrix if matrix.shape[0] >= matrix.shape[1] else matrix.mT, scale)
    return gram


def _gram_into(target: Tensor, tall: Tensor, scale: float) -> None:
    # Only blocks on and below the diagonal are multiplied: half the work of a full product.
    n = tall.shape[1]
    block = _SMALL_BLOCK if n < _SMALL else _BLOCK
    for index, chunk in enumerate(_chunks(tall, scale, _scratch(tall, target.dtype))):
        for left in range(0, n, block):
            right = min(left + block, n)
            target[left:right, :right].addmm_(chunk[:, left:right].mH, chunk[:, :right], beta=min(index, 1))


def _scratch(tall: Tensor, dtype: torch.dtype) -> Tensor:
    """Room for a chunk of rows."""
    return torch.empty_like(tall[: max(_ROWS, _CHUNK // tall.shape[1])], dtype=dtype)


def _chunks(tall: Tensor, scale: float, scratch: Tensor) -> Iterator[Tensor]:
    """The rows of a matrix times the scale, cast to the type of the scratch, where they lie until the next chunk."""
    for top in range(0, len(tall), len(scratch)):
        rows = tall[top : top + len(scratch)]
        chunk = scratch[: len(rows)].copy_(rows)
        yield chunk.mul_(scale) if scale != 1.0 else chunk


def _by_svd(matrix: Tensor, scale: float, dtype: torch.dtype, zero: float) -> Tensor:
    work = _work_dtype(matrix, dtype)
    values: Tensor = torch.linalg.svdvals(matrix.to(work) * scale).to("cpu", torch.float64).square().flip(0)
    values[values <= zero * values[-1]] = 0.0
    return values


class WindowValues(NamedTuple):
    """The eigenvalues of equal windows of one weight.

    Attributes:
        eigenvalues: Shape ``(windows, B, short side)``, on the CPU, float64, ascending along the last axis.
        error_bound: Bound on the absolute error of an eigenvalue, as a fraction of the largest of its window.
    """

    eigenvalues: Tensor
    error_bound: float


def window_values(
    batches: Sequence[Tensor],
    sizes: Sequence[tuple[int, int]],
    starts: Sequence[Sequence[tuple[int, int]]],
    *,
    device: torch.device | str | None = None,
) -> list[WindowValues]:
    """The eigenvalues of windows of several weights, all of one size or turned, in as few calls as memory allows.

    Beside the weights, memory is at most about 2.5 times that of the largest: a sliding Gram matrix of at most 1.25
    times, where it saves work, the Gram matrices of some windows, and LAPACK's copy of these. Windows are views.

    Args:
        batches: One tensor of shape ``(B_i, rows_i, columns_i)`` per weight.
        sizes: For each weight ``(rows, columns)`` of a window.
        starts: For each weight the upper left corners of its windows, the same in all its matrices; not empty.
        device: Where to compute; by default where each weight is.

    Returns:
        One set of eigenvalues per weight. On a CPU they do not depend on which weights are computed together.

    Raises:
        NonFiniteError: A weight holds NaN or Inf.
        WeightError: A tensor is not three-dimensional, or too large or small to be squared.

    Example:
        >>> found = window_values([torch.eye(8).unsqueeze(0)], [(4, 4)], [[(0, 0), (4, 4), (0, 4)]])[0]
        >>> found.eigenvalues[:, 0, 0]
        tensor([1., 1., 0.], dtype=torch.float64)
    """
    if any(batch.ndim != _BATCH_NDIM for batch in batches):
        raise WeightError(f"expected tensors (B, rows, columns), got {[tuple(batch.shape) for batch in batches]}")
    dtype = _working_dtype(batches[0] if device is None else torch.empty(0, device=device))
    pieces = [_readable(matrices if device is None else matrices.to(device)) for matrices in batches]
    scales = [_scale(matrices, dtype) for matrices in pieces]
    limit = max(_GROUP, max(matrices.numel() * matrices.itemsize for matrices in batches) // 2)
    total = sum(len(matrices) * len(corners) for matrices, corners in zip(pieces, starts, strict=True))
    group = _Group(torch.empty(total, min(sizes[0]), dtype=torch.float64), dtype, limit)
    growths = []
    for matrices, scale, size, corners in zip(pieces, scales, sizes, starts, strict=True):
        bytes_ = matrices.numel() * matrices.itemsize
        growths.append(max(_add_windows(group, matrix, scale, size, corners, bytes_) for matrix in matrices))
    group.solve()
    results, first = [], 0
    for matrices, scale, size, corners, growth in zip(pieces, scales, sizes, starts, growths, strict=True):
        count = len(matrices) * len(corners)
        own = group.values[first : first + count].view(len(matrices), len(corners), -1).transpose(0, 1)
        first += count
        bound = math.sqrt(max(size)) * torch.finfo(dtype).eps * growth
        results.append(WindowValues(_unscaled(own, scale), bound))
    return results


class _Group:
    """Gram matrices that wait for their eigenvalues, as many as the memory limit allows."""

    def __init__(self, values: Tensor, dtype: torch.dtype, limit: int) -> None:
        self.values = values
        self.dtype = dtype
        self.taken = 0  # windows so far, the waiting ones included
        self._limit = limit
        self._buffer: Tensor | None = None
        self._slots: list[int] = []
        self._blocks: list[_Block] = []

    def add(self, slot: int, block: _Block, gram: Tensor | None) -> None:
        """Take one window; ``gram`` is the Gram matrix of its smaller side if it is known already."""
        work = _work_dtype(block.matrix, self.dtype)
        n, device = min(block.matrix.shape), block.matrix.device
        capacity = max(1, self._limit // (n * n * work.itemsize))
        if capacity == 1 and gram is not None:  # no need for a copy beside LAPACK's
            self.values[slot] = _solve(gram.unsqueeze(0), [block], self.dtype)[0]
            return
        if self._buffer is not None and (self._buffer.dtype, self._buffer.device) != (work, device):
            self.solve()
            self._buffer = None
        if self._buffer is None:
            self._buffer = torch.empty(min(capacity, len(self.values)), n, n, dtype=work, device=device)
        target = self._buffer[len(self._slots)]
        if gram is not None:
            target.copy_(gram)
        else:
            tall = block.matrix if block.matrix.shape[0] >= block.matrix.shape[1] else block.matrix.mT
            _gram_into(target, tall, block.scale)
        self._slots.append(slot)
        self._blocks.append(block)
        if len(self._slots) == len(self._buffer):
            self.solve()

    def solve(self) -> None:
        """Compute the eigenvalues of all windows that wait."""
        if self._slots and self._buffer is not None:
            self.values[self._slots] = _solve(self._buffer[: len(self._slots)], self._blocks, self.dtype)
        self._slots, self._blocks = [], []


def _add_windows(
    group: _Group, matrix: Tensor, scale: float, size: tuple[int, int], starts: Sequence[tuple[int, int]], memory: int
) -> float:
    """Hand all windows of a matrix to the group; returns the largest growth of their rounding errors."""
    if size[0] < size[1]:
        matrix, size, starts = matrix.mT, (size[1], size[0]), [(column, row) for row, column in starts]
    slots = list(enumerate(starts, group.taken))
    group.taken += len(starts)
    return _add_strip(group, matrix, scale, size, slots, max(_SLIDING * memory, _SLIDING_BYTES))


def _add_strip(
    group: _Group,
    matrix: Tensor,
    scale: float,
    size: tuple[int, int],
    slots: Sequence[tuple[int, tuple[int, int]]],
    memory: float,
) -> float:
    """Hand over windows, each with its slot; half the columns at a time where a sliding Gram matrix is too large."""
    work = _work_dtype(matrix, group.dtype)
    columns = sorted({column for _, (_, column) in slots})
    left, right = columns[0], columns[-1] + size[1]
    sliding = None
    if _sliding_pays(size, [start for _, start in slots]):
        if (right - left) ** 2 * work.itemsize <= memory:
            sliding = _SlidingGram(matrix[:, left:right], size, scale, work)
        elif len(columns) > 1:
            middle = columns[len(columns) // 2]
            halves = ([s for s in slots if s[1][1] < middle], [s for s in slots if s[1][1] >= middle])
            return max(_add_strip(group, matrix, scale, size, half, memory) for half in halves)
    worst = 1.0
    for slot, (row, column) in sorted(slots, key=lambda item: item[1]):
        block = _Block(matrix[row : row + size[0], column : column + size[1]], scale)
        gram = None
        if sliding is not None:
            sliding.move_to(row)
            gram, growth = sliding.window(column - left)
            if growth > _GROWTH:
                gram, growth = None, 1.0
            block = block._replace(growth=growth)
            worst = max(worst, growth)
        group.add(slot, block, gram)
    return worst


def _sliding_pays(size: tuple[int, int], starts: Sequence[tuple[int, int]]) -> bool:
    """Whether one Gram matrix that slides down is less work than one for each window."""
    long, short = size
    rows = sorted({row for row, _ in starts})
    columns = [column for _, column in starts]
    width = max(columns) - min(columns) + short
    strips = long + sum(min(long, 2 * (low - high)) for high, low in itertools.pairwise(rows))
    return strips * (width**2 - (width - short) ** 2) < len(starts) * long * short**2


class _SlidingGram:
    """The Gram matrix of ``rows`` consecutive rows of a matrix, near its diagonal, for one place after the other."""

    def __init__(self, matrix: Tensor, size: tuple[int, int], scale: float, work: torch.dtype) -> None:
        self._matrix = matrix
        self._rows, self._width = size
        self._scale = scale
        columns = matrix.shape[1]
        self._gram = torch.zeros(columns, columns, dtype=work, device=matrix.device)
        self._scratch = _scratch(matrix[: self._rows], work)  # one for all: the holes of freed ones would add up
        self._passed = torch.zeros(columns, dtype=torch.float64)  # sums of squares added or subtracted
        self._top: int | None = None

    def move_to(self, row: int) -> None:
        """Let the rows be those from ``row`` on; places must not go up."""
        if self._top == row:
            return
        if self._top is None or 2 * (row - self._top) >= self._rows:
            self._gram.zero_()
            self._passed.zero_()
            self._add(row, row + self._rows, 1)
        else:
            self._add(self._top + self._rows, row + self._rows, 1)
            self._add(self._top, row, -1)
        self._top = row

    def window(self, column: int) -> tuple[Tensor, float]:
        """The Gram matrix of the window at this column (lower triangle), and the growth of its rounding errors."""
        block = self._gram[column : column + self._width, column : column + self._width]
        present = float(block.diagonal().real.sum())
        passed = float(self._passed[column : column + self._width].sum())
        if present <= 0:
            return block, 1.0 if passed == 0 else math.inf
        return block, max(1.0, passed / present)

    def _add(self, top: int, bottom: int, sign: int) -> None:
        columns = self._matrix.shape[1]
        for chunk in _chunks(self._matrix[top:bottom], self._scale, self._scratch):
            for left in range(0, columns, _BLOCK):
                right, near = min(left + _BLOCK, columns), max(0, left - self._width + 1)
                self._gram[left:right, near:right].addmm_(chunk[:, left:right].mH, chunk[:, near:right], alpha=sign)
            self._passed += torch.linalg.vector_norm(chunk, dim=0).square().to("cpu", torch.float64)
