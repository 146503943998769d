"""The threshold with the least Kolmogorov-Smirnov distance (Clauset, Shalizi and Newman 2009)."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tempbalance.tail.estimator import TailEstimator, Tails, log_positive, mle_exponents

__all__ = ["KS", "KSSearch", "first_of_equal"]


@dataclass(frozen=True)
class KSSearch(TailEstimator):
    """Base class of estimators that choose ``xmin`` by the smallest KS distance, and the smallest one in case of a tie.

    All candidates of all spectra are tried at once, in chunks of bounded memory; the work is ``B n^2 / 2``
    exponentials, a small part of the cost of the eigenvalues.

    Attributes:
        chunk: Number of entries of the KS matrix computed at a time: 2 MB, which fit into the cache.
    """

    chunk: ClassVar[int] = 1 << 18

    @abstractmethod
    def candidates(self, eigenvalues: Tensor) -> Tensor:
        """Return a mask ``(B, n)`` of possible thresholds; zeros and the largest eigenvalue are never used."""

    def survival(self, logs: Tensor) -> Tensor:
        """Compute the survival function of the law from its logarithm ``(B, thresholds, n)``, in place."""
        return logs.exp_()

    def fit_tails(self, eigenvalues: Tensor) -> Tails:
        """Fit the tail of least KS distance; alpha is NaN where no candidate gives a finite alpha > 1."""
        logs = log_positive(eigenvalues)
        batch, n = logs.shape
        alphas = mle_exponents(eigenvalues)
        inner = (eigenvalues > 0) & (eigenvalues < eigenvalues[:, -1:])
        allowed = self.candidates(eigenvalues) & inner & alphas.isfinite()
        distances = torch.full_like(logs, math.inf)
        start = int(allowed.any(dim=0).to(torch.uint8).argmax())
        while start < n:
            stop = min(n, start + max(1, self.chunk // (batch * (n - start))))
            distances[:, start:stop] = self._distances(logs, alphas, slice(start, stop))
            start = stop
        best = distances.masked_fill(~allowed, math.inf).argmin(dim=1, keepdim=True)
        return Tails(
            alpha=alphas.gather(1, best).squeeze(1).masked_fill(~allowed.any(dim=1), math.nan),
            xmin=eigenvalues.gather(1, best).squeeze(1),
            num_tail=n - best.squeeze(1),
            ks_distance=distances.gather(1, best).squeeze(1),
        )

    def _distances(self, logs: Tensor, alphas: Tensor, rows: slice) -> Tensor:
        """Return the KS distances ``(B, rows)`` of the tails that start at the given indices."""
        start, n = rows.start, logs.shape[1]
        gaps = logs[:, None, start:] - logs[:, rows, None]
        gaps = self.survival(gaps.mul_((1 - alphas[:, rows, None]).clamp(min=-1e300)))
        sizes = torch.arange(n - start, 0, -1, dtype=logs.dtype, device=logs.device)
        gaps.sub_(sizes / sizes[: rows.stop - start, None]).abs_()
        return gaps.triu_().amax(dim=2)


def first_of_equal(eigenvalues: Tensor) -> Tensor:
    """Return a mask ``(B, n)`` of the first of equal eigenvalues, because a tail includes all of them."""
    first = torch.ones_like(eigenvalues, dtype=torch.bool)
    first[:, 1:] = eigenvalues[:, 1:] != eigenvalues[:, :-1]
    return first


@dataclass(frozen=True)
class KS(KSSearch):
    """The threshold whose tail fits a power law best, by KS distance; WeightWatcher's default.

    Every non-zero eigenvalue but the largest is tried as ``xmin``; alpha is the maximum-likelihood exponent of the
    eigenvalues from ``xmin`` up (Clauset, Shalizi and Newman 2009, eq. 3.1 and section 3.3, for continuous data).
    Equal to WeightWatcher's fit of 20 eigenvalues or more; version 0.7.7 has another rule for fewer.

    Example:
        >>> import torch
        >>> fit = KS().fit(torch.arange(1.0, 200.0) ** -2)  # the eigenvalue of rank r is r^-2: alpha = 1.5
        >>> round(fit.alpha, 1)
        1.5
    """

    def candidates(self, eigenvalues: Tensor) -> Tensor:
        """Try every distinct eigenvalue."""
        return first_of_equal(eigenvalues)
