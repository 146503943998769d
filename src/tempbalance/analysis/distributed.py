"""Which process computes which weight, and how results and failures reach all; torch.distributed is the engine."""

from __future__ import annotations

import itertools
import pickle
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch.distributed as dist

from tempbalance.errors import AnalysisError, BalanceError

__all__ = ["ProcessGroup", "WorkQueue", "share"]

_T = TypeVar("_T")
_PAUSE = 0.05  # seconds between two looks at the messages
_PATIENCE = 300.0  # seconds: processes that start together may import at very different speeds
_launches = itertools.count()  # each is a piece of work with messages of its own


class ProcessGroup:
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
            >>> ProcessGroup().exchange("here")
            ['here']
        """
        if self.size == 1:
            return [value]
        values = [value] * self.size
        dist.all_gather_object(values, value, group=self._group)
        return values

    def run_on_all_ranks(self, work: Callable[[], _T], what: str, error: type[BalanceError] = BalanceError) -> list[_T]:
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
            >>> ProcessGroup().run_on_all_ranks(lambda: 1 + 1, "the sum")
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


class WorkQueue:
    """Processes that share one piece of work and tell each other what is done, as it is done.

    Messages lie in a store. Unlike in the collectives of ``ProcessGroup``, no process waits before its own part is
    done, and waiting can be interrupted.

    Attributes:
        rank: Number of this one.
        size: How many there are.
    """

    def __init__(self, store: Any = None, rank: int = 0, size: int = 1) -> None:
        """Take the processes that share a store; without one, this process alone.

        Args:
            store: A store of torch.distributed, for one piece of work.
            rank: Number of this process.
            size: How many there are.
        """
        self._store = store
        self._read = 0
        self.rank = rank
        self.size = size

    @classmethod
    def launched(cls) -> WorkQueue:
        """Find the processes that torchrun has started.

        Returns:
            All of them, once they are there; without torchrun this one alone.

        Raises:
            AnalysisError: Some do not come, as where one process of a training starts a command of its own.
        """
        if not dist.is_available() or not dist.is_torchelastic_launched():
            return cls()
        store, rank, size = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
        processes = cls(dist.PrefixStore(f"tempbalance {next(_launches)}", store), rank, size)  # type: ignore[attr-defined]
        deadline = time.monotonic() + _PATIENCE
        present = processes._count("present", 1)
        while present < size:
            if time.monotonic() > deadline:
                raise AnalysisError(
                    f"torchrun has started {size} processes, but only {present} of them run this command; to run it "
                    "in one process alone, unset TORCHELASTIC_RUN_ID"
                )
            time.sleep(_PAUSE)
            present = processes._count("present", 0)
        return processes

    def first(self, value: _T) -> _T:
        """What the first process knows.

        Args:
            value: Anything that can be pickled; only that of rank 0 matters.

        Returns:
            The value of rank 0, on all.

        Raises:
            AnalysisError: Another process has failed.

        Example:
            >>> WorkQueue().first("here")
            'here'
        """
        if self._store is None:
            return value
        if self.rank == 0:
            self._store.set("first", pickle.dumps(value))
        while not self._store.check(["first"]):
            self._check()
            time.sleep(_PAUSE)
        known: _T = pickle.loads(self._store.get("first"))
        return known

    def merge(self, own: Iterable[_T]) -> Iterator[_T]:
        """What this process and all others produce, as it comes.

        Args:
            own: What this process produces; can be pickled.

        Yields:
            Everything, on all processes.

        Raises:
            AnalysisError: Another process has failed.

        Example:
            >>> list(WorkQueue().merge([1, 2]))
            [1, 2]
        """
        if self._store is None:
            yield from own
            return
        for value in own:
            self._store.set(f"said {self._count('said', 1)}", pickle.dumps(value))
            yield from self._heard()
        self._count("done", 1)
        while self._count("done", 0) < self.size:
            yield from self._heard()
            time.sleep(_PAUSE)
        yield from self._heard()
        self._count("left", 1)
        while self.rank == 0 and self._count("left", 0) < self.size:  # the store may live in the first process
            self._check()
            time.sleep(_PAUSE)

    def fail(self) -> bool:
        """Tell the others that this process ends before its part is done; they raise instead of waiting for it.

        Returns:
            Whether it is the first to fail; one message is enough.
        """
        return self._store is None or self._count("failed", 1) == 1

    def _count(self, what: str, more: int) -> int:
        count: int = self._store.add(what, more)
        return count

    def _heard(self) -> Iterator[Any]:
        """What has been said since the last call, by this process too."""
        while self._store.check([key := f"said {self._read + 1}"]):
            self._read += 1
            yield pickle.loads(self._store.get(key))
        self._check()

    def _check(self) -> None:
        if self._count("failed", 0):
            raise AnalysisError("another process has failed; its message says why")


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
