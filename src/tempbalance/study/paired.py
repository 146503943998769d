"""Paired comparison of two methods over the same seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tempbalance.analysis.deviations import holm
from tempbalance.errors import ArgumentError

__all__ = ["FEWEST", "Paired", "holm", "paired"]

FEWEST = 10  # seeds; an interval over fewer is too narrow to conclude anything from
_RESAMPLES = 10_000
_TAIL = 2.5  # per cent on either side
_ROUNDING = 1e-12  # of the larger of two numbers: smaller differences are rounding errors


class Paired(NamedTuple):
    """The difference of two methods over seeds.

    Attributes:
        mean: Mean difference, first minus second, over the seeds in which both are finite; NaN without any.
        low: Lower end of its 95 % confidence interval; NaN with fewer than two differences.
        high: Upper end.
        won: Number of seeds in which the first is greater.
        tied: Number of seeds in which they are equal to 12 digits.
        lost: Number of seeds in which the first is smaller.
        p_value: Two-sided p-value of Wilcoxon's signed-rank test over all seeds.
    """

    mean: float
    low: float
    high: float
    won: int
    tied: int
    lost: int
    p_value: float

    @property
    def seeds(self) -> int:
        """Number of seeds."""
        return self.won + self.tied + self.lost

    @property
    def share_won(self) -> float:
        """Fraction of the seeds in which the first is greater."""
        return self.won / self.seeds


def paired(first: Sequence[float], second: Sequence[float]) -> Paired:
    """Compare two methods, with a percentile bootstrap over the seeds (10,000 resamples, fixed generator).

    NaN or infinity stands for a diverged trial, the worst result: it loses against any number and ties with another
    diverged trial. Its seed has no difference, so mean and interval leave it out; the test counts it as the largest
    loss.

    Args:
        first: One number per seed, greater is better.
        second: The same seeds in the same order.

    Returns:
        The mean difference with its confidence interval, the counts, and the p-value.

    Raises:
        ArgumentError: There is no seed, or the lengths differ.

    Example:
        >>> found = paired([80.0, 82.0, 90.0, 91.0], [80.0, 81.0, 88.0, 88.0])
        >>> found.mean, found.won, found.tied, found.lost
        (1.5, 3, 1, 0)
        >>> found.low < 1.5 < found.high
        True
    """
    if not len(first) == len(second) > 0:
        raise ArgumentError(f"expected the same number of seeds, at least one, got {len(first)} and {len(second)}")
    scores = [np.where(np.isfinite(numbers), numbers, -np.inf) for numbers in (first, second)]
    with np.errstate(invalid="ignore"):
        outcomes = np.nan_to_num(scores[0] - scores[1], nan=0.0, posinf=np.inf, neginf=-np.inf)
    outcomes[np.isclose(scores[0], scores[1], rtol=_ROUNDING, atol=0.0)] = 0.0
    differences = outcomes[np.isfinite(scores).all(axis=0)]
    mean = differences.mean() if len(differences) else np.nan
    low = high = np.nan
    if len(differences) > 1:
        chosen = np.random.default_rng(0).integers(len(differences), size=(_RESAMPLES, len(differences)))
        low, high = np.percentile(differences[chosen].mean(axis=1), [_TAIL, 100 - _TAIL])
    return Paired(
        mean=float(mean),
        low=float(low),
        high=float(high),
        won=int((outcomes > 0).sum()),
        tied=int((outcomes == 0).sum()),
        lost=int((outcomes < 0).sum()),
        p_value=_signed_rank(outcomes),
    )


def _signed_rank(differences: NDArray[Any]) -> float:
    """Wilcoxon's test, exact given the ranks; zeros are left out, equal sizes share the mean of their ranks."""
    differences = differences[differences != 0]
    sizes = np.array([float(f"{abs(difference):.4g}") for difference in differences])  # ignores rounding errors
    ranks = (sizes[:, None] > sizes).sum(axis=1) + (sizes[:, None] >= sizes).sum(axis=1) + 1  # doubled: integers
    chances = np.zeros(ranks.sum() + 1)  # probability of each sum of the positive ranks, with random signs
    chances[0] = 1.0
    for rank in ranks:
        chances = (chances + np.roll(chances, rank)) / 2  # the entries that wrap around are zero
    positive = ranks[differences > 0].sum()
    return min(1.0, 2 * float(min(chances[: positive + 1].sum(), chances[positive:].sum())))
