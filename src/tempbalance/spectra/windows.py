"""FARMS windows: submatrices of one aspect ratio, so that the shape of a layer no longer shows in its spectrum.

The spectrum of a matrix depends on its aspect ratio even where its entries do not (Marchenko and Pastur 1967). FARMS
(Hu et al. 2025) therefore pools the spectra of windows of one fixed aspect ratio. This module says where the windows
lie; nothing here touches a number of the matrix.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import torch

from tempbalance.errors import WindowError
from tempbalance.spectra.matrices import Layout

__all__ = ["FARMS", "FARMSAsReleased", "Plan", "Windows", "coverage"]

_LEAST = 5  # windows that "auto" begins with: a standard error from four is too uncertain
_MOST = 64  # windows that "auto" goes up to where the error stays above the tolerance
_TRIES = 16  # draws for each window wanted: where there are few positions, most draws are repeats
_PAIR = 2
_FEWEST_OPS = 2


class Plan(NamedTuple):
    """Where the windows of one matrix lie.

    Attributes:
        size: ``(rows, columns)`` of a window.
        starts: ``(row, column)`` of the upper left corner of each window, all different, in the order of use.
        first: How many to begin with; the rest are used as long as the error is too large.
    """

    size: tuple[int, int]
    starts: tuple[tuple[int, int], ...]
    first: int


@dataclass(frozen=True)
class FARMS:
    """Windows of one fixed aspect ratio, as few as the wanted error allows.

    The pooled spectrum of the windows of a matrix ``A`` has the density ``mean_j rho(A_j^T A_j)`` over its windows
    ``A_j`` (Hu et al. 2025, "Eigenspectrum Analysis of Neural Networks without Aspect Ratio Bias", ICML). Which
    windows: with ``"auto"`` an even grid that covers the matrix once, then windows at the points of a Halton sequence,
    at least 5 in all, until the standard error of alpha is at most ``tolerance`` or there are 64. It is the error that
    alpha has because these windows are only some of all there are (see ``fit_windows``).

    A matrix smaller than the window gets the largest window of this aspect ratio that fits into it.

    Attributes:
        aspect_ratio: Long side of a window over its short side, at least 1, along the matrix's own long side. (The
            paper's Q is rows over columns, the released code's columns over rows.)
        rows: Short side of a window; by default half of the matrix's short side.
        windows: ``"auto"``, or how many positions, evenly spread: ``k`` for ``k x k`` or a pair
            ``(down the rows, along the columns)``. Positions that coincide are used once.
        tolerance: Standard error of alpha at which ``"auto"`` is content.

    Example:
        >>> FARMS().plan((384, 1536)).size
        (192, 192)
        >>> FARMS(aspect_ratio=2.0, windows=3).plan((100, 400)).starts[:4]
        ((0, 0), (0, 150), (0, 300), (25, 0))
    """

    aspect_ratio: float = 1.0
    rows: int | None = None
    windows: int | tuple[int, int] | Literal["auto"] = "auto"
    tolerance: float = 0.02

    def __post_init__(self) -> None:
        """Check the parameters.

        Raises:
            WindowError: One is out of range or of the wrong type.
        """
        _check_real("aspect_ratio", self.aspect_ratio)
        if self.aspect_ratio < 1:
            raise WindowError(
                f"aspect_ratio is the long side over the short side, so at least 1; got {self.aspect_ratio}: "
                f"give {1 / self.aspect_ratio:g} instead"
            )
        if self.rows is not None:
            _check_integer("rows", self.rows, 1)
        if self.windows != "auto":
            self._grid_counts()
        _check_real("tolerance", self.tolerance)

    def size(self, shape: tuple[int, int]) -> tuple[int, int]:
        """The window for a matrix of the given shape.

        Args:
            shape: ``(rows, columns)`` of the matrix.

        Returns:
            ``(rows, columns)`` of a window.

        Raises:
            WindowError: The matrix is shorter than the window of short side 1.
        """
        short, long = sorted(shape)
        side = min(max(1, short // 2) if self.rows is None else self.rows, short, int(long / self.aspect_ratio))
        if side < 1:
            raise WindowError(f"no window of aspect ratio {self.aspect_ratio:g} fits into {shape[0]} x {shape[1]}")
        length = int(self.aspect_ratio * side)
        return (length, side) if shape[0] >= shape[1] else (side, length)

    def plan(self, shape: tuple[int, int]) -> Plan:
        """Where the windows of a matrix lie.

        Args:
            shape: ``(rows, columns)`` of the matrix.

        Returns:
            Size and positions.

        Raises:
            WindowError: No window fits.
        """
        size = self.size(shape)
        spans = (shape[0] - size[0], shape[1] - size[1])
        if self.windows != "auto":
            starts = tuple(_grid(spans, self._grid_counts()))
            return Plan(size, starts, len(starts))
        cover = list(_grid(spans, (-(-shape[0] // size[0]), -(-shape[1] // size[1]))))
        more = itertools.islice(_halton(spans), _TRIES * _MOST if len(cover) < _MOST else 0)
        starts = tuple(dict.fromkeys(cover + list(more)))[: max(_MOST, len(cover))]
        return Plan(size, starts, min(max(_LEAST, len(cover)), len(starts)))

    def _grid_counts(self) -> tuple[int, int]:
        counts = self.windows if isinstance(self.windows, tuple) else (self.windows,) * _PAIR
        if len(counts) != _PAIR or self.windows == "auto":
            raise WindowError(f"windows must be 'auto', a number or a pair of numbers, got {self.windows!r}")
        for count in counts:
            _check_integer("windows", count, 1)
        return int(counts[0]), int(counts[1])


@dataclass(frozen=True)
class FARMSAsReleased:
    """The windows of the code released with FARMS, for replays of published numbers; otherwise use ``FARMS``.

    Linear layers, ``fixed_sampling`` of the language-model code: the window has ``min(rows, matrix rows, matrix
    columns)`` rows and ``int(rows * aspect_ratio)`` columns; along each axis ``step = max(1, (dim - window) //
    (ops_per_dim - 1))``, ``min(ops_per_dim, (dim - window) // step + 1)`` windows from 0 on, so the far edge may stay
    uncovered; all eigenvalues are pooled and fitted once.

    Convolutions: each kernel tap, turned tall (``r x c``), is cut into ``r // c`` windows along its rows, of ``c`` rows
    and ``int(c // (1 / aspect_ratio))`` columns (for an aspect ratio above 1: ``int(c // aspect_ratio)`` rows, all
    columns), times ``sqrt(1/2)``. The taps at one place are pooled and fitted, and alpha is the mean over the places.

    Where a window would be wider than the matrix, the released code goes on with a sliver of another aspect ratio (28
    columns for a window of 128 on a matrix of 100); here that raises.

    Attributes:
        rows: Rows of a window; 2000 for LLaMA, 100 for images.
        ops_per_dim: Positions per axis: 10 or 15 for LLaMA, 9 for images.
        aspect_ratio: Columns over rows; 1 in every published experiment.

    Example:
        >>> FARMSAsReleased(64, 3).plan((100, 130), Layout.MATRIX).starts[-1]
        (36, 66)
    """

    rows: int
    ops_per_dim: int
    aspect_ratio: float = 1.0

    def __post_init__(self) -> None:
        """Check the parameters.

        Raises:
            WindowError: One is out of range or of the wrong type. (The released code divides by zero for one position.)
        """
        _check_integer("rows", self.rows, 1)
        _check_integer("ops_per_dim", self.ops_per_dim, _FEWEST_OPS)
        _check_real("aspect_ratio", self.aspect_ratio)

    def plan(self, shape: tuple[int, int], layout: Layout = Layout.MATRIX) -> Plan:
        """Where the windows of a matrix lie.

        Args:
            shape: ``(rows, columns)`` of the matrix; of a convolution's tap, turned tall.
            layout: Of the weight: ``TAPS`` is treated as a convolution, everything else as a linear layer.

        Returns:
            Size and positions.

        Raises:
            WindowError: The window is empty, or wider than the matrix.
        """
        rows, columns = shape
        if layout is Layout.TAPS:
            height = int(columns // self.aspect_ratio) if self.aspect_ratio > 1 else columns
            width = columns if self.aspect_ratio > 1 else int(columns // (1 / self.aspect_ratio))
            height, width = max(1, height), max(1, width)
            starts = tuple((i * height, 0) for i in range(rows // columns))
            return Plan((height, width), starts, len(starts))
        height = min(self.rows, rows, columns)
        width = int(height * self.aspect_ratio)
        if not 1 <= width <= columns:
            raise WindowError(
                f"a window of {height} x {width} does not fit into {rows} x {columns}, "
                "where the released code does not keep its aspect ratio: use FARMS"
            )
        down, along = self._steps(rows - height), self._steps(columns - width)
        starts = tuple((row, column) for row in down for column in along)
        return Plan((height, width), starts, len(starts))

    def _steps(self, span: int) -> list[int]:
        step = max(1, span // (self.ops_per_dim - 1))
        return [i * step for i in range(min(self.ops_per_dim, span // step + 1))]


Windows: TypeAlias = FARMS | FARMSAsReleased


def coverage(shape: tuple[int, int], size: tuple[int, int], starts: Iterable[tuple[int, int]]) -> float:
    """The share of a matrix's entries that lie inside at least one window.

    Args:
        shape: Of the matrix.
        size: Of a window.
        starts: Upper left corners.

    Returns:
        A number in [0, 1].

    Example:
        >>> coverage((4, 4), (2, 2), [(0, 0), (1, 1)])
        0.4375
    """
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


def _check_integer(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise WindowError(f"{name} must be an integer, {least} or more; got {value!r}")


def _check_real(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise WindowError(f"{name} must be a positive number, got {value!r}")


def _grid(spans: tuple[int, int], counts: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Evenly spread positions that reach both edges; a single one lies in the middle."""
    return ((row, column) for row in _even(spans[0], counts[0]) for column in _even(spans[1], counts[1]))


def _even(span: int, count: int) -> list[int]:
    if count == 1:
        return [span // 2]
    return list(dict.fromkeys((2 * i * span + count - 1) // (2 * (count - 1)) for i in range(count)))


def _halton(spans: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """The Halton sequence in bases 2 and 3: evenly spread however many of its points are taken."""
    for index in itertools.count(1):
        yield int(_radical_inverse(index, 2) * (spans[0] + 1)), int(_radical_inverse(index, 3) * (spans[1] + 1))


def _radical_inverse(index: int, base: int) -> float:
    """The digits of ``index`` mirrored at the point: 6 = 110 in base 2 becomes 0.011."""
    value, unit = 0.0, 1.0
    while index:
        index, digit = divmod(index, base)
        unit /= base
        value += digit * unit
    return value
