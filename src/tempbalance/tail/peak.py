"""The threshold near the peak of the log-histogram: the "fix-finger" method."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tempbalance.errors import check_integer
from tempbalance.tail.estimator import log_positive
from tempbalance.tail.ks import KSSearch, first_of_equal

__all__ = ["ABOVE_PEAK", "BELOW_PEAK", "Peak", "peaks"]

BELOW_PEAK, ABOVE_PEAK = 0.95, 1.5  # the search window around the peak, in WeightWatcher and all the released code
_LN10 = 2.302585092994046


@dataclass(frozen=True)
class Peak(KSSearch):
    """The threshold of least KS distance between ``0.95 p`` and ``1.5 p``, where ``p`` is the peak of the spectrum.

    ``p`` is the left edge of the fullest of ``bins`` equal bins of log10 of the non-zero eigenvalues. The
    "fix-finger" fit of WeightWatcher, AlphaPruning and FARMS is meant to search this range, but their code uses
    ``log10(0.95 p)`` as the lower end; see ``released.PeakAsReleased``.

    Attributes:
        bins: Number of bins, at least 2; 100 in all the released code.

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
        super().__post_init__()
        check_integer("bins", self.bins, 2)

    def candidates(self, eigenvalues: Tensor) -> Tensor:
        """Try the distinct eigenvalues near the peak."""
        peak = peaks(eigenvalues, self.bins)
        near = (eigenvalues >= BELOW_PEAK * peak) & (eigenvalues <= ABOVE_PEAK * peak)
        return near & first_of_equal(eigenvalues)


def peaks(eigenvalues: Tensor, bins: int) -> Tensor:
    """Return the left edge ``(B, 1)`` of the fullest bin of each spectrum, the first one in case of a tie."""
    positive = eigenvalues > 0
    logs = log_positive(eigenvalues) / _LN10
    high = logs[:, -1]
    low = torch.where(positive, logs, high.unsqueeze(1)).amin(dim=1)
    width = ((high - low) / bins).unsqueeze(1)
    index = ((logs - low.unsqueeze(1)) / width.clamp(min=1e-300)).long().clamp(0, bins - 1)
    counts = torch.zeros(len(logs), bins, dtype=torch.long, device=logs.device)
    counts.scatter_add_(1, index, positive.long())
    return (10 ** (low + counts.argmax(dim=1) * width.squeeze(1))).unsqueeze(1)
