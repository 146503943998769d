"""Which process computes which weight, and how results and failures reach all; torch.distributed is the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch.distributed as dist

from tempbalance.errors import BalanceError

__all__ = ["Ranks", "share"]

_T = TypeVar("_T")


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

        Raises:
            BalanceError: This process is not in the group.
        """
        alone = not dist.is_available() or not dist.is_initialized()
        self._group = group
        self.rank = 0 if alone else dist.get_rank(group)
        self.size = 1 if alone else dist.get_world_size(group)
        if self.rank < 0:
            raise BalanceError(
                f"process {dist.get_rank()} is not in the process_group: pass the group of those that train this model"
            )

    def holds(self, processes: Iterable[int]) -> bool:
        """Whether all of these processes, by their numbers among all, are in the group."""
        return self.size == 1 or set(dist.get_process_group_ranks(self._group)).issuperset(processes)

    def exchange(self, value: _T) -> list[_T]:
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
        values = [value] * self.size
        dist.all_gather_object(values, value, group=self._group)
        return values

    def together(self, work: Callable[[], _T], what: str, error: type[BalanceError] = BalanceError) -> list[_T]:
        """Do something on every process and give the results to all; where one fails, all fail, and nobody waits.

        Args:
            work: What to do; what it returns can be pickled.
            what: What it is called in the message.
            error: What to raise.

        Returns:
            The results of all processes, in the order of their ranks.

        Raises:
            BalanceError: It failed on some process: the same message on all. (A process that is alone raises what
                ``work`` raised.)

        Example:
            >>> Ranks().together(lambda: 1 + 1, "the sum")
            [2]
        """
        if self.size == 1:
            return [work()]
        cause: Exception | None = None
        result, message = None, ""
        try:
            result = work()
        except Exception as raised:
            cause, message = raised, f"{type(raised).__name__}: {raised}"
        outcomes: list[tuple[Any, str]] = self.exchange((result, message))
        messages = [message for _, message in outcomes]
        failures = [
            f"{message} (rank {', '.join(str(rank) for rank, other in enumerate(messages) if other == message)})"
            for message in dict.fromkeys(filter(None, messages))
        ]
        if failures:
            raise error(f"{what} failed: {'; '.join(failures)}") from cause
        return [result for result, _ in outcomes]


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
