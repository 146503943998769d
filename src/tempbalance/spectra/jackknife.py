"""Standard error of alpha that is due to the choice of the windows, by a jackknife."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean
from typing import TypeAlias

import torch
from torch import Tensor

from tempbalance.types import Status, TailFit

__all__ = ["FitBatch", "fit_with_jackknife"]

FitBatch: TypeAlias = Callable[[Tensor], list[TailFit]]

_GROUPS = 16  # at most; the windows of a group are left out together
_CHUNK = 1 << 18  # eigenvalues fitted at a time
_FLOOR = 3.5  # error of one square window of a random matrix, in (alpha - 1) / side: measured 2.8 to 4.0
# The 97.5 % quantile of Student's t over that of the normal law, for 1, 2, 3, ... degrees of freedom.
_STUDENT = (6.483, 2.195, 1.624, 1.417, 1.312, 1.248, 1.206, 1.177, 1.154, 1.137, 1.123, 1.112, 1.102, 1.094, 1.087)


def fit_with_jackknife(values: Tensor, fit_batch: FitBatch) -> TailFit:
    """Fit the pooled spectrum of windows, with the standard error of a jackknife over the windows.

    With the alphas ``a_(-j)`` without group ``j`` of ``m_j`` of the ``W`` windows, ``h_j = W / m_j`` and the
    pseudo-values ``t_j = h_j a - (h_j - 1) a_(-j)``, the error is ``sqrt(1/G sum_j (t_j - t)^2 / (h_j - 1))``, where
    ``t`` is their mean weighted by ``m_j`` (Busing, Meijer and van der Leeden 1999). Up to 16 windows are left out one
    at a time. The error is multiplied by the ratio of the 97.5 % quantiles of Student's t with ``G - 1`` degrees of
    freedom and of the normal law, so that plus or minus 2 standard errors has the same meaning for few windows. A few
    windows may agree by chance, so the error is at least ``3.5 (a - 1) / (n sqrt(W))``, that of ``W`` square windows of
    side ``n`` of a random matrix (with ``Hill``, measured).

    This is accurate for ``Hill`` and ``AveragedHill``. With an estimator that searches for its threshold (``Peak``,
    ``KS``) alpha jumps, and more than 1 error in 20 exceeds twice the standard error.

    Args:
        values: Eigenvalues, float64, shape ``(windows, B, short side)``.
        fit_batch: Function that fits spectra ``(B, n)``: ``TailEstimator.fit_batch``.

    Returns:
        The fit; with a single window, its standard error is that of the estimator.
    """
    windows = values.flatten(1)
    fit = fit_batch(windows.reshape(1, -1))[0]
    count = len(windows)
    if fit.status is not Status.OK or count == 1:
        return fit
    # Round robin, because consecutive windows of the grid are adjacent and nearly equal.
    groups = [list(range(first, count, _GROUPS)) for first in range(min(_GROUPS, count))]
    without = [torch.tensor(sorted(set(range(count)).difference(group))) for group in groups]
    alphas = [left_out.alpha for left_out in _fit_subsets(windows, without, fit_batch)]
    parts = [len(group) / count for group in groups]
    pseudo = [fit.alpha / part - (1 / part - 1) * alpha for part, alpha in zip(parts, alphas, strict=True)]
    mean = sum(part * value for part, value in zip(parts, pseudo, strict=True))
    variance = fmean((value - mean) ** 2 / (1 / part - 1) for part, value in zip(parts, pseudo, strict=True))
    least = _FLOOR * (fit.alpha - 1) / values.shape[2] / math.sqrt(count * values.shape[1])
    return replace(fit, stderr=max(math.sqrt(variance) * _STUDENT[len(groups) - 2], least))


def _fit_subsets(windows: Tensor, subsets: Sequence[Tensor], fit_batch: FitBatch) -> list[TailFit]:
    """Fit subsets of windows; those of one size together, a bounded number at a time."""
    found: dict[int, TailFit] = {}
    for size in {len(subset) for subset in subsets}:
        places = [place for place, subset in enumerate(subsets) if len(subset) == size]
        step = max(1, _CHUNK // (size * windows.shape[1]))
        for start in range(0, len(places), step):
            some = places[start : start + step]
            fits = fit_batch(torch.stack([windows[subsets[place]].flatten() for place in some]))
            found.update(zip(some, fits, strict=True))
    return [found[place] for place in range(len(subsets))]
