"""Assignments as in the code released with the papers."""

from __future__ import annotations

from dataclasses import dataclass

from tempbalance.balance.assign import Bounded

__all__ = ["RankAsReleased"]


@dataclass(frozen=True)
class RankAsReleased(Bounded):
    """``Rank`` as in the code released with TempBalance (``tb_step``): no unit reaches ``high``.

    Of ``n`` units the one with rank ``i = 0, 1, ...`` gets ``low + (high - low) i / n``; of two equal alphas the first
    gets less.

    Attributes:
        low: Multiplier of the unit with the heaviest tail.
        high: Upper bound, which no unit reaches.

    Example:
        >>> RankAsReleased(0.5, 1.5)([2.0, 9.0])
        [0.5, 1.0]
    """

    def map_alphas(self, alphas: list[float]) -> list[float]:
        """See the base class."""
        order = sorted(range(len(alphas)), key=alphas.__getitem__)
        ranks = dict(zip(order, range(len(alphas)), strict=True))
        return [self.low + (self.high - self.low) * ranks[i] / len(alphas) for i in range(len(alphas))]
