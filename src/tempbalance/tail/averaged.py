"""The Hill estimator averaged over thresholds, which changes continuously with the eigenvalues."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tempbalance.errors import ArgumentError, check_numbers
from tempbalance.tail.estimator import TailEstimator, Tails, ks_distances, log_positive

__all__ = ["AveragedHill"]


@dataclass(frozen=True)
class AveragedHill(TailEstimator):
    """Hill's estimator averaged over the tails between two shares of the spectrum (Resnick and Starica 1997: smooHill).

    With ``H_k = 1/k sum_{i=1..k} ln(x_{n-i+1} / x_{n-k})`` for each ``k`` from ``floor(low n)`` (at least 1) to
    ``floor(high n)``, ``alpha = 1 + 1 / mean_k H_k``. There is no search for a threshold, so alpha changes little
    when eigenvalues do; with a search (``Peak``, ``KS``) it jumps from one threshold to another.

    In a Pareto sample the spacings ``i ln(x_{n-i+1} / x_{n-i})`` are independent and exponential with mean ``1 / (alpha
    - 1)``, and the average is a weighted sum of them with ``sum_i w_i = 1``: so the standard error is ``(alpha - 1)
    sqrt(sum_i w_i^2)``. The threshold, the tail and its KS distance are those of the largest tail. Zero eigenvalues
    are left out of ``n``.

    Attributes:
        low: Fraction of the eigenvalues in the smallest tail, at least 0.
        high: Fraction of the eigenvalues in the largest tail, less than 1.

    Example:
        >>> from tempbalance.testing import pareto_sample
        >>> fit = AveragedHill().fit(pareto_sample(2000, alpha=3.0))
        >>> abs(fit.alpha - 3) < 4 * fit.stderr
        True
    """

    low: float = 0.1
    high: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(low=self.low, high=self.high)
        if not (0 <= self.low <= self.high < 1 and self.high > 0):
            raise ArgumentError(f"shares must be 0 <= low <= high < 1 with high > 0, got {self.low} and {self.high}")

    def fit_tails(self, eigenvalues: Tensor) -> Tails:
        """Average Hill's estimate over the tails, as a weighted sum of the spacings of the logarithms."""
        n = eigenvalues.shape[1]
        positive = (eigenvalues > 0).sum(dim=1)
        most = (self.high * positive).floor().long().clamp(min=1)
        least = torch.minimum((self.low * positive).floor().long().clamp(min=1), most)
        longest = int(most.max())
        k = torch.arange(1, longest + 1, dtype=eigenvalues.dtype, device=eigenvalues.device)
        used = (k >= least.unsqueeze(1)) & (k <= most.unsqueeze(1))
        # w_i: each H_k is the mean of the first k spacings, and the estimate is the mean of these means.
        weights = (used / k).flip(1).cumsum(1).flip(1) / used.sum(dim=1, keepdim=True)
        logs = log_positive(eigenvalues)
        top = logs[:, n - longest - 1 :].flip(1)
        spacings = k * (top[:, :-1] - top[:, 1:])
        mean = (weights * torch.where(k <= most.unsqueeze(1), spacings, 0.0)).sum(dim=1)
        alpha = 1 + 1 / mean
        first = n - most
        log_xmin = logs.gather(1, (first - 1).unsqueeze(1)).squeeze(1)
        return Tails(
            alpha=alpha,
            xmin=eigenvalues.gather(1, (first - 1).unsqueeze(1)).squeeze(1),
            num_tail=most,
            ks_distance=ks_distances(logs, log_xmin, alpha, first),
            stderr=(alpha - 1) * weights.square().sum(dim=1).sqrt(),
        )
