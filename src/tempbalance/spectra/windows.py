"""FARMS windows: submatrices of one aspect ratio, so that alphas of layers of different shapes can be compared.

The spectrum of a matrix depends on its aspect ratio even if all entries have the same distribution (Marchenko and
Pastur 1967). FARMS (Hu et al. 2025) therefore pools the spectra of windows of one fixed aspect ratio. This module
computes their positions.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from tempbalance.errors import WindowError
from tempbalance.spectra.jackknife import FitBatch, fit_with_jackknife
from tempbalance.spectra.matrices import Layout
from tempbalance.types import TailFit

__all__ = ["FARMS", "WindowGrid", "Windows", "check_integer", "check_real", "coverage"]

_FEWEST_WINDOWS = 5  # at the start of "auto": a standard error from four is too uncertain
_MOST_WINDOWS = 64  # at the end of "auto", while the error is above the tolerance
_DRAWS_PER_WINDOW = 16  # on a small matrix most draws repeat a position
_SMALLEST_SIDE = 2  # the spectrum of a 1 x 1 window would be the square of an entry
_PAIR = 2


class WindowGrid(NamedTuple):
    """Size and positions of the windows of one matrix.

    Attributes:
        size: ``(rows, columns)`` of a window.
        starts: ``(row, column)`` of the upper left corner of each window, all different, in the order of use.
        first: Number of windows to start with; the others are added while the error is above the tolerance.
    """

    size: tuple[int, int]
    starts: tuple[tuple[int, int], ...]
    first: int


class Windows(ABC):
    """Base class of windows: positions in a matrix, and the fit of their pooled spectrum.

    A subclass implements ``grid``. The other methods are hooks with a default.

    Attributes:
        tolerance: Windows are added while the standard error of alpha is above this.

    Example:
        >>> class Corners(Windows):
        ...     def grid(self, shape, layout=Layout.MATRIX):
        ...         side = min(shape) // 2
        ...         starts = ((0, 0), (shape[0] - side, shape[1] - side))
        ...         return WindowGrid((side, side), starts, first=len(starts))
        >>> from tempbalance.weight_fit import fit_weight
        >>> fit_weight(torch.eye(64), windows=Corners()).num_windows
        2
    """

    tolerance: float = math.inf

    @abstractmethod
    def grid(self, shape: tuple[int, int], layout: Layout = Layout.MATRIX) -> WindowGrid:
        """Return size and positions of the windows of a matrix.

        Args:
            shape: ``(rows, columns)`` of the matrix.
            layout: Layout of the weight that contains the matrix.

        Returns:
            Size and positions.

        Raises:
            WindowError: No window fits into the matrix.
        """

    def orient(self, matrices: Tensor, layout: Layout) -> Tensor:
        """Return the matrices ``(B, rows, columns)`` from which the windows are cut; by default unchanged."""
        del layout
        return matrices

    def num_distinct(self, shape: tuple[int, int], grid: WindowGrid) -> int:
        """Return the number of eigenvalues of one matrix that count towards ``TailEstimator.min_eigenvalues``.

        By default the eigenvalues of the full matrix, because its windows add no information.
        """
        del grid
        return min(shape)

    def fit(self, values: Tensor, layout: Layout, fit_batch: FitBatch) -> tuple[Tensor, TailFit]:
        """Fit the spectra of windows; by default all are pooled, with the jackknife's standard error.

        Args:
            values: Eigenvalues, float64, shape ``(windows, B, short side)``.
            layout: Layout of the weight.
            fit_batch: ``TailEstimator.fit_batch``.

        Returns:
            The eigenvalues that were fitted, of the same shape, and the fit.
        """
        del layout
        return values, fit_with_jackknife(values, fit_batch)


@dataclass(frozen=True)
class FARMS(Windows):
    """Windows of one fixed aspect ratio, as few as the tolerance allows.

    The pooled spectrum of the windows of a matrix ``A`` has the density ``mean_j rho(A_j^T A_j)`` over its windows
    ``A_j`` (Hu et al. 2025, "Eigenspectrum Analysis of Neural Networks without Aspect Ratio Bias", ICML). ``"auto"``
    uses an even grid that covers the matrix once, then windows at the points of a Halton sequence, at least 5 in
    total, until the standard error of alpha is at most ``tolerance`` or there are 64. This error is due to the choice
    of the windows (see ``fit_weight``).

    A matrix smaller than the window gets the largest window of this aspect ratio that fits into it.

    Attributes:
        aspect_ratio: Long side of a window over its short side, at least 1, along the matrix's own long side. (The
            paper's Q is rows over columns, the released code's columns over rows.)
        rows: Short side of a window; by default half of the matrix's short side, at least 2 where the matrix has 2.
        windows: ``"auto"``, or the number of evenly spread positions: ``k`` for ``k x k`` or a pair
            ``(down the rows, along the columns)``. Positions that coincide are used once.
        tolerance: ``"auto"`` adds windows while the standard error of alpha is above this.

    Raises:
        WindowError: A parameter is out of range or of the wrong type.

    Example:
        >>> FARMS().grid((384, 1536)).size
        (192, 192)
        >>> FARMS(aspect_ratio=2.0, windows=3).grid((100, 400)).starts[:4]
        ((0, 0), (0, 150), (0, 300), (25, 0))
    """

    aspect_ratio: float = 1.0
    rows: int | None = None
    windows: int | tuple[int, int] | Literal["auto"] = "auto"
    tolerance: float = 0.02

    def __post_init__(self) -> None:
        check_real("aspect_ratio", self.aspect_ratio)
        if self.aspect_ratio < 1:
            raise WindowError(
                f"aspect_ratio is the long side over the short side, so at least 1; got {self.aspect_ratio}: "
                f"give {1 / self.aspect_ratio:g} instead"
            )
        if self.rows is not None:
            check_integer("rows", self.rows, 1)
        if self.windows != "auto":
            self._counts()
        check_real("tolerance", self.tolerance)

    def size(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Return the size of a window for a matrix of the given shape.

        Args:
            shape: ``(rows, columns)`` of the matrix.

        Returns:
            ``(rows, columns)`` of a window.

        Raises:
            WindowError: The aspect ratio is larger than the long side of the matrix.
        """
        short, long = sorted(shape)
        side = min(self.rows or max(_SMALLEST_SIDE, short // 2), short, int(long / self.aspect_ratio))
        if side < 1:
            raise WindowError(f"no window of aspect ratio {self.aspect_ratio:g} fits into {shape[0]} x {shape[1]}")
        length = int(self.aspect_ratio * side)
        return (length, side) if shape[0] >= shape[1] else (side, length)

    def grid(self, shape: tuple[int, int], layout: Layout = Layout.MATRIX) -> WindowGrid:
        """Return size and positions of the windows of a matrix; the layout is ignored."""
        del layout
        size = self.size(shape)
        spans = (shape[0] - size[0], shape[1] - size[1])
        if self.windows != "auto":
            starts = tuple(_even_positions(spans, self._counts()))
            return WindowGrid(size, starts, len(starts))
        cover = list(_even_positions(spans, (-(-shape[0] // size[0]), -(-shape[1] // size[1]))))
        more = itertools.islice(_halton(spans), _DRAWS_PER_WINDOW * _MOST_WINDOWS if len(cover) < _MOST_WINDOWS else 0)
        starts = tuple(dict.fromkeys(cover + list(more)))[: max(_MOST_WINDOWS, len(cover))]
        return WindowGrid(size, starts, min(max(_FEWEST_WINDOWS, len(cover)), len(starts)))

    def _counts(self) -> tuple[int, int]:
        counts = self.windows if isinstance(self.windows, tuple) else (self.windows,) * _PAIR
        if len(counts) != _PAIR:
            raise WindowError(f"windows must be 'auto', a number or a pair of numbers, got {self.windows!r}")
        for count in counts:
            check_integer("windows", count, 1)
        return int(counts[0]), int(counts[1])


def coverage(shape: tuple[int, int], size: tuple[int, int], starts: Iterable[tuple[int, int]]) -> float:
    """Return the fraction of a matrix's entries that lie inside at least one window."""
    corners = list(starts)
    edges = [
        torch.tensor(sorted({0, shape[axis]}.union(*({c[axis], c[axis] + size[axis]} for c in corners))))
        for axis in (0, 1)
    ]
    inside = torch.zeros(len(edges[0]) - 1, len(edges[1]) - 1, dtype=torch.float64)
    for corner in corners:
        low = [int(torch.searchsorted(edges[axis], corner[axis])) for axis in (0, 1)]
        high = [int(torch.searchsorted(edges[axis], corner[axis] + size[axis])) for axis in (0, 1)]
        inside[low[0] : high[0], low[1] : high[1]] = 1.0
    lengths = [edge.diff().to(torch.float64) for edge in edges]
    return float(lengths[0] @ inside @ lengths[1]) / (shape[0] * shape[1])


def check_integer(name: str, value: object, least: int) -> None:
    """Raise ``WindowError`` unless a parameter is an integer of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise WindowError(f"{name} must be an integer, {least} or more; got {value!r}")


def check_real(name: str, value: object) -> None:
    """Raise ``WindowError`` unless a parameter is a positive finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise WindowError(f"{name} must be a positive number, got {value!r}")


def _even_positions(spans: tuple[int, int], counts: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Return evenly spread positions that reach both edges; a single one is centred."""
    return ((row, column) for row in _even(spans[0], counts[0]) for column in _even(spans[1], counts[1]))


def _even(span: int, count: int) -> list[int]:
    if count == 1:
        return [span // 2]
    return list(dict.fromkeys((2 * i * span + count - 1) // (2 * (count - 1)) for i in range(count)))


def _halton(spans: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Yield the Halton sequence in bases 2 and 3, any first part of which is evenly spread."""
    for index in itertools.count(1):
        yield int(_radical_inverse(index, 2) * (spans[0] + 1)), int(_radical_inverse(index, 3) * (spans[1] + 1))


def _radical_inverse(index: int, base: int) -> float:
    """Return the digits of ``index`` mirrored at the radix point: 6 = 110 in base 2 becomes 0.011."""
    value, weight = 0.0, 1.0
    while index:
        index, digit = divmod(index, base)
        weight /= base
        value += digit * weight
    return value
