"""The Hill estimator: the tail is a fixed share of the spectrum."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tempbalance.tail.base import TailEstimator, Tails, ks_distances, log_positive, mle_exponents

__all__ = ["Hill", "HillAsReleased"]


@dataclass(frozen=True)
class Hill(TailEstimator):
    """Hill's estimator over a fixed share of the spectrum.

    ``alpha = 1 + k / sum_{i=1..k} ln(x_{n-i+1} / x_{n-k})`` with ``k = floor(share * n)``: the threshold ``xmin`` is
    the largest eigenvalue outside the tail (Model Balancing, eq. 2; AlphaDecay, eq. 2). It is the exponent of the
    density, one more than the reciprocal of the classical Hill estimate.

    Zero eigenvalues are left out of ``n``; the papers do not say.

    Attributes:
        share: Part of the non-zero eigenvalues that makes the tail, in (0, 1). 1/2 is the choice of TempBalance,
            AlphaDecay and LLR; 1/3 that of Model Balancing's released GLUE script.

    Example:
        >>> import torch
        >>> round(Hill(min_eigenvalues=8).fit(torch.arange(1.0, 9.0)).alpha, 4)
        3.1261
    """

    share: float = 0.5

    def __post_init__(self) -> None:
        """Check the parameters.

        Raises:
            ValueError: ``share`` is not in (0, 1).
        """
        super().__post_init__()
        if not 0 < self.share < 1:
            raise ValueError(f"share must be between 0 and 1, got {self.share}")

    def _fit(self, eigenvalues: Tensor) -> Tails:
        n = eigenvalues.shape[1]
        positive = (eigenvalues > 0).sum(dim=1)
        k = (self.share * positive).floor().long().clamp(min=1)
        logs = log_positive(eigenvalues)
        first = n - k
        log_xmin = logs.gather(1, (first - 1).unsqueeze(1)).squeeze(1)
        inside = torch.arange(n, device=logs.device) >= first.unsqueeze(1)
        sums = ((logs - log_xmin.unsqueeze(1)) * inside).sum(dim=1)
        alpha = 1 + k / sums
        return Tails(
            alpha=alpha,
            xmin=eigenvalues.gather(1, (first - 1).unsqueeze(1)).squeeze(1),
            num_tail=k,
            ks_distance=ks_distances(logs, log_xmin, alpha, first),
        )


@dataclass(frozen=True)
class HillAsReleased(TailEstimator):
    """The ``median`` fit of the code released with TempBalance, Model Balancing, FARMS, AlphaPruning and AlphaDecay.

    The tail starts at index ``floor(n / xmin_position)`` of the ascending spectrum, zeros included, and its smallest
    eigenvalue serves as the threshold too. So one of the terms is zero: ``n`` terms are counted and ``n - 1`` say
    something, which biases alpha upwards, notably in small spectra (5.05 instead of 3.13 for the eigenvalues 1..8).
    For replays of published numbers; otherwise use ``Hill``. There is no fit where the tail holds a zero, which the
    released code turns into an infinite logarithm.

    Attributes:
        xmin_position: 2 keeps the top half (the default of all the released code), 1.5 the top third (the GLUE script
            of Model Balancing).

    Example:
        >>> import torch
        >>> round(HillAsReleased(min_eigenvalues=8).fit(torch.arange(1.0, 9.0)).alpha, 4)
        5.0453
    """

    xmin_position: float = 2.0

    def __post_init__(self) -> None:
        """Check the parameters.

        Raises:
            ValueError: ``xmin_position`` is not greater than 1.
        """
        super().__post_init__()
        if not self.xmin_position > 1:
            raise ValueError(f"xmin_position must be greater than 1, got {self.xmin_position}")

    def _fit(self, eigenvalues: Tensor) -> Tails:
        batch, n = eigenvalues.shape
        first = torch.full((batch,), int(n / self.xmin_position), device=eigenvalues.device)
        xmin = eigenvalues[:, int(first[0])]
        alpha = mle_exponents(eigenvalues)[:, int(first[0])].masked_fill(xmin == 0, math.nan)
        logs = log_positive(eigenvalues)
        return Tails(
            alpha=alpha,
            xmin=xmin,
            num_tail=n - first,
            ks_distance=ks_distances(logs, logs[:, int(first[0])], alpha, first),
        )
