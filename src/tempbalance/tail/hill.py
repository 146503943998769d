"""The Hill estimator: the tail is a fixed share of the spectrum."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tempbalance.errors import ArgumentError, check_numbers
from tempbalance.tail.estimator import TailEstimator, Tails, ks_distances, log_positive
from tempbalance.types import Spectrum

__all__ = ["Hill"]

_BISECTIONS = 24


@dataclass(frozen=True)
class Hill(TailEstimator):
    """Hill's estimator over a fixed share of the spectrum.

    ``alpha = 1 + k / sum_{i=1..k} ln(x_{n-i+1} / x_{n-k})`` with ``k = floor(share * n)``: the threshold ``xmin`` is
    the largest eigenvalue outside the tail (Model Balancing, eq. 2; AlphaDecay, eq. 2). It is the exponent of the
    density, one more than the reciprocal of the classical Hill estimate.

    Zero eigenvalues are left out of ``n``; the papers do not specify this.

    Attributes:
        share: Fraction of the non-zero eigenvalues in the tail, in (0, 1). 1/2 is the choice of TempBalance,
            AlphaDecay and LLR; 1/3 that of Model Balancing's released GLUE script.

    Example:
        >>> import torch
        >>> round(Hill(min_eigenvalues=8).fit(torch.arange(1.0, 9.0)).alpha, 4)
        3.1261
    """

    share: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(share=self.share)
        if not 0 < self.share < 1:
            raise ArgumentError(f"share must be between 0 and 1, got {self.share}")

    def radius(self, eigenvalues: Spectrum | Tensor, tolerance: float) -> float:
        """Return a bound: a weight that changes by less keeps its alpha within the tolerance.

        Singular values ``s`` of a weight that changes by ``dW`` satisfy ``sum_i (s_i' - s_i)^2 <= ||dW||_F^2 = d^2``
        (Mirsky 1960; the sum is over all pooled matrices). So the sum of the logarithms of the tail changes by at most
        ``d sqrt(sum 1 / s_i^2) / (1 - d / s_min)``. The threshold is an order statistic: it moves by ``x`` only if the
        values that it passes move too, ``sum_j max(0, x - |s_j - s_m|)^2 <= d^2``. The radius is the ``d`` at which
        both together reach the tolerance, found by bisection.

        Args:
            eigenvalues: A spectrum, or its eigenvalues ``(n,)``.
            tolerance: Largest change of alpha.

        Returns:
            A Frobenius norm; 0 if an eigenvalue is zero (a change of rank moves the threshold) or there is no fit.
        """
        values = eigenvalues.eigenvalues if isinstance(eigenvalues, Spectrum) else eigenvalues
        s = values.to(torch.float64).sort().values.clamp(min=0).sqrt()
        k = max(1, math.floor(self.share * len(s)))
        if len(s) < self.min_eigenvalues or s[0] == 0 or s[-1] == s[-1 - k] or tolerance <= 0:
            return 0.0
        tail, threshold = s[-k:], s[-1 - k]
        total = float((tail / threshold).log().sum())
        slope = float(tail.pow(-2).sum().sqrt())
        edge, least_tail = float(threshold), float(tail[0])
        above, below = _SortedGaps(s[-1 - k :] - threshold), _SortedGaps(threshold - s[: len(s) - k].flip(0))

        def moved(d: float) -> float:
            """Return a bound on the change of alpha for a change of the weight by d."""
            up, down = above.reach(d), below.reach(d)
            if d >= least_tail or down >= edge:
                return math.inf
            least = total - slope * d / (1 - d / least_tail) - k * math.log1p(up / edge)
            most = total + slope * d - k * math.log1p(-down / edge)
            alpha = 1 + k / (2 * total)
            return max(1 + k / (2 * least) - alpha, alpha - 1 - k / (2 * most)) if least > 0 else math.inf

        low, high = 0.0, least_tail
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if moved(middle) <= tolerance else (low, middle)
        return low

    def fit_tails(self, eigenvalues: Tensor) -> Tails:
        """Fit the largest ``floor(share * n)`` eigenvalues, with the next smaller one as the threshold."""
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


class _SortedGaps:
    """Singular values on one side of the threshold, by their ascending distances from it (the first is 0)."""

    def __init__(self, gaps: Tensor) -> None:
        self._count = torch.arange(1, len(gaps) + 1, dtype=gaps.dtype)
        self._sums, self._squares = gaps.cumsum(0), gaps.square().cumsum(0)
        self._next = torch.cat([gaps[1:], gaps.new_tensor([math.inf])])

    def reach(self, d: float) -> float:
        """Return how far the threshold can move: the largest ``x`` with ``sum_j max(0, x - gap_j)^2 <= d^2``."""
        # For each number m of gaps below x, solve m x^2 - 2 x sum + sum of squares = d^2.
        discriminant = self._sums.square() - self._count * (self._squares - d * d)
        x = (self._sums + discriminant.clamp(min=0).sqrt()) / self._count
        return float(x[int((x <= self._next).to(torch.uint8).argmax())])
