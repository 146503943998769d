"""The tail fits of the code released with the papers. Use them to replay published numbers only."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from tempbalance.errors import ArgumentError, check_numbers
from tempbalance.tail.estimator import TailEstimator, Tails, ks_distances, log_positive, mle_exponents
from tempbalance.tail.ks import KS
from tempbalance.tail.peak import ABOVE_PEAK, BELOW_PEAK, Peak, peaks
from tempbalance.tail.registry import register_estimator

__all__ = ["HillAsReleased", "KSAsReleased", "PeakAsReleased"]


@dataclass(frozen=True)
class HillAsReleased(TailEstimator):
    """The ``median`` fit of the code released with TempBalance, Model Balancing, FARMS, AlphaPruning and AlphaDecay.

    The tail starts at index ``floor(n / xmin_position)`` of the ascending spectrum, zeros included, and its smallest
    eigenvalue is also the threshold. So one of the ``n`` terms is always zero, which biases alpha upwards, notably in
    small spectra (5.05 instead of 3.13 for the eigenvalues 1..8). Use ``Hill`` except to replay published numbers.
    There is no fit if the tail contains a zero, of which the released code takes the logarithm.

    Attributes:
        xmin_position: More than 1: 2 keeps the top half (the default of all the released code), 1.5 the top third (the
            GLUE script of Model Balancing).
        zero: Eigenvalues up to this count as zero and are left out first; 1e-5 in Model Balancing's PDE code, which
            sets ``filter_zeros``; the other released code does not.

    Example:
        >>> import torch
        >>> round(HillAsReleased(min_eigenvalues=8).fit(torch.arange(1.0, 9.0)).alpha, 4)
        5.0453
    """

    xmin_position: float = 2.0
    zero: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(xmin_position=self.xmin_position, zero=self.zero or 0)
        if not self.xmin_position > 1:
            raise ArgumentError(f"xmin_position must be greater than 1, got {self.xmin_position}")
        if self.zero is not None and not self.zero >= 0:
            raise ArgumentError(f"zero must not be negative, got {self.zero}")

    def fit_tails(self, eigenvalues: Tensor) -> Tails:
        """Start each tail at its share of the ascending spectrum."""
        n = eigenvalues.shape[1]
        kept = (eigenvalues > (-1.0 if self.zero is None else self.zero)).sum(dim=1)
        first = n - kept + (kept / self.xmin_position).long()
        start = first.clamp(max=n - 1).unsqueeze(1)
        logs = log_positive(eigenvalues)
        xmin = eigenvalues.gather(1, start).squeeze(1)
        alpha = mle_exponents(eigenvalues).gather(1, start).squeeze(1)
        alpha = alpha.masked_fill((xmin == 0) | (kept < self.min_eigenvalues), math.nan)
        return Tails(
            alpha=alpha,
            xmin=xmin,
            num_tail=n - first,
            ks_distance=ks_distances(logs, logs.gather(1, start).squeeze(1), alpha, first),
        )


@dataclass(frozen=True)
class PeakAsReleased(Peak):
    """The ``fix-finger`` (``xmin_peak``, ``alpha_peak``) fit of the released code, including its mixed units.

    The lower end of the window is ``log10(0.95 p)`` and the upper one ``1.5 p``, both compared with eigenvalues. As the
    logarithm is far below ``p``, the search reaches far below the peak. Inherited by all the released code from
    WeightWatcher, and needed to reproduce published numbers; otherwise use ``Peak``.

    It also starts tails within a run of equal eigenvalues. The released code returns 0 or the fit at the smallest
    eigenvalue when the window is empty; here there is no fit.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> sample = torch.rand(2000, generator=generator, dtype=torch.float64) ** -0.5  # Pareto, alpha = 3
        >>> fit = PeakAsReleased().fit(sample)
        >>> abs(fit.alpha - 3) < 4 * fit.stderr
        True
    """

    def candidates(self, eigenvalues: Tensor) -> Tensor:
        """Try the eigenvalues between ``log10(0.95 p)`` and ``1.5 p``."""
        peak = peaks(eigenvalues, self.bins)
        return (eigenvalues >= (BELOW_PEAK * peak).log10()) & (eigenvalues <= ABOVE_PEAK * peak)


@dataclass(frozen=True)
class KSAsReleased(KS):
    """The fit behind the numbers that WeightWatcher published until 2020: ``powerlaw.Fit(..., xmax=lambda_max)``.

    As ``KS``, but the distance is to the law cut off at the largest eigenvalue, while alpha is the exponent of the law
    without the cut-off: ``powerlaw`` 1.x computes this with ``xmax`` (its likelihood omits the cut-off).

    Example:
        >>> import torch
        >>> fit = KSAsReleased().fit(torch.arange(1.0, 200.0) ** -2)
        >>> round(fit.alpha, 1)
        1.5
    """

    def survival(self, logs: Tensor) -> Tensor:
        """Cut the law off at the largest eigenvalue."""
        survival = super().survival(logs)
        least = survival[:, :, -1:].clone()
        return survival.sub_(least).div_(1 - least)


register_estimator("hill_as_released", HillAsReleased)
register_estimator("peak_as_released", PeakAsReleased)
register_estimator("ks_as_released", KSAsReleased)
