"""Which process computes which weight, and how results and failures reach all; torch.distributed is the engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.distributed as dist

__all__ = ["Ranks", "share"]


class Ranks:
    """The processes that train one model together.

    Attributes:
        rank: Number of this one.
        size: How many there are.
    """

    def __init__(self, group: Any = None) -> None:
        """Take the processes of a group.

        Args:
            group: A process group; by default all processes, or this one alone where torch.distributed is not set up.
        """
        alone = not dist.is_available() or not dist.is_initialized()
        self._group = group
        self.rank = 0 if alone else dist.get_rank(group)
        self.size = 1 if alone else dist.get_world_size(group)

    def exchange(self, value: Any) -> list[Any]:
        """Give a value to all, and get theirs.

        Args:
            value: Anything that can be pickled.

        Returns:
            The values of all processes, in the order of their ranks.

        Example:
            >>> Ranks().exchange("here")
            ['here']
        """
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self._group)
        return values


def share(costs: Sequence[float], size: int) -> list[int]:
    """Divide work among processes: the most expensive piece first, each to the process with the least so far.

    Args:
        costs: Of each piece, in any unit.
        size: How many processes there are.

    Returns:
        The rank that does each piece; the same on every process.

    Example:
        >>> share([1.0, 3.0, 2.0], 2)
        [1, 0, 1]
    """
    loads = [0.0] * size
    owners = [0] * len(costs)
    for piece in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        owners[piece] = min(range(size), key=lambda rank: (loads[rank], rank))
        loads[owners[piece]] += costs[piece]
    return owners
