"""The threshold with the least Kolmogorov-Smirnov distance (Clauset, Shalizi and Newman 2009)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tempbalance.tail.estimator import TailEstimator, Tails, ks_search

__all__ = ["KS", "KSAsReleased"]


@dataclass(frozen=True)
class KS(TailEstimator):
    """The threshold whose tail fits a power law best, by KS distance; WeightWatcher's default.

    Every non-zero eigenvalue but the largest is tried as ``xmin``; alpha is the maximum-likelihood exponent of the
    eigenvalues from ``xmin`` up (Clauset, Shalizi and Newman 2009, eq. 3.1 and section 3.3, for continuous data).
    Equal to WeightWatcher's fit for spectra that its small-sample rule leaves alone.

    Example:
        >>> import torch
        >>> fit = KS().fit(torch.arange(1.0, 200.0) ** -2)  # the eigenvalue of rank r is r^-2: alpha = 1.5
        >>> round(fit.alpha, 1)
        1.5
    """

    def _fit(self, eigenvalues: Tensor) -> Tails:
        return ks_search(eigenvalues, torch.ones_like(eigenvalues, dtype=torch.bool))


@dataclass(frozen=True)
class KSAsReleased(TailEstimator):
    """The fit behind the numbers that WeightWatcher published until 2020: ``powerlaw.Fit(..., xmax=lambda_max)``.

    As ``KS``, but the distance is taken to the law cut off at the largest eigenvalue, while alpha stays the exponent of
    the law that is not: so ``powerlaw`` 1.x computes with ``xmax`` (its likelihood leaves the cut-off out). For replays
    of published numbers; otherwise use ``KS``.

    Example:
        >>> import torch
        >>> fit = KSAsReleased().fit(torch.arange(1.0, 200.0) ** -2)
        >>> round(fit.alpha, 1)
        1.5
    """

    def _fit(self, eigenvalues: Tensor) -> Tails:
        return ks_search(eigenvalues, torch.ones_like(eigenvalues, dtype=torch.bool), bounded=True)
