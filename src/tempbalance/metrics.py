"""Scalars of a spectrum and its tail, means over units, and the comparison with a random matrix."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from statistics import fmean, pstdev

import torch
from torch import Tensor

from tempbalance.types import ESD, Spectrum, TailFit

__all__ = [
    "FEWEST_EIGENVALUES",
    "Metrics",
    "bulk_edge",
    "bulk_variance",
    "highest_random_eigenvalue",
    "imbalance",
    "is_random",
    "mean_alpha",
    "measure",
    "mp_cdf",
    "mp_edges",
    "thin",
]

_LN10 = math.log(10)
_TAIL_POINTS = 64
_BULK_POINTS = 192
FEWEST_EIGENVALUES = 50  # needed to compare with a random matrix; the same number that TempBalance requires for a fit


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """The scalars of one spectrum; each is described in ``LayerStats``."""

    num_zero: int
    lambda_max: float
    alpha_hat: float
    log10_frobenius_norm: float
    log10_spectral_norm: float
    log10_alpha_norm: float
    stable_rank: float
    matrix_rank: int
    spectral_entropy: float
    mp_edge: float
    num_spikes: int
    mp_ks_distance: float
    mean_square: float


def measure(spectrum: Spectrum, fit: TailFit, num_windows: int = 1) -> Metrics:
    """Compute all scalars of a spectrum.

    ``alpha_hat = alpha log10(lambda_max)``; ``log10_alpha_norm = log10 sum_i lambda_i^alpha``; ``stable_rank =
    sum_i lambda_i / lambda_max`` (of several matrices: the mean of theirs); ``spectral_entropy = -sum_i p_i ln p_i /
    ln(matrix_rank)`` with ``p_i = lambda_i / sum_j lambda_j``. Norms are of the weight, not of its square:
    WeightWatcher's ``log_norm`` and ``log_spectral_norm`` are twice as large.

    The variance of the Marchenko-Pastur edge is estimated from the median eigenvalue, so that spikes do not increase it
    (Gavish and Donoho 2014, section III-D). The Marchenko-Pastur distance is to the law of a random matrix of the same
    shape and of the variance of all entries.

    Args:
        spectrum: The spectrum.
        fit: A tail fitted to it; if it failed, the scalars that depend on alpha are NaN.
        num_windows: Number of FARMS windows of each matrix that are pooled in the spectrum; the Frobenius norm and the
            alpha-norm are then those of one window, on average.

    Returns:
        The scalars; for an all-zero weight, logarithms and ratios are NaN.

    Example:
        >>> from tempbalance.spectra.eigenvalues import weight_spectrum
        >>> from tempbalance.tail import Hill
        >>> weight = weight_spectrum(torch.diag(torch.tensor([2.0, 1.0, 1.0])))
        >>> metrics = measure(weight, Hill().fit(weight))
        >>> metrics.stable_rank, metrics.matrix_rank
        (1.5, 3)
    """
    values = spectrum.eigenvalues
    total, largest = float(values.sum()), float(values[-1])
    rank = int((values > 0).sum())
    edge = bulk_edge(spectrum)
    return Metrics(
        num_zero=len(values) - rank,
        lambda_max=largest,
        alpha_hat=fit.alpha * _log10(largest),
        log10_frobenius_norm=_log10(total / num_windows) / 2,
        log10_spectral_norm=_log10(largest) / 2,
        log10_alpha_norm=_log10_power_sum(values, fit.alpha) - math.log10(num_windows),
        stable_rank=_stable_rank(spectrum, total, largest),
        matrix_rank=rank,
        spectral_entropy=_entropy(values, total, rank),
        mp_edge=edge,
        num_spikes=int((values > edge).sum()),
        mp_ks_distance=_mp_ks_distance(spectrum),
        mean_square=_mean_square(spectrum),
    )


def imbalance(alphas: Iterable[float]) -> float:
    """Compute the standard deviation of alpha over layers or blocks (Model Balancing, section 4.4).

    Args:
        alphas: Exponents; NaN and infinite ones are left out.

    Returns:
        The standard deviation of the population; NaN if no alpha is left.

    Example:
        >>> imbalance([2.0, 4.0, math.nan])
        1.0
    """
    finite = [alpha for alpha in alphas if math.isfinite(alpha)]
    return pstdev(finite) if finite else math.nan


def mean_alpha(pairs: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """Compute the mean alpha of a unit from the alphas of its layers.

    Args:
        pairs: ``(alpha, stderr)`` of each layer; those with alpha NaN are left out.

    Returns:
        The mean of alpha and its standard error ``sqrt(sum stderr^2) / n``. Both are NaN if no alpha is left, the error
        also where one is unknown (NaN).

    Example:
        >>> mean_alpha([(2.0, 0.3), (4.0, 0.4), (math.nan, math.nan)])
        (3.0, 0.25)
    """
    known = [(alpha, stderr) for alpha, stderr in pairs if math.isfinite(alpha)]
    if not known:
        return math.nan, math.nan
    alphas, errors = zip(*known, strict=True)
    return fmean(alphas), math.hypot(*errors) / len(errors)


def _stable_rank(spectrum: Spectrum, total: float, largest: float) -> float:
    if spectrum.num_matrices > 1:
        return spectrum.stable_rank
    return total / largest if largest > 0 else math.nan


def _log10(x: float) -> float:
    return math.log10(x) if x > 0 else math.nan


def _log10_power_sum(values: Tensor, power: float) -> float:
    positive = values[values > 0]
    return float(torch.logsumexp(power * positive.log(), dim=0)) / _LN10 if math.isfinite(power) else math.nan


def _entropy(values: Tensor, total: float, rank: int) -> float:
    if rank <= 1:
        return 0.0 if rank else math.nan
    return float(torch.special.entr(values / total).sum()) / math.log(rank)


def mp_edges(shape: tuple[int, int], variance: float = 1.0) -> tuple[float, float]:
    """Return the edges ``variance (sqrt(rows) -+ sqrt(columns))^2`` of the Marchenko-Pastur bulk of ``W^T W``."""
    a, b = math.sqrt(shape[0]), math.sqrt(shape[1])
    return variance * (a - b) ** 2, variance * (a + b) ** 2


def mp_cdf(x: Tensor, shape: tuple[int, int], variance: float = 1.0) -> Tensor:
    """Evaluate the distribution function of the Marchenko-Pastur law of the ``min(shape)`` eigenvalues; float64."""
    tall, short = max(shape), min(shape)
    ratio = short / tall
    low, high = (1 - math.sqrt(ratio)) ** 2, (1 + math.sqrt(ratio)) ** 2
    y = (x.to(torch.float64) / (variance * tall)).clamp(low, high)
    root = ((high - y) / (y - low).clamp(min=1e-300)).sqrt().clamp(1e-150, 1e150)
    angle = (1 + ratio) * ((root - 1 / root) / 2).atan()
    if ratio < 1:
        angle = angle - (1 - ratio) * ((low * root - high / root) / (2 * (1 - ratio))).atan()
    cdf = 0.5 + (((high - y) * (y - low)).sqrt() - angle) / (2 * math.pi * ratio)
    # For a wide matrix the closed form includes an atom at zero, which the law of min(shape) eigenvalues does not have.
    return torch.where(y <= low, 0.0, torch.where(y >= high, 1.0, cdf.clamp(0.0, 1.0)))


@functools.lru_cache(maxsize=1024)
def _mp_median(shape: tuple[int, int]) -> float:
    """Return the median of the law for unit variance, to 9 digits, on a grid that is refined around it."""
    low, high = mp_edges(shape)
    for _ in range(6):
        grid = torch.linspace(low, high, 65, dtype=torch.float64)
        above = int((mp_cdf(grid, shape) >= 0.5).to(torch.uint8).argmax())  # noqa: PLR2004
        low, high = float(grid[max(above - 1, 0)]), float(grid[above])
    return (low + high) / 2


def bulk_edge(spectrum: Spectrum) -> float:
    """Return the edge of the Marchenko-Pastur bulk, its variance estimated from the median eigenvalue."""
    return mp_edges(spectrum.shape, bulk_variance(spectrum))[1]


def bulk_variance(spectrum: Spectrum) -> float:
    """Return the variance for which the medians of the spectrum and of the Marchenko-Pastur law agree."""
    values = spectrum.eigenvalues
    median = float(values.quantile(0.5)) if len(values) < 1 << 24 else float(values[len(values) // 2])
    return median / _mp_median(spectrum.shape)


def highest_random_eigenvalue(shape: tuple[int, int], count: int = 1) -> float:
    """Return what the largest eigenvalue of ``count`` random matrices of variance 1 exceeds once in 1000 times."""
    n = min(shape)
    a, b = math.sqrt(max(shape) - 1), math.sqrt(n)
    center, width = (a + b) ** 2, (a + b) * math.pow(1 / a + 1 / b, 1 / 3)  # Johnstone 2001, section 1.2
    # The tail of the Tracy-Widom law is about exp(-2/3 s^(3/2)).
    return center + math.pow(1.5 * math.log(1000 * count), 2 / 3) * width


def _mean_square(spectrum: Spectrum) -> float:
    """Return the mean of the squared entries, from the sum of the eigenvalues."""
    rows, columns = spectrum.shape
    return float(spectrum.eigenvalues.sum()) / (spectrum.num_matrices * rows * columns)


def _mp_ks_distance(spectrum: Spectrum) -> float:
    values = spectrum.eigenvalues
    variance = _mean_square(spectrum)
    if variance == 0:
        return math.nan
    law = mp_cdf(values, spectrum.shape, variance)
    steps = torch.arange(len(values) + 1, dtype=torch.float64) / len(values)
    return float(torch.maximum((law - steps[:-1]).abs(), (law - steps[1:]).abs()).max())


def is_random(
    spectrum: Spectrum,
    metrics: Metrics,
    independent: int | None = None,
    mean_over_std: Callable[[], float] | None = None,
) -> bool:
    """Return whether a spectrum cannot be distinguished from that of a matrix of independent, identical entries.

    This tests both the distance from the Marchenko-Pastur law and the largest eigenvalue. The eigenvalues of a random
    matrix repel each other, so their distance from the law decreases like ``log(n) / n`` rather than ``1 / sqrt(n)``;
    the threshold ``(1.5 + 0.45 ln n) / n`` (pooled matrices: over ``sqrt(num_matrices)``, plus ``0.3 / n``) was
    exceeded by none of 4,400 Gaussian and uniform weights with n = 10 to 256 and aspect ratios 1 to 16. The largest
    eigenvalue is compared with the Tracy-Widom law at a probability of about 1 in 1000 (Johnstone 2001). A small matrix
    after a little training may pass the test, so spectra of fewer than 50 eigenvalues are never random, nor are
    matrices of one entry, whose eigenvalue depends on the distribution of the entries.

    A mean other than zero adds one large eigenvalue to each matrix. The others are then tested without it, if the mean
    of the entries explains its size (Benaych-Georges and Nadakuditi 2012, section 3.1).

    Args:
        spectrum: The spectrum.
        metrics: Scalars of the spectrum.
        independent: Number of pooled matrices that share no entry, for overlapping windows; by default all.
        mean_over_std: Function that returns the absolute mean of the entries over their standard deviation; None if
            the mean is zero.

    Returns:
        True if the spectrum is compatible with a random matrix.

    Example:
        >>> from tempbalance.spectra.eigenvalues import weight_spectrum
        >>> from tempbalance.tail import Hill
        >>> weight = weight_spectrum(torch.randn(200, 100, generator=torch.Generator().manual_seed(0)))
        >>> is_random(weight, measure(weight, Hill().fit(weight)))
        True
    """
    if max(spectrum.shape) == 1 or len(spectrum.eigenvalues) < FEWEST_EIGENVALUES or not metrics.lambda_max > 0:
        return False
    independent = independent or spectrum.num_matrices
    if _follows_law(spectrum, metrics.mp_ks_distance, independent):
        return True
    rows, columns = spectrum.shape
    if mean_over_std is None or min(rows, columns) == 1 or max(rows, columns) == 2:  # noqa: PLR2004
        return False
    rest = replace(spectrum, eigenvalues=spectrum.eigenvalues[: -spectrum.num_matrices], shape=(rows - 1, columns - 1))
    return _follows_law(rest, _mp_ks_distance(rest), independent) and _mean_explains(spectrum, rest, mean_over_std())


def _follows_law(spectrum: Spectrum, ks_distance: float, independent: int) -> bool:
    """Return whether a spectrum and its largest eigenvalue are compatible with the Marchenko-Pastur law."""
    n, count = min(spectrum.shape), spectrum.num_matrices
    threshold = (1.5 + 0.45 * math.log(n)) / math.sqrt(independent) + (0.3 if count > 1 else 0.0)
    if not ks_distance <= threshold / n:
        return False
    largest = float(spectrum.eigenvalues[-1]) / _mean_square(spectrum)
    return largest <= highest_random_eigenvalue(spectrum.shape, count)


def _mean_explains(spectrum: Spectrum, rest: Spectrum, mean_over_std: float) -> bool:
    """Return whether the eigenvalues that are not in the rest, one per matrix, are those of the mean."""
    rows, columns = spectrum.shape
    spikes = spectrum.eigenvalues[-spectrum.num_matrices :] / _mean_square(rest)
    size = mean_over_std * math.sqrt(rows * columns)  # singular value of the mean, in units of the standard deviation
    # The mean and the standard deviation of one matrix differ from those of all entries by their sampling errors.
    error = math.sqrt(1 + mean_over_std**2 / 2)
    spread = error * math.sqrt(2 * math.log(1000 * spectrum.num_matrices))
    if size <= (rows * columns) ** 0.25:  # the eigenvalue of the mean is inside the bulk
        return False
    low, high = max(size - spread, 0.0), size + spread
    return float(spikes[0]) >= low**2 and float(spikes[-1]) <= (high**2 + rows) * (high**2 + columns) / high**2


def thin(eigenvalues: Tensor) -> ESD:
    """Select the largest 64 eigenvalues and about 192 others, evenly spaced in rank, with their ranks, for plotting."""
    n = int((eigenvalues > 0).sum())
    if n == 0:
        return ESD((), ())
    bulk = torch.linspace(n, min(n, _TAIL_POINTS), _BULK_POINTS, dtype=torch.float64).round().long()
    ranks = torch.cat([bulk, torch.arange(1, min(n, _TAIL_POINTS) + 1)]).unique().flip(0)  # type: ignore[no-untyped-call]
    return ESD(tuple(eigenvalues[len(eigenvalues) - ranks].tolist()), tuple(ranks.tolist()))
