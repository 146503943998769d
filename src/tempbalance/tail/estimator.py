"""What all tail estimators share: the interface, the maximum-likelihood exponent, and the KS distance.

Throughout, ``eigenvalues`` has shape ``(B, n)``, float64, ascending, with numerically zero ones exactly 0 and first.
``i`` indexes the smallest eigenvalue of a tail, which then holds ``n - i`` of them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tempbalance.errors import NonFiniteError, WeightError
from tempbalance.types import Spectrum, Status, TailFit

__all__ = ["TailEstimator", "Tails", "failed", "ks_distances", "ks_search", "log_positive", "mle_exponents"]

_CHUNK = 1 << 18  # entries of the KS matrix at a time: 2 MB, so that the passes over it stay in the cache
_MIN_LOG_RANGE = 1e-4  # a tail that spans less, in log(lambda), has no shape: alpha would exceed 10^4
_FEWEST = 2
_BATCH_NDIM = 2


class Tails(NamedTuple):
    """A fitted tail per spectrum, each of shape ``(B,)``; ``alpha`` is NaN where there is none.

    Without ``stderr``, it is that of the maximum-likelihood exponent, ``(alpha - 1) / sqrt(num_tail)``.
    """

    alpha: Tensor
    xmin: Tensor
    num_tail: Tensor
    ks_distance: Tensor
    stderr: Tensor | None = None


@dataclass(frozen=True)
class TailEstimator(ABC):
    """Fits a power law ``p(x) ~ x^-alpha`` to the tail of a spectrum; subclasses differ in how they choose ``xmin``.

    Attributes:
        min_eigenvalues: Fewer non-zero eigenvalues than this are not fitted (10, as in WeightWatcher; TempBalance's
            released code asks for 50, counting zeros).
    """

    _: KW_ONLY
    min_eigenvalues: int = 10

    def __post_init__(self) -> None:
        """Check the parameters.

        Raises:
            ValueError: A parameter is out of range.
        """
        if self.min_eigenvalues < _FEWEST:
            raise ValueError(f"min_eigenvalues must be at least {_FEWEST}, got {self.min_eigenvalues}")

    def fit(self, eigenvalues: Spectrum | Tensor) -> TailFit:
        """Fit one spectrum.

        Args:
            eigenvalues: A spectrum, or its eigenvalues: shape ``(n,)``, real, not negative, in any order.

        Returns:
            The fit; ``status`` says why where there is none.

        Raises:
            WeightError: ``eigenvalues`` is not a one-dimensional real tensor, or holds negative numbers.
            NonFiniteError: It holds NaN or Inf.
        """
        values = eigenvalues.eigenvalues if isinstance(eigenvalues, Spectrum) else eigenvalues
        if values.ndim != 1:
            raise WeightError(f"expected eigenvalues of shape (n,), got {tuple(values.shape)}")
        return self.fit_batch(values.unsqueeze(0))[0]

    def fit_batch(self, eigenvalues: Tensor) -> list[TailFit]:
        """Fit several spectra of one size at once; the same numbers as one by one.

        Args:
            eigenvalues: Shape ``(B, n)``, real, not negative, each row in any order.

        Returns:
            One fit per row.

        Raises:
            WeightError: ``eigenvalues`` is not a two-dimensional real tensor, or holds negative numbers.
            NonFiniteError: It holds NaN or Inf.
        """
        if eigenvalues.ndim != _BATCH_NDIM or not eigenvalues.is_floating_point():
            raise WeightError(
                f"expected real eigenvalues of shape (B, n), got {eigenvalues.dtype} {tuple(eigenvalues.shape)}"
            )
        values = eigenvalues.detach().to(torch.float64).sort(dim=1).values
        if not torch.isfinite(values).all():
            raise NonFiniteError("the eigenvalues hold NaN or Inf")
        if (values < 0).any():
            raise WeightError("the eigenvalues of W^T W are never negative; singular values must be squared first")
        enough = (values > 0).sum(dim=1) >= self.min_eigenvalues
        fits: list[TailFit] = [
            failed(Status.ZERO if row.numel() == 0 or row[-1] == 0 else Status.TOO_FEW) for row in values
        ]
        if enough.any():
            usable = values[enough]
            found = _as_fits(self._fit(usable), usable)
            for index, fit in zip(enough.nonzero().flatten().tolist(), found, strict=True):
                fits[index] = fit
        return fits

    def radius(self, eigenvalues: Spectrum | Tensor, tolerance: float) -> float:
        """How far a weight may move before its alpha can have moved by more than a tolerance.

        Args:
            eigenvalues: A spectrum, or its eigenvalues: shape ``(n,)``.
            tolerance: Of alpha.

        Returns:
            A Frobenius norm (of the change of all matrices whose spectra are pooled); 0 where no bound is known, as
            for every estimator whose threshold can jump.
        """
        del eigenvalues, tolerance
        return 0.0

    @abstractmethod
    def _fit(self, eigenvalues: Tensor) -> Tails:
        """Fit ``(B, n)`` ascending eigenvalues of which at least ``min_eigenvalues`` a row are positive."""


def failed(status: Status) -> TailFit:
    """A fit that says why there is none.

    Args:
        status: Why; not ``Status.OK``.

    Returns:
        NaN in every float, and an empty tail.

    Example:
        >>> failed(Status.TOO_FEW).alpha
        nan
    """
    return TailFit(status=status, alpha=math.nan, stderr=math.nan, xmin=math.nan, num_tail=0, ks_distance=math.nan)


def _as_fits(tails: Tails, eigenvalues: Tensor) -> list[TailFit]:
    flat = (eigenvalues[:, -1].log() - tails.xmin.log()) <= _MIN_LOG_RANGE
    stderr = (tails.alpha - 1) / tails.num_tail.sqrt() if tails.stderr is None else tails.stderr
    columns = (tails.alpha, stderr, tails.xmin, tails.num_tail, tails.ks_distance, flat)
    return [_as_fit(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def _as_fit(alpha: float, stderr: float, xmin: float, num_tail: int, ks_distance: float, flat: bool) -> TailFit:
    if flat:
        return failed(Status.CONSTANT)
    if not math.isfinite(alpha):
        return failed(Status.NO_TAIL)
    return TailFit(status=Status.OK, alpha=alpha, stderr=stderr, xmin=xmin, num_tail=num_tail, ks_distance=ks_distance)


def log_positive(eigenvalues: Tensor) -> Tensor:
    """Natural logarithms, with 0 in the place of log(0); those places are never the start of a tail."""
    return torch.where(eigenvalues > 0, eigenvalues, 1.0).log()


def mle_exponents(eigenvalues: Tensor) -> Tensor:
    """The maximum-likelihood exponent of the tail that starts at each eigenvalue.

    ``alpha_i = 1 + (n - i) / sum_{j >= i} ln(x_j / x_i)`` (Clauset, Shalizi and Newman 2009, eq. 3.1).

    Args:
        eigenvalues: Shape ``(B, n)``.

    Returns:
        Shape ``(B, n)``; Inf where all of the tail is equal, meaningless where the eigenvalue is 0.
    """
    logs = log_positive(eigenvalues)
    n = logs.shape[1]
    sizes = torch.arange(n, 0, -1, dtype=logs.dtype, device=logs.device)
    # Sums of differences to the largest, so that nothing cancels in a far tail.
    below = logs[:, -1:] - logs
    sums = sizes * below - below.flip(1).cumsum(1).flip(1)
    return 1 + sizes / sums.clamp(min=0)


def ks_distances(logs: Tensor, log_xmin: Tensor, alpha: Tensor, first: Tensor) -> Tensor:
    """KS distance between a tail and the power law fitted to it.

    ``max_j |P(X < x_j) - #{i: x_i < x_j} / num_tail|`` over the tail, the empirical distribution being taken from the
    left as in the code of Clauset et al. and in WeightWatcher.

    Args:
        logs: Logarithms of the eigenvalues, shape ``(B, n)``.
        log_xmin: Logarithm of the threshold, shape ``(B,)``.
        alpha: Exponent, shape ``(B,)``.
        first: Index of the smallest eigenvalue of the tail, shape ``(B,)``.

    Returns:
        Distances, shape ``(B,)``.
    """
    n = logs.shape[1]
    position = torch.arange(n, device=logs.device)
    survival = (n - position).to(logs.dtype) / (n - first).unsqueeze(1)
    law = ((1 - alpha).unsqueeze(1) * (logs - log_xmin.unsqueeze(1))).exp()
    gaps = (survival - law).abs().masked_fill(position < first.unsqueeze(1), 0.0)
    return gaps.amax(dim=1)


def ks_search(eigenvalues: Tensor, candidates: Tensor, *, bounded: bool = False, ties: bool = False) -> Tails:
    """The threshold among the candidates whose tail has the least KS distance, the first one if several do.

    All candidates of all spectra are tried at once, in chunks of bounded memory; the work is ``B n^2 / 2``
    exponentials, a small part of what the eigenvalues cost.

    Args:
        eigenvalues: Shape ``(B, n)``.
        candidates: Which eigenvalues may be the threshold; bool, shape ``(B, n)``. Zeros and the largest one never are,
            of equal ones only the first unless ``ties``.
        bounded: Whether the distance is to the law cut off at the largest eigenvalue.
        ties: Whether a tail may start within a run of equal eigenvalues, leaving some of them out.

    Returns:
        The fitted tails; NaN where no candidate gives a finite alpha > 1.
    """
    logs = log_positive(eigenvalues)
    batch, n = logs.shape
    alphas = mle_exponents(eigenvalues)
    repeated = torch.zeros_like(candidates)
    if not ties:
        repeated[:, 1:] = eigenvalues[:, 1:] == eigenvalues[:, :-1]
    allowed = candidates & (eigenvalues > 0) & (eigenvalues < eigenvalues[:, -1:]) & ~repeated & alphas.isfinite()
    distances = torch.full_like(logs, math.inf)
    start = int(allowed.any(dim=0).to(torch.uint8).argmax())
    while start < n:
        stop = min(n, start + max(1, _CHUNK // (batch * (n - start))))
        distances[:, start:stop] = _ks_rows(logs, alphas, slice(start, stop), bounded)
        start = stop
    best = distances.masked_fill(~allowed, math.inf).argmin(dim=1, keepdim=True)
    found = allowed.any(dim=1)
    alpha = alphas.gather(1, best).squeeze(1).masked_fill(~found, math.nan)
    return Tails(
        alpha=alpha,
        xmin=eigenvalues.gather(1, best).squeeze(1),
        num_tail=n - best.squeeze(1),
        ks_distance=distances.gather(1, best).squeeze(1),
    )


def _ks_rows(logs: Tensor, alphas: Tensor, rows: slice, bounded: bool) -> Tensor:
    """KS distances of the tails that start at the given indices, shape ``(B, rows)``."""
    start, n = rows.start, logs.shape[1]
    gaps = logs[:, None, start:] - logs[:, rows, None]
    gaps.mul_((1 - alphas[:, rows, None]).clamp(min=-1e300)).exp_()  # the law's survival function
    if bounded:
        least = gaps[:, :, -1:].clone()
        gaps.sub_(least).div_(1 - least)
    sizes = torch.arange(n - start, 0, -1, dtype=logs.dtype, device=logs.device)
    gaps.sub_(sizes / sizes[: rows.stop - start, None]).abs_()
    return gaps.triu_().amax(dim=2)
