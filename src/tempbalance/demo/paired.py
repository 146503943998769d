"""Two arms over the same seeds: what can be said about their difference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

__all__ = ["FEWEST", "Paired", "paired"]

FEWEST = 10  # seeds; with fewer the interval is too narrow to conclude anything from
_RESAMPLES = 10_000
_TAIL = 2.5  # per cent on either side


class Paired(NamedTuple):
    """The difference of two arms, seed by seed.

    Attributes:
        mean: Mean difference, first minus second.
        low: Lower end of its 95 % confidence interval.
        high: Upper end.
        won: Seeds in which the first is greater.
        tied: Seeds in which they are equal.
        lost: Seeds in which the first is smaller.
    """

    mean: float
    low: float
    high: float
    won: int
    tied: int
    lost: int

    @property
    def seeds(self) -> int:
        """How many there are."""
        return self.won + self.tied + self.lost

    @property
    def share_won(self) -> float:
        """The share of the seeds in which the first is greater."""
        return self.won / self.seeds


def paired(first: Sequence[float], second: Sequence[float]) -> Paired:
    """Compare two arms, with a percentile bootstrap over the seeds (10,000 resamples, always the same).

    Args:
        first: One number per seed.
        second: The same seeds in the same order.

    Returns:
        The mean difference with its confidence interval, and how often which one was greater.

    Raises:
        ValueError: There is no seed, or not the same number in both.

    Example:
        >>> found = paired([80.0, 82.0, 90.0, 91.0], [80.0, 81.0, 88.0, 88.0])
        >>> found.mean, found.won, found.tied, found.lost
        (1.5, 3, 1, 0)
        >>> found.low < 1.5 < found.high
        True
    """
    if not len(first) == len(second) > 0:
        raise ValueError(f"expected as many numbers in both arms, and at least one, got {len(first)} and {len(second)}")
    differences = np.subtract(first, second)
    chosen = np.random.default_rng(0).integers(len(differences), size=(_RESAMPLES, len(differences)))
    low, high = np.percentile(differences[chosen].mean(axis=1), [_TAIL, 100 - _TAIL])
    return Paired(
        mean=float(differences.mean()),
        low=float(low),
        high=float(high),
        won=int((differences > 0).sum()),
        tied=int((differences == 0).sum()),
        lost=int((differences < 0).sum()),
    )
