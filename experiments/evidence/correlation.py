"""Rank correlation, with an interval that knows that runs of one seed have data and initial weights in common."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

FEWEST = 10  # points, for an interval
RESAMPLES = 2_000


class Correlation(NamedTuple):
    """Spearman's rank correlation.

    Attributes:
        mean: The correlation of all points; NaN if it is not defined.
        low: Lower end of its 95 % interval, NaN with fewer than 10 points or seeds.
        high: Upper end.
        points: How many there are.
    """

    mean: float
    low: float
    high: float
    points: int


def ranks(values: ArrayLike) -> NDArray[Any]:
    """ProcessGroup from 1; equal values share the mean of theirs.

    Args:
        values: Numbers.

    Returns:
        As many ranks.
    """
    _, places, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[places]


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman's rank correlation: Pearson's, of the ranks.

    Args:
        x: Numbers.
        y: As many.

    Returns:
        The correlation; NaN where all of one are equal.
    """
    one, other = ranks(x), ranks(y)
    one, other = one - one.mean(), other - other.mean()
    size = math.sqrt(float((one**2).sum() * (other**2).sum()))
    return float(one @ other) / size if size else math.nan


def by_seed(seeds: Sequence[int], x: Sequence[float], y: Sequence[float]) -> Correlation:
    """The correlation over runs, with a percentile bootstrap that draws whole seeds.

    Args:
        seeds: Of each run.
        x: A number for each.
        y: Another.

    Returns:
        The correlation with its interval.
    """
    points = np.array([x, y], dtype=float)
    places = [np.flatnonzero(np.asarray(seeds) == seed) for seed in dict.fromkeys(seeds)]
    if not places:
        return Correlation(math.nan, math.nan, math.nan, 0)
    mean = spearman(*points)
    if min(len(places), len(seeds)) < FEWEST or math.isnan(mean):
        return Correlation(mean, math.nan, math.nan, len(seeds))
    rng = np.random.default_rng(0)
    drawn = (np.concatenate([places[i] for i in rng.integers(len(places), size=len(places))]) for _ in range(RESAMPLES))
    low, high = np.nanpercentile([spearman(*points[:, chosen]) for chosen in drawn], [2.5, 97.5])
    return Correlation(mean, float(low), float(high), len(seeds))


def exact_p(x: Sequence[float], y: Sequence[float]) -> float:
    """How often, of all orders, the correlation is as strong as this one, either way. For a few points.

    Args:
        x: Numbers.
        y: As many.

    Returns:
        The two-sided p-value.
    """
    found = abs(spearman(x, y))
    orders = [abs(spearman(x, order)) >= found - 1e-9 for order in itertools.permutations(y)]
    return sum(orders) / len(orders)
