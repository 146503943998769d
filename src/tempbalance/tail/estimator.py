"""The base class of tail estimators, the maximum-likelihood exponent, and the KS distance.

In this package ``eigenvalues`` has shape ``(B, n)``, float64, ascending, with numerically zero ones exactly 0 and
first. ``i`` is the index of the smallest eigenvalue of a tail, which then has ``n - i`` eigenvalues.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tempbalance.errors import NonFiniteError, WeightError, check_integer
from tempbalance.types import Spectrum, Status, TailFit

__all__ = ["TailEstimator", "Tails", "failed", "ks_distances", "log_positive", "mle_exponents"]

_MIN_LOG_RANGE = 1e-4  # least range of log(lambda) in a tail: below it, alpha would exceed 10^4
_FEWEST = 2
_BATCH_NDIM = 2


class Tails(NamedTuple):
    """One fitted tail per spectrum.

    Attributes:
        alpha: Exponent, shape ``(B,)``, float64; NaN where there is no fit.
        xmin: Threshold, shape ``(B,)``.
        num_tail: Number of eigenvalues in the tail, shape ``(B,)``, integer.
        ks_distance: KS distance between tail and law, shape ``(B,)``.
        stderr: Standard error of alpha, shape ``(B,)``; None for that of the maximum-likelihood exponent,
            ``(alpha - 1) / sqrt(num_tail)``.
    """

    alpha: Tensor
    xmin: Tensor
    num_tail: Tensor
    ks_distance: Tensor
    stderr: Tensor | None = None


@dataclass(frozen=True)
class TailEstimator(ABC):
    """Base class of estimators, which fit a power law ``p(x) ~ x^-alpha`` to the tail of a spectrum.

    A subclass is a frozen dataclass that implements ``fit_tails``, the choice of ``xmin`` and alpha. It can also
    override ``radius``. docs/how-to/custom-methods.md has an example.

    Attributes:
        min_eigenvalues: Spectra with fewer non-zero eigenvalues are not fitted; at least 2 (10; 8 in WeightWatcher
            0.7.7; 50, zeros included, in TempBalance's released code).

    Raises:
        ArgumentError: A parameter is out of range.
    """

    _: KW_ONLY
    min_eigenvalues: int = 10

    def __post_init__(self) -> None:
        check_integer("min_eigenvalues", self.min_eigenvalues, _FEWEST)

    def fit(self, eigenvalues: Spectrum | Tensor) -> TailFit:
        """Fit one spectrum.

        Args:
            eigenvalues: A spectrum, or its eigenvalues: shape ``(n,)``, real, not negative, in any order.

        Returns:
            The fit; if there is none, ``status`` is the reason.

        Raises:
            WeightError: ``eigenvalues`` is not a one-dimensional real tensor, or contains negative numbers.
            NonFiniteError: It contains NaN or Inf.
        """
        values = eigenvalues.eigenvalues if isinstance(eigenvalues, Spectrum) else eigenvalues
        if values.ndim != 1:
            raise WeightError(f"expected eigenvalues of shape (n,), got {tuple(values.shape)}")
        return self.fit_batch(values.unsqueeze(0))[0]

    def fit_batch(self, eigenvalues: Tensor) -> list[TailFit]:
        """Fit several spectra of one size at once; the results are equal to those of ``fit``.

        Args:
            eigenvalues: Shape ``(B, n)``, real, not negative, each row in any order.

        Returns:
            One fit per row.

        Raises:
            WeightError: ``eigenvalues`` is not a two-dimensional real tensor, or contains negative numbers.
            NonFiniteError: It contains NaN or Inf.
        """
        if eigenvalues.ndim != _BATCH_NDIM or not eigenvalues.is_floating_point():
            raise WeightError(
                f"expected real eigenvalues of shape (B, n), got {eigenvalues.dtype} {tuple(eigenvalues.shape)}"
            )
        values = eigenvalues.detach().to(torch.float64).sort(dim=1).values
        if not torch.isfinite(values).all():
            raise NonFiniteError("the eigenvalues contain NaN or Inf")
        if (values < 0).any():
            raise WeightError("the eigenvalues of W^T W are never negative; singular values must be squared first")
        enough = (values > 0).sum(dim=1) >= self.min_eigenvalues
        fits: list[TailFit] = [
            failed(Status.ZERO if row.numel() == 0 or row[-1] == 0 else Status.TOO_FEW) for row in values
        ]
        if enough.any():
            usable = values[enough]
            found = _as_fits(self.fit_tails(usable), usable)
            for index, fit in zip(enough.nonzero().flatten().tolist(), found, strict=True):
                fits[index] = fit
        return fits

    def radius(self, eigenvalues: Spectrum | Tensor, tolerance: float) -> float:
        """Return a bound: a weight that changes by less keeps its alpha within the tolerance.

        Args:
            eigenvalues: A spectrum, or its eigenvalues: shape ``(n,)``.
            tolerance: Largest change of alpha.

        Returns:
            A Frobenius norm (of the change of all pooled matrices); 0 where no bound is known, as for every estimator
            whose threshold can jump.
        """
        del eigenvalues, tolerance
        return 0.0

    @abstractmethod
    def fit_tails(self, eigenvalues: Tensor) -> Tails:
        """Fit several spectra: the hook that a subclass implements. Callers use ``fit`` or ``fit_batch``.

        Args:
            eigenvalues: Shape ``(B, n)``, float64, finite, ascending; zeros come first. Each row has at least
                ``min_eigenvalues`` positive ones.

        Returns:
            One tail per row, with ``alpha`` NaN where there is no tail (``Status.NO_TAIL``).
        """


def failed(status: Status) -> TailFit:
    """Return the result for a spectrum without a fit: NaN in every float, and an empty tail."""
    return TailFit(status=status, alpha=math.nan, stderr=math.nan, xmin=math.nan, num_tail=0, ks_distance=math.nan)


def _as_fits(tails: Tails, eigenvalues: Tensor) -> list[TailFit]:
    flat = (eigenvalues[:, -1].log() - tails.xmin.log()) <= _MIN_LOG_RANGE
    stderr = (tails.alpha - 1) / tails.num_tail.to(tails.alpha.dtype).sqrt() if tails.stderr is None else tails.stderr
    columns = (tails.alpha, stderr, tails.xmin, tails.num_tail, tails.ks_distance, flat)
    return [_as_fit(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def _as_fit(alpha: float, stderr: float, xmin: float, num_tail: int, ks_distance: float, flat: bool) -> TailFit:
    if flat:
        return failed(Status.CONSTANT)
    if not math.isfinite(alpha):
        return failed(Status.NO_TAIL)
    return TailFit(status=Status.OK, alpha=alpha, stderr=stderr, xmin=xmin, num_tail=num_tail, ks_distance=ks_distance)


def log_positive(eigenvalues: Tensor) -> Tensor:
    """Return natural logarithms, with 0 in place of log(0); a tail never starts there."""
    return torch.where(eigenvalues > 0, eigenvalues, 1.0).log()


def mle_exponents(eigenvalues: Tensor) -> Tensor:
    """Return the maximum-likelihood exponents ``(B, n)`` of the tails that start at each eigenvalue ``(B, n)``."""
    # alpha_i = 1 + (n - i) / sum_{j >= i} ln(x_j / x_i) (Clauset, Shalizi and Newman 2009, eq. 3.1); Inf where all of a
    # tail is equal, meaningless where the eigenvalue is 0.
    logs = log_positive(eigenvalues)
    n = logs.shape[1]
    sizes = torch.arange(n, 0, -1, dtype=logs.dtype, device=logs.device)
    # Sums of differences from the largest logarithm avoid cancellation in a far tail.
    below = logs[:, -1:] - logs
    sums = sizes * below - below.flip(1).cumsum(1).flip(1)
    return 1 + sizes / sums.clamp(min=0)


def ks_distances(logs: Tensor, log_xmin: Tensor, alpha: Tensor, first: Tensor) -> Tensor:
    """Return the KS distances ``(B,)`` between tails that start at index ``first`` and their power laws."""
    # max_j |P(X < x_j) - #{i: x_i < x_j} / num_tail|: the empirical distribution is taken from the left, as in the code
    # of Clauset et al. and in WeightWatcher. ``logs`` is (B, n); ``log_xmin``, ``alpha`` and ``first`` are (B,).
    n = logs.shape[1]
    position = torch.arange(n, device=logs.device)
    survival = (n - position).to(logs.dtype) / (n - first).unsqueeze(1)
    law = ((1 - alpha).unsqueeze(1) * (logs - log_xmin.unsqueeze(1))).exp()
    gaps = (survival - law).abs().masked_fill(position < first.unsqueeze(1), 0.0)
    return gaps.amax(dim=1)
