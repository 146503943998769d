"""The threshold near the peak of the log-histogram: the "fix-finger" method."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tempbalance.tail.estimator import TailEstimator, Tails, ks_search, log_positive

__all__ = ["Peak", "PeakAsReleased"]

_BELOW, _ABOVE = 0.95, 1.5  # the search window around the peak, in WeightWatcher and all the released code
_LN10 = 2.302585092994046


@dataclass(frozen=True)
class Peak(TailEstimator):
    """The threshold of least KS distance within ``0.95 p .. 1.5 p``, ``p`` being the peak of the spectrum.

    ``p`` is the left edge of the fullest of ``bins`` equal bins of log10 of the non-zero eigenvalues. This is what the
    "fix-finger" fit of WeightWatcher, AlphaPruning and FARMS evidently intends; their code compares with
    ``log10(0.95 p)`` below, see ``PeakAsReleased``.

    Attributes:
        bins: Number of bins, 100 in all the released code.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> sample = torch.rand(2000, generator=generator, dtype=torch.float64) ** -0.5  # Pareto, alpha = 3
        >>> fit = Peak().fit(sample)
        >>> abs(fit.alpha - 3) < 4 * fit.stderr
        True
    """

    bins: int = 100

    def __post_init__(self) -> None:
        """Check the parameters.

        Raises:
            ValueError: There are fewer than 2 bins.
        """
        super().__post_init__()
        if self.bins < 2:  # noqa: PLR2004
            raise ValueError(f"bins must be at least 2, got {self.bins}")

    def _fit(self, eigenvalues: Tensor) -> Tails:
        peak = _peak(eigenvalues, self.bins).unsqueeze(1)
        return ks_search(eigenvalues, (eigenvalues >= _BELOW * peak) & (eigenvalues <= _ABOVE * peak))


@dataclass(frozen=True)
class PeakAsReleased(Peak):
    """The ``fix-finger`` (``xmin_peak``, ``alpha_peak``) fit of the released code, its mixed units included.

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

    def _fit(self, eigenvalues: Tensor) -> Tails:
        peak = _peak(eigenvalues, self.bins).unsqueeze(1)
        lowest = (_BELOW * peak).log10()
        return ks_search(eigenvalues, (eigenvalues >= lowest) & (eigenvalues <= _ABOVE * peak), ties=True)


def _peak(eigenvalues: Tensor, bins: int) -> Tensor:
    """Left edge of the fullest bin, the first if several are, of each spectrum; shape ``(B,)``."""
    positive = eigenvalues > 0
    logs = log_positive(eigenvalues) / _LN10
    high = logs[:, -1]
    low = torch.where(positive, logs, high.unsqueeze(1)).amin(dim=1)
    width = ((high - low) / bins).unsqueeze(1)
    index = ((logs - low.unsqueeze(1)) / width.clamp(min=1e-300)).long().clamp(0, bins - 1)
    counts = torch.zeros(len(logs), bins, dtype=torch.long, device=logs.device)
    counts.scatter_add_(1, index, positive.long())
    return 10 ** (low + counts.argmax(dim=1) * width.squeeze(1))
