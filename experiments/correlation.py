"""Rank correlation over trials, with an interval that treats trials of one seed as dependent."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

FEWEST = 10  # points and seeds, for an interval
RESAMPLES = 2_000


class Correlation(NamedTuple):
    """Spearman's rank correlation.

    Attributes:
        mean: The correlation over all points; NaN if it is not defined.
        low: Lower end of its 95 % interval, NaN with fewer than 10 points or seeds.
        high: Upper end.
        points: Number of points.
    """

    mean: float
    low: float
    high: float
    points: int


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Compute Spearman's rank correlation; equal values share the mean of their ranks.

    Args:
        x: Numbers.
        y: As many.

    Returns:
        The correlation; NaN if all of ``x`` or all of ``y`` are equal.
    """
    return float(_weighted_spearman(x, y, np.ones((1, len(np.asarray(x)))))[0])


def _weighted_spearman(x: ArrayLike, y: ArrayLike, counts: NDArray[Any]) -> NDArray[Any]:
    """Spearman's correlation of samples in which point ``i`` occurs ``counts[:, i]`` times, one row per sample."""
    total = counts.sum(axis=1, keepdims=True)
    one, other = (ranks - (counts * ranks).sum(axis=1, keepdims=True) / total for ranks in _ranks((x, y), counts))
    sizes = np.sqrt((counts * one**2).sum(axis=1) * (counts * other**2).sum(axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        found: NDArray[Any] = np.where(sizes > 0, (counts * one * other).sum(axis=1) / sizes, np.nan)
    return found


def _ranks(columns: Sequence[ArrayLike], counts: NDArray[Any]) -> list[NDArray[Any]]:
    found = []
    for column in columns:
        values, places = np.unique(np.asarray(column), return_inverse=True)
        tied = counts @ (places[:, None] == np.arange(len(values))).astype(float)
        found.append((np.cumsum(tied, axis=1) - (tied - 1) / 2)[:, places])
    return found


def by_seed(seeds: Sequence[int], x: Sequence[float], y: Sequence[float]) -> Correlation:
    """Compute the correlation over trials, with a percentile bootstrap over seeds.

    Args:
        seeds: Seed of each trial.
        x: A number per trial.
        y: Another.

    Returns:
        The correlation with its interval.
    """
    if not len(seeds):
        return Correlation(math.nan, math.nan, math.nan, 0)
    mean = spearman(x, y)
    distinct = [*dict.fromkeys(seeds)]
    if min(len(distinct), len(seeds)) < FEWEST or math.isnan(mean):
        return Correlation(mean, math.nan, math.nan, len(seeds))
    drawn = np.random.default_rng(0).integers(len(distinct), size=(RESAMPLES, len(distinct)))
    times = np.stack([np.bincount(row, minlength=len(distinct)) for row in drawn]).astype(float)
    counts = times[:, [distinct.index(seed) for seed in seeds]]
    low, high = np.nanpercentile(_weighted_spearman(x, y, counts), [2.5, 97.5])
    return Correlation(mean, float(low), float(high), len(seeds))


def exact_p(x: Sequence[float], y: Sequence[float]) -> float:
    """Compute the two-sided p-value of a correlation over all orders, for a few points.

    Args:
        x: Numbers.
        y: As many.

    Returns:
        The p-value.
    """
    found = abs(spearman(x, y))
    orders = [abs(spearman(x, order)) >= found - 1e-9 for order in itertools.permutations(y)]
    return sum(orders) / len(orders)
