"""The windows of the code released with FARMS."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from torch import Tensor

from tempbalance.errors import WindowError
from tempbalance.spectra.jackknife import FitBatch
from tempbalance.spectra.matrices import Layout
from tempbalance.spectra.windows import WindowGrid, Windows, check_integer, check_real
from tempbalance.types import Status, TailFit

__all__ = ["FARMSAsReleased"]

_FEWEST_OPS = 2


@dataclass(frozen=True)
class FARMSAsReleased(Windows):
    """The windows of the code released with FARMS, for replays of published numbers; otherwise use ``FARMS``.

    Linear layers, ``fixed_sampling`` of the language-model code: the window has ``min(rows, matrix rows, matrix
    columns)`` rows and ``int(rows * aspect_ratio)`` columns; along each axis ``step = max(1, (dim - window) //
    (ops_per_dim - 1))``, ``min(ops_per_dim, (dim - window) // step + 1)`` windows from 0 on (the far edge may stay
    uncovered); all eigenvalues are pooled and fitted once.

    Convolutions: each kernel tap, turned tall (``r x c``), is cut into ``r // c`` windows along its rows, of ``c`` rows
        and ``int(c // (1 / aspect_ratio))`` columns (for an aspect ratio above 1: ``int(c // aspect_ratio)`` rows, all
        columns), times ``sqrt(1/2)``. The taps at one position are pooled and fitted, and alpha is the mean over the
        positions.

    If a window is wider than the matrix, the released code uses one of another aspect ratio (28 columns for a window of
    128 on a matrix of 100); here that raises.

    Attributes:
        rows: Rows of a window; 2000 for LLaMA, 100 for images.
        ops_per_dim: Positions per axis, at least 2: 10 or 15 for LLaMA, 9 for images. (The released code divides by
            zero for one.)
        aspect_ratio: Columns over rows; 1 in every published experiment.

    Example:
        >>> FARMSAsReleased(64, 3).grid((100, 130), Layout.MATRIX).starts[-1]
        (36, 66)
    """

    rows: int
    ops_per_dim: int
    aspect_ratio: float = 1.0

    def __post_init__(self) -> None:
        check_integer("rows", self.rows, 1)
        check_integer("ops_per_dim", self.ops_per_dim, _FEWEST_OPS)
        check_real("aspect_ratio", self.aspect_ratio)

    def grid(self, shape: tuple[int, int], layout: Layout = Layout.MATRIX) -> WindowGrid:
        """Return size and positions of the windows of a matrix.

        Args:
            shape: ``(rows, columns)`` of the matrix; a kernel tap is turned tall first.
            layout: Layout of the weight: ``TAPS`` is treated as a convolution, everything else as a linear layer.

        Returns:
            Size and positions.

        Raises:
            WindowError: The window is empty, or wider than the matrix.
        """
        if layout is Layout.TAPS:
            rows, columns = max(shape), min(shape)
            height = int(columns // self.aspect_ratio) if self.aspect_ratio > 1 else columns
            width = columns if self.aspect_ratio > 1 else int(columns // (1 / self.aspect_ratio))
            height, width = max(1, height), max(1, width)
            starts = tuple((i * height, 0) for i in range(rows // columns))
            return WindowGrid((height, width), starts, len(starts))
        rows, columns = shape
        height = min(self.rows, rows, columns)
        width = int(height * self.aspect_ratio)
        if not 1 <= width <= columns:
            raise WindowError(
                f"a window of {height} x {width} does not fit into {rows} x {columns}, "
                "where the released code does not keep its aspect ratio: use FARMS"
            )
        down, along = self._steps(rows - height), self._steps(columns - width)
        starts = tuple((row, column) for row in down for column in along)
        return WindowGrid((height, width), starts, len(starts))

    def orient(self, matrices: Tensor, layout: Layout) -> Tensor:
        """Turn kernel taps tall."""
        return matrices.mT if layout is Layout.TAPS and matrices.shape[1] < matrices.shape[2] else matrices

    def num_distinct(self, shape: tuple[int, int], grid: WindowGrid) -> int:
        """Count the eigenvalues of all windows, as the released code does."""
        del shape
        return len(grid.starts) * min(grid.size)

    def fit(self, values: Tensor, layout: Layout, fit_batch: FitBatch) -> tuple[Tensor, TailFit]:
        """Fit a linear layer once; for a convolution, average the fits of its window positions. No jackknife."""
        if layout is not Layout.TAPS:
            return values, fit_batch(values.reshape(1, -1))[0]
        values = values / 2  # of weights times sqrt(1/2)
        return values, _mean_fit(fit_batch(values.flatten(1)))

    def _steps(self, span: int) -> list[int]:
        step = max(1, span // (self.ops_per_dim - 1))
        return [i * step for i in range(min(self.ops_per_dim, span // step + 1))]


def _mean_fit(fits: Sequence[TailFit]) -> TailFit:
    """Return the mean of the fits at the window positions of a convolution, or the first failure."""
    failure = next((fit for fit in fits if fit.status is not Status.OK), None)
    return failure or TailFit(
        status=Status.OK,
        alpha=fmean(fit.alpha for fit in fits),
        stderr=math.sqrt(sum(fit.stderr**2 for fit in fits)) / len(fits),
        xmin=fmean(fit.xmin for fit in fits),
        num_tail=sum(fit.num_tail for fit in fits),
        ks_distance=fmean(fit.ks_distance for fit in fits),
    )
