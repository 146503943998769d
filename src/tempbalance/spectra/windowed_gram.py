"""The eigenvalues of many windows of a weight, from one sliding Gram matrix where that saves work.

The Gram matrices of overlapping windows over the same rows are diagonal blocks of one larger Gram matrix. To move it
down, the rows that enter are added and those that leave are subtracted.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tempbalance.errors import WeightError
from tempbalance.spectra.gram import (
    BATCH_NDIM,
    GramOptions,
    GramSource,
    aligned,
    cast_chunks,
    gram_dtype,
    gram_into,
    power_of_two_scale,
    readable,
    scratch_rows,
    solve_gram,
    unscaled,
)

__all__ = ["WindowValues", "sliding_saves_work", "window_values"]

_OPTIONS = GramOptions()
_MAX_GROWTH = 16.0  # sum of the squares added and subtracted, over the present sum; above it, a window is computed anew


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
    options: GramOptions = _OPTIONS,
) -> list[WindowValues]:
    """Compute the eigenvalues of windows of several weights, all of one size or transposed, in few calls.

    The memory used is at most about 2.5 times that of the largest weight: a sliding Gram matrix of at most 1.25 times,
    where it saves work, the Gram matrices of some windows, and LAPACK's copy of these. Windows are views.

    Args:
        batches: One tensor of shape ``(B_i, rows_i, columns_i)`` per weight.
        sizes: For each weight ``(rows, columns)`` of a window.
        starts: For each weight the upper left corners of its windows, the same in all its matrices; not empty.
        device: Device for the computation; by default that of each weight.
        options: Precision and memory limits.

    Returns:
        One set of eigenvalues per weight. On a CPU they do not depend on which weights share a call.

    Raises:
        NonFiniteError: A weight contains NaN or Inf.
        WeightError: A tensor is not three-dimensional, or too large or small to be squared.
    """
    if any(batch.ndim != BATCH_NDIM for batch in batches):
        raise WeightError(f"expected tensors (B, rows, columns), got {[tuple(batch.shape) for batch in batches]}")
    options = options.on(batches[0], device)
    pieces = [readable(matrices if device is None else matrices.to(device)) for matrices in batches]
    scales = [power_of_two_scale(matrices, options.work) for matrices in pieces]
    limit = max(options.group_bytes, max(matrices.numel() * matrices.itemsize for matrices in batches) // 2)
    total = sum(len(matrices) * len(corners) for matrices, corners in zip(pieces, starts, strict=True))
    group = _Group(torch.empty(total, min(sizes[0]), dtype=torch.float64), options, limit)
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
        bound = math.sqrt(max(size)) * torch.finfo(options.work).eps * growth
        results.append(WindowValues(unscaled(own, scale), bound))
    return results


class _Group:
    """Gram matrices whose eigenvalues are computed in one call, as many as the memory limit allows."""

    def __init__(self, values: Tensor, options: GramOptions, limit: int) -> None:
        self.values = values
        self.options = options
        self.taken = 0  # windows added so far, solved or not
        self._limit = limit
        self._buffer: Tensor | None = None
        self._slots: list[int] = []
        self._blocks: list[GramSource] = []

    def add(self, slot: int, block: GramSource, gram: Tensor | None) -> None:
        """Add one window; ``gram`` is the Gram matrix of its smaller side if that is available."""
        work = gram_dtype(block.matrix, self.options.work)
        n, device = min(block.matrix.shape), block.matrix.device
        capacity = max(1, self._limit // (n * n * work.itemsize))
        if capacity == 1 and gram is not None:  # LAPACK's copy is enough
            self.values[slot] = solve_gram(gram.unsqueeze(0), [block], self.options.work)[0]
            return
        if self._buffer is not None and (self._buffer.dtype, self._buffer.device) != (work, device):
            self.solve()
            self._buffer = None
        if self._buffer is None:
            self._buffer = aligned(min(capacity, len(self.values)), n, work, device)
        target = self._buffer[len(self._slots)]
        if gram is not None:
            target.copy_(gram)
        else:
            tall = block.matrix if block.matrix.shape[0] >= block.matrix.shape[1] else block.matrix.mT
            gram_into(target, tall, block.scale, self.options)
        self._slots.append(slot)
        self._blocks.append(block)
        if len(self._slots) == len(self._buffer):
            self.solve()

    def solve(self) -> None:
        """Compute the eigenvalues of all windows that were added."""
        if self._slots and self._buffer is not None:
            self.values[self._slots] = solve_gram(self._buffer[: len(self._slots)], self._blocks, self.options.work)
        self._slots, self._blocks = [], []


def _add_windows(
    group: _Group, matrix: Tensor, scale: float, size: tuple[int, int], starts: Sequence[tuple[int, int]], memory: int
) -> float:
    """Add all windows of a matrix to the group; return the largest growth of their rounding errors."""
    if size[0] < size[1]:
        matrix, size, starts = matrix.mT, (size[1], size[0]), [(column, row) for row, column in starts]
    slots = list(enumerate(starts, group.taken))
    group.taken += len(starts)
    limit = max(group.options.sliding_factor * memory, group.options.sliding_bytes)
    return _add_strip(group, matrix, scale, size, slots, limit)


def _add_strip(
    group: _Group,
    matrix: Tensor,
    scale: float,
    size: tuple[int, int],
    slots: Sequence[tuple[int, tuple[int, int]]],
    memory: float,
) -> float:
    """Add windows, each with its slot; half the columns at a time where a sliding Gram matrix is too large."""
    options = group.options
    work = gram_dtype(matrix, options.work)
    columns = sorted({column for _, (_, column) in slots})
    left, right = columns[0], columns[-1] + size[1]
    sliding = None
    if options.sliding or (options.sliding is None and sliding_saves_work(size, [start for _, start in slots])):
        if (right - left) ** 2 * work.itemsize <= memory:
            sliding = _SlidingGram(matrix[:, left:right], size, scale, options)
        elif len(columns) > 1:
            middle = columns[len(columns) // 2]
            halves = ([s for s in slots if s[1][1] < middle], [s for s in slots if s[1][1] >= middle])
            return max(_add_strip(group, matrix, scale, size, half, memory) for half in halves)
    worst = 1.0
    for slot, (row, column) in sorted(slots, key=lambda item: item[1]):
        block = GramSource(matrix[row : row + size[0], column : column + size[1]], scale)
        gram = None
        if sliding is not None:
            sliding.move_to(row)
            gram, growth = sliding.window(column - left)
            if growth > _MAX_GROWTH:
                gram, growth = None, 1.0
            block = block._replace(growth=growth)
            worst = max(worst, growth)
        group.add(slot, block, gram)
    return worst


def sliding_saves_work(size: tuple[int, int], starts: Sequence[tuple[int, int]]) -> bool:
    """Return whether a sliding Gram matrix is less work than one per window; ``size`` is ``(long, short)``."""
    long, short = size
    rows = sorted({row for row, _ in starts})
    columns = [column for _, column in starts]
    width = max(columns) - min(columns) + short
    strips = long + sum(min(long, 2 * (low - high)) for high, low in itertools.pairwise(rows))
    return strips * (width**2 - (width - short) ** 2) < len(starts) * long * short**2


class _SlidingGram:
    """The Gram matrix of a range of rows, near its diagonal; the range moves down the matrix."""

    def __init__(self, matrix: Tensor, size: tuple[int, int], scale: float, options: GramOptions) -> None:
        self._matrix = matrix
        self._rows, self._width = size
        self._scale = scale
        self._block = options.block
        columns, work = matrix.shape[1], gram_dtype(matrix, options.work)
        self._gram = torch.zeros(columns, columns, dtype=work, device=matrix.device)
        self._scratch = scratch_rows(matrix[: self._rows], work, options)  # reused, so that memory does not fragment
        self._passed = torch.zeros(columns, dtype=torch.float64)  # sums of squares added or subtracted
        self._top: int | None = None

    def move_to(self, row: int) -> None:
        """Use the rows from ``row`` on; it must not decrease."""
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
        """Return the Gram matrix of the window at this column (lower triangle) and the growth of its errors."""
        block = self._gram[column : column + self._width, column : column + self._width]
        present = float(block.diagonal().real.sum())
        passed = float(self._passed[column : column + self._width].sum())
        if present <= 0:
            return block, 1.0 if passed == 0 else math.inf
        return block, max(1.0, passed / present)

    def _add(self, top: int, bottom: int, sign: int) -> None:
        columns = self._matrix.shape[1]
        for chunk in cast_chunks(self._matrix[top:bottom], self._scale, self._scratch):
            for left in range(0, columns, self._block):
                right, near = min(left + self._block, columns), max(0, left - self._width + 1)
                self._gram[left:right, near:right].addmm_(chunk[:, left:right].mH, chunk[:, near:right], alpha=sign)
            self._passed += torch.linalg.vector_norm(chunk, dim=0).square().to("cpu", torch.float64)
