"""Compute the spectrum of a weight, fit its tail, and test whether it is random.

Analysis, balancing and compression all use these functions, for full matrices and for FARMS windows.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace

import torch
from torch import Tensor

from tempbalance.float32 import equal_numbers, moved_spectra
from tempbalance.metrics import Metrics, is_random, measure
from tempbalance.spectra.eigenvalues import mean_stable_rank, spectra
from tempbalance.spectra.gram import GramOptions
from tempbalance.spectra.matrices import Layout, as_matrices, matrix_shape
from tempbalance.spectra.moments import mean_over_std
from tempbalance.spectra.windowed_gram import WindowValues, window_values
from tempbalance.spectra.windows import WindowGrid, Windows, coverage
from tempbalance.tail import TailEstimator, find_estimator
from tempbalance.tail.estimator import failed
from tempbalance.traps import count_traps, delta_erg
from tempbalance.types import Spectrum, Status, TailFit

__all__ = ["WeightFit", "batch_key", "fit_weight", "fit_weights"]

_GROWTH = 4  # each step adds at least a quarter of the windows in use, and at most doubles them


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WeightFit:
    """The spectrum of one weight, its tail, and whether it is that of a random matrix.

    Attributes:
        spectrum: Spectrum pooled over the matrices of the weight and their windows; its ``shape`` is that of a window.
        fit: Tail fit of the estimator; with windows, the standard error is that due to the choice of windows.
        num_windows: Number of windows cut from each matrix; 1 without windows.
        coverage: Fraction of the weight's entries inside at least one window; 1 without windows.
        metrics: Scalars of the spectrum and of the fit.
        random: Whether the spectrum cannot be distinguished from that of a random matrix (see ``metrics.is_random``).
        num_traps: Number of correlation traps; None if they were not counted.
        delta_erg: Distance of the ERG threshold from ``xmin``; NaN if it was not measured.
    """

    spectrum: Spectrum
    fit: TailFit
    num_windows: int
    coverage: float
    metrics: Metrics
    random: bool
    num_traps: int | None = None
    delta_erg: float = math.nan

    @property
    def status(self) -> Status:
        """``Status.RANDOM`` where the weight looks untrained, else the status of the fit."""
        return Status.RANDOM if self.random else self.fit.status


def fit_weight(
    weight: Tensor,
    layout: Layout = Layout.MATRIX,
    *,
    estimator: TailEstimator | str | None = None,
    windows: Windows | None = None,
    device: torch.device | str | None = None,
) -> WeightFit:
    """Compute the spectrum of one weight and fit its tail.

    Args:
        weight: Floating-point or complex tensor whose axes fit ``layout``.
        layout: How the axes of ``weight`` form matrices; the spectra of all of them are pooled.
        estimator: Estimator of the tail, or its name (see ``tail.find_estimator``);
            by default ``Hill()``.
        windows: ``FARMS()`` pools the spectra of windows of one aspect ratio; by default full matrices are used.
        device: Device for the computation; by default that of the weight.

    Returns:
        The spectrum, its tail and its metrics.

    Raises:
        NonFiniteError: The weight contains NaN or Inf.
        WeightError: Its shape or dtype is not that of a weight.
        WindowError: No window of this aspect ratio fits into its matrices.

    Example:
        >>> from tempbalance.spectra import FARMS
        >>> from tempbalance.testing import matrix_with_spectrum, pareto_quantiles
        >>> weight = matrix_with_spectrum(pareto_quantiles(64, 3.0), (64, 128))
        >>> found = fit_weight(weight)
        >>> round(found.fit.alpha, 1), found.random
        (3.0, False)
        >>> found = fit_weight(weight, windows=FARMS())
        >>> found.spectrum.shape, found.num_windows >= 5, found.coverage
        ((32, 32), True, 1.0)
    """
    matrices = as_matrices(weight, layout)
    return fit_weights([matrices], [layout], estimator=find_estimator(estimator), windows=windows, device=device)[0]


def fit_weights(  # noqa: PLR0913  options by keyword
    matrices: Sequence[Tensor],
    layouts: Sequence[Layout],
    *,
    estimator: TailEstimator,
    windows: Windows | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    traps: bool = False,
) -> list[WeightFit]:
    """Compute the spectra of several weights and fit their tails, in batched calls.

    Args:
        matrices: One tensor of shape ``(B_i, rows_i, columns_i)`` per weight; all have the same ``batch_key``.
        layouts: Layout of each weight.
        estimator: Estimator of the tails.
        windows: Windows whose spectra are pooled; by default full matrices are used.
        device: Device for the computation; by default that of each weight.
        dtype: ``torch.float32`` for eigenvalues in float32, without windows. A weight for which that could change a
            number by more than 1e-4 of it is computed in float64; its ``error_bound`` tells. By default float64.
        traps: Whether to measure ``num_traps`` and ``delta_erg``, those of full matrices.

    Returns:
        One fit per weight. On a CPU the numbers do not depend on which weights share a batch.

    Raises:
        NonFiniteError: A weight contains NaN or Inf.
        WeightError: The tensors are not three-dimensional, or differ in shape without windows.
        WindowError: No window fits into a matrix.
    """
    if windows is None:
        options = GramOptions(dtype=dtype).on(matrices[0], device)
        results = _fit_spectra(spectra(matrices, device=device, options=options), matrices, estimator)
        if options.work is torch.float32:
            results = list(_checked(results, matrices, estimator, device))
        return [_with_traps(*each, device) for each in zip(results, matrices, strict=True)] if traps else results
    states = [_Windowed(windows, batch, layout) for batch, layout in zip(matrices, layouts, strict=True)]
    pending = states
    while pending:
        values = window_values(
            [state.matrices for state in pending],
            [state.grid.size for state in pending],
            [state.grid.starts[state.used : state.wanted] for state in pending],
            device=device,
        )
        for state, new in zip(pending, values, strict=True):
            state.add(new, estimator)
        pending = [state for state in pending if state.wanted > state.used]
    return [state.result() for state in states]


def batch_key(shape: tuple[int, ...], layout: Layout, windows: Windows | None) -> object:
    """Return a key that is equal for weights that can share a call of ``fit_weights``."""
    if windows is None:
        return shape, layout
    return sorted(windows.grid(matrix_shape(shape, layout), layout).size)


def _weight_fit(
    spectrum: Spectrum, fit: TailFit, matrices: Tensor, num_windows: int = 1, covered: float = 1.0, disjoint: int = 1
) -> WeightFit:
    """Add metrics and ``random``; ``disjoint`` is the number of windows of a matrix that share no entry."""
    metrics = measure(spectrum, fit, num_windows)
    independent = spectrum.num_matrices // num_windows * disjoint
    mean = functools.partial(mean_over_std, matrices)
    random = fit.status in {Status.OK, Status.NO_TAIL} and is_random(spectrum, metrics, independent, mean)
    return WeightFit(
        spectrum=spectrum, fit=fit, num_windows=num_windows, coverage=covered, metrics=metrics, random=random
    )


def _fit_spectra(found: Sequence[Spectrum], matrices: Sequence[Tensor], estimator: TailEstimator) -> list[WeightFit]:
    fits = estimator.fit_batch(torch.stack([spectrum.eigenvalues for spectrum in found]))
    return [_weight_fit(*each) for each in zip(found, fits, matrices, strict=True)]


def _checked(
    found: Sequence[WeightFit], matrices: Sequence[Tensor], estimator: TailEstimator, device: torch.device | str | None
) -> Iterator[WeightFit]:
    """Yield each fit in float32 if rounding errors change no number by more than 1e-4 of it, else one in float64."""
    moved = [spectrum for fit in found for spectrum in moved_spectra(fit.spectrum)]
    others = iter(_fit_spectra(moved, [batch for batch in matrices for _ in range(2)], estimator))
    for fit, batch, *pair in zip(found, matrices, others, others, strict=True):
        if all(equal_numbers(_numbers(fit), _numbers(other)) for other in pair):
            yield fit
            continue
        where = batch.device if device is None else torch.device(device)
        has_float64 = where if where.type != "mps" else "cpu"
        exact = spectra([batch], device=has_float64, options=GramOptions(dtype=torch.float64))
        yield _fit_spectra(exact, [batch], estimator)[0]


def _numbers(found: WeightFit) -> dict[str, object]:
    erg = delta_erg(found.spectrum.eigenvalues, found.fit.xmin)
    return asdict(found.fit) | asdict(found.metrics) | {"random": found.random, "delta_erg": erg}


def _with_traps(found: WeightFit, matrices: Tensor, device: torch.device | str | None) -> WeightFit:
    erg = delta_erg(found.spectrum.eigenvalues, found.fit.xmin)
    return replace(found, num_traps=count_traps(matrices, device=device), delta_erg=erg)


@dataclass
class _Windowed:
    """The windows of one weight: ``used`` are computed, ``wanted`` are needed."""

    windows: Windows
    matrices: Tensor
    layout: Layout
    grid: WindowGrid = field(init=False)
    wanted: int = field(init=False)
    used: int = 0
    error_bound: float = 0.0

    def __post_init__(self) -> None:
        self.matrices = self.windows.orient(self.matrices, self.layout)
        self.grid = self.windows.grid((self.matrices.shape[1], self.matrices.shape[2]), self.layout)
        self.wanted = self.grid.first
        self.values = torch.empty(0, len(self.matrices), min(self.grid.size), dtype=torch.float64)

    def add(self, new: WindowValues, estimator: TailEstimator) -> None:
        """Fit again with new windows, and update ``wanted``."""
        self.values = torch.cat([self.values, new.eigenvalues])
        self.used = len(self.values)
        self.error_bound = max(self.error_bound, new.error_bound)
        self.fitted, self.fit = self.windows.fit(self.values, self.layout, estimator.fit_batch)
        if self.fit.status is not Status.ZERO and self._num_distinct() < estimator.min_eigenvalues:
            self.fit = failed(Status.TOO_FEW)
        if self.fit.status is not Status.OK or self.fit.stderr <= self.windows.tolerance:
            return
        ratio = (self.fit.stderr / self.windows.tolerance) ** 2 if math.isfinite(self.fit.stderr) else 2.0
        least = self.used + max(1, self.used // _GROWTH)
        self.wanted = min(len(self.grid.starts), max(least, math.ceil(self.used * min(ratio, 2.0))))

    def result(self) -> WeightFit:
        """Return the fit of all windows in use."""
        rows, columns = self.matrices.shape[1:]
        height, width = self.grid.size
        spectrum = Spectrum(
            eigenvalues=self.fitted.flatten().sort().values,
            shape=self.grid.size,
            num_matrices=self.values.shape[0] * self.values.shape[1],
            error_bound=self.error_bound,
            stable_rank=mean_stable_rank(self.values.flatten(0, 1)),
        )
        covered = coverage((rows, columns), self.grid.size, self.grid.starts[: self.used])
        disjoint = min(self.used, max(1, rows * columns // (height * width)))
        return _weight_fit(spectrum, self.fit, self.matrices, self.used, covered, disjoint)

    def _num_distinct(self) -> int:
        count, rows, columns = self.matrices.shape
        return count * self.windows.num_distinct((rows, columns), self.grid)
