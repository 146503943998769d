"""Tails fitted to the pooled spectra of FARMS windows, with the error that the choice of the windows makes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor

from tempbalance.spectra.matrices import Layout, as_matrices
from tempbalance.spectra.windowed_gram import WindowValues, window_values
from tempbalance.spectra.windows import FARMS, Plan, Windows, coverage
from tempbalance.tail import Hill, TailEstimator
from tempbalance.types import Spectrum, Status, TailFit

__all__ = ["WeightFit", "fit_windows", "pooled_fits", "window_key"]

_GROUPS = 16  # of the jackknife: more windows than that are left out several at a time
_CHUNK = 1 << 18  # eigenvalues fitted at a time
_FLOOR = 3.5  # how far square windows of a random matrix are off, each, in (alpha - 1) / side: measured 2.8 to 4.0
_GROWTH = 4  # windows are added in steps of at least a quarter, and at most doubled
# The 97.5 % quantile of Student's t over that of the normal law, for 1, 2, 3, ... degrees of freedom.
_STUDENT = (6.483, 2.195, 1.624, 1.417, 1.312, 1.248, 1.206, 1.177, 1.154, 1.137, 1.123, 1.112, 1.102, 1.094, 1.087)


class WeightFit(NamedTuple):
    """What the windows of one weight say.

    Attributes:
        spectrum: The pooled spectrum; its shape is that of a window.
        fit: The tail; its standard error is that of the choice of windows (where there is only one window, and for
            ``FARMSAsReleased``, that of the estimator).
        num_windows: Windows cut from each matrix of the weight.
        coverage: Share of the weight's entries inside at least one window.
    """

    spectrum: Spectrum
    fit: TailFit
    num_windows: int
    coverage: float


def fit_windows(
    weight: Tensor,
    layout: Layout = Layout.MATRIX,
    *,
    windows: Windows | None = None,
    estimator: TailEstimator | None = None,
    device: torch.device | str | None = None,
) -> WeightFit:
    """Fit the tail of one weight by FARMS: pool the spectra of windows of one aspect ratio, then fit.

    The standard error is that of a jackknife: with the alphas ``a_(-j)`` without group ``j`` of ``m_j`` of the ``W``
    windows, ``h_j = W / m_j`` and the pseudo-values ``t_j = h_j a - (h_j - 1) a_(-j)``, it is ``sqrt(1/G sum_j (t_j -
    t)^2 / (h_j - 1))``, ``t`` being their mean weighted by ``m_j`` (Busing, Meijer and van der Leeden 1999); up to 16
    windows are left out one at a time. It is multiplied by the ratio of the 97.5 % quantiles of Student's t with ``G -
    1`` degrees of freedom and of the normal law, so that plus or minus 2 standard errors means the same for few
    windows. A few windows may agree by chance, and adding windows until they do would make that the rule: the standard
    error is never taken to be less than ``3.5 (a - 1) / (n sqrt(W))``, that of ``W`` square windows of side ``n`` of a
    random matrix (with ``Hill``, measured).

    That holds for ``Hill`` and ``AveragedHill``, which move little where windows do. With an estimator that searches
    for its threshold (``Peak``, ``KS``) alpha jumps, and no set of windows tells how far the next jump would go: the
    standard error is then a rough scale, exceeded twofold more often than one time in twenty and at times manyfold.

    Args:
        weight: Floating-point or complex tensor whose axes fit ``layout``.
        layout: How the axes of ``weight`` form matrices; the windows of all of them are pooled.
        windows: Which windows; by default ``FARMS()``.
        estimator: How the tail is fitted; by default ``Hill()``.
        device: Where to compute; by default where the weight is.

    Returns:
        The pooled spectrum and its tail.

    Raises:
        NonFiniteError: The weight holds NaN or Inf.
        WeightError: Its shape or dtype is not a weight's.
        WindowError: No window of this aspect ratio fits into its matrices.

    Example:
        >>> from tempbalance.testing import matrix_with_spectrum, pareto_quantiles
        >>> found = fit_windows(matrix_with_spectrum(pareto_quantiles(64, 3.0), (64, 128)))
        >>> found.spectrum.shape, found.num_windows >= 5, found.coverage
        ((32, 32), True, 1.0)
    """
    return pooled_fits(
        [as_matrices(weight, layout)],
        [layout],
        windows=windows if windows is not None else FARMS(),
        estimator=estimator or Hill(),
        device=device,
    )[0]


def window_key(shape: tuple[int, int], layout: Layout, windows: Windows) -> object:
    """Weights with equal keys have windows that can share a batch.

    Args:
        shape: ``(rows, columns)`` of the matrices of a weight.
        layout: Of the weight.
        windows: Which windows.

    Returns:
        Something to compare: the sides of the window.

    Raises:
        WindowError: No window fits.

    Example:
        >>> window_key((384, 1536), Layout.MATRIX, FARMS()) == window_key((384, 384), Layout.MATRIX, FARMS())
        True
    """
    return sorted(_plan(shape, layout, windows).size)


def pooled_fits(
    batches: Sequence[Tensor],
    layouts: Sequence[Layout],
    *,
    windows: Windows,
    estimator: TailEstimator,
    device: torch.device | str | None = None,
) -> list[WeightFit]:
    """Fit several weights whose windows have the same sides; all their windows go through the same batched calls.

    Args:
        batches: One tensor of shape ``(B_i, rows_i, columns_i)`` per weight, with equal ``window_key``.
        layouts: Of the weights.
        windows: Which windows.
        estimator: How the tails are fitted.
        device: Where to compute; by default where each weight is.

    Returns:
        One fit per weight.

    Raises:
        NonFiniteError: A weight holds NaN or Inf.
        WindowError: No window fits.

    Example:
        >>> weights = [torch.ones(1, 8, 8), torch.ones(3, 8, 16)]
        >>> layouts = [Layout.MATRIX, Layout.STACK]
        >>> found = pooled_fits(weights, layouts, windows=FARMS(windows=2), estimator=Hill())
        >>> [fit.spectrum.num_matrices for fit in found]
        [4, 12]
    """
    states = [_State.begin(batch, layout, windows) for batch, layout in zip(batches, layouts, strict=True)]
    pending = states
    while pending:
        found = window_values(
            [state.matrices for state in pending],
            [state.plan.size for state in pending],
            [state.plan.starts[state.used : state.wanted] for state in pending],
            device=device,
        )
        for state, values in zip(pending, found, strict=True):
            state.add(values)
            if isinstance(windows, FARMS):
                state.estimate(estimator, windows.tolerance)
            else:
                state.replay(estimator)
        pending = [state for state in pending if state.wanted > state.used]
    return [state.result() for state in states]


def _plan(shape: tuple[int, int], layout: Layout, windows: Windows) -> Plan:
    if isinstance(windows, FARMS):
        return windows.plan(shape)
    return windows.plan((max(shape), min(shape)) if layout is Layout.TAPS else shape, layout)


@dataclass
class _State:
    """A weight while windows are added; ``wanted`` windows are to be used, of which ``used`` are."""

    matrices: Tensor
    layout: Layout
    plan: Plan
    wanted: int
    used: int = 0
    values: Tensor | None = None
    error_bound: float = 0.0
    fit: TailFit | None = None

    @classmethod
    def begin(cls, matrices: Tensor, layout: Layout, windows: Windows) -> _State:
        """Plan the windows of one weight; none is computed yet."""
        if layout is Layout.TAPS and not isinstance(windows, FARMS) and matrices.shape[1] < matrices.shape[2]:
            matrices = matrices.mT  # the released code turns its taps tall
        plan = _plan((matrices.shape[1], matrices.shape[2]), layout, windows)
        return cls(matrices, layout, plan, plan.first)

    def add(self, found: WindowValues) -> None:
        """Take the eigenvalues of the windows just computed."""
        self.values = found.eigenvalues if self.values is None else torch.cat([self.values, found.eigenvalues])
        self.error_bound = max(self.error_bound, found.error_bound)
        self.used = len(self.values)

    def estimate(self, estimator: TailEstimator, tolerance: float) -> None:
        """Fit what is there, and decide whether more windows are needed."""
        self.fit, reliable = _fit_with_error(self._values(), estimator)
        if self.fit.status is not Status.OK or not reliable or self.fit.stderr <= tolerance:
            return
        ratio = (self.fit.stderr / tolerance) ** 2 if math.isfinite(self.fit.stderr) else 2.0
        least = self.used + max(1, self.used // _GROWTH)
        self.wanted = min(len(self.plan.starts), max(least, math.ceil(self.used * min(ratio, 2.0))))

    def replay(self, estimator: TailEstimator) -> None:
        """As the released code: one fit for a linear layer, the mean over the places for a convolution."""
        values = self._values()
        if self.layout is not Layout.TAPS:
            self.fit = estimator.fit(values.flatten())
            return
        self.values = values / 2  # of weights times sqrt(1/2)
        self.fit = _mean_fit(estimator.fit_batch(self.values.flatten(1)))

    def result(self) -> WeightFit:
        """The outcome, once no more windows are wanted."""
        values = self._values()
        assert self.fit is not None
        _, rows, columns = self.matrices.shape
        return WeightFit(
            spectrum=Spectrum(
                eigenvalues=values.flatten().sort().values,
                shape=self.plan.size,
                num_matrices=values.shape[0] * values.shape[1],
                error_bound=self.error_bound,
            ),
            fit=self.fit,
            num_windows=self.used,
            coverage=coverage((rows, columns), self.plan.size, self.plan.starts[: self.used]),
        )

    def _values(self) -> Tensor:
        assert self.values is not None
        return self.values


def _fit_with_error(values: Tensor, estimator: TailEstimator) -> tuple[TailFit, bool]:
    """Fit windows ``(W, B, n)``; whether the standard error is that of the choice of windows."""
    windows = values.flatten(1)
    fit = estimator.fit(windows.flatten())
    count = len(windows)
    if fit.status is not Status.OK or count == 1:
        return fit, False
    # Round robin: windows that follow each other in the grid are neighbours, and say much the same.
    groups = [list(range(first, count, _GROUPS)) for first in range(min(_GROUPS, count))]
    without = [torch.tensor(sorted(set(range(count)).difference(group))) for group in groups]
    alphas = [left_out.alpha for left_out in _fits(windows, without, estimator)]
    shares = [len(group) / count for group in groups]
    pseudo = [fit.alpha / share - (1 / share - 1) * alpha for share, alpha in zip(shares, alphas, strict=True)]
    mean = sum(share * value for share, value in zip(shares, pseudo, strict=True))
    variance = fmean((value - mean) ** 2 / (1 / share - 1) for share, value in zip(shares, pseudo, strict=True))
    least = _FLOOR * (fit.alpha - 1) / values.shape[2] / math.sqrt(count * values.shape[1])
    return replace(fit, stderr=max(math.sqrt(variance) * _STUDENT[len(groups) - 2], least)), True


def _fits(windows: Tensor, subsets: Sequence[Tensor], estimator: TailEstimator) -> list[TailFit]:
    """Fit subsets of windows; those of one size together, a bounded number at a time."""
    found: list[TailFit | None] = [None] * len(subsets)
    for size in {len(subset) for subset in subsets}:
        places = [place for place, subset in enumerate(subsets) if len(subset) == size]
        step = max(1, _CHUNK // (size * windows.shape[1]))
        for start in range(0, len(places), step):
            some = places[start : start + step]
            fits = estimator.fit_batch(torch.stack([windows[subsets[place]].flatten() for place in some]))
            for place, fit in zip(some, fits, strict=True):
                found[place] = fit
    return [fit for fit in found if fit is not None]


def _mean_fit(fits: Sequence[TailFit]) -> TailFit:
    """The mean of the fits at the places of a convolution; no fit where one of them failed."""
    bad = next((fit for fit in fits if fit.status is not Status.OK), None)
    if bad is not None:
        return bad
    return TailFit(
        status=Status.OK,
        alpha=fmean(fit.alpha for fit in fits),
        stderr=math.sqrt(sum(fit.stderr**2 for fit in fits)) / len(fits),
        xmin=fmean(fit.xmin for fit in fits),
        num_tail=sum(fit.num_tail for fit in fits),
        ks_distance=fmean(fit.ks_distance for fit in fits),
    )
