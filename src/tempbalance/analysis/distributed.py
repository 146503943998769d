"""Divide work among processes and exchange results and failures, with torch.distributed."""

from __future__ import annotations

import contextlib
import itertools
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch.distributed as dist

from tempbalance.analysis.heartbeat import Heartbeat
from tempbalance.errors import AnalysisError, BalanceError

__all__ = ["ProcessGroup", "WorkQueue", "assign_ranks", "defer_interrupt"]

_T = TypeVar("_T")
_POLL_SECONDS = 0.05
_launches = itertools.count()  # each launch has its own messages


class ProcessGroup:
    """The processes that train one model.

    Attributes:
        rank: Rank of this process in the group.
        size: Number of processes.
    """

    def __init__(self, group: Any = None) -> None:
        """Wrap a group, by default that of all processes; without torch.distributed, this process alone."""
        alone = not dist.is_available() or not dist.is_initialized()
        self._group = group
        self._awaited = False  # whether the other processes wait for another exchange of ``run_together``
        self.rank = 0 if alone else dist.get_rank(group)
        self.size = 1 if alone else dist.get_world_size(group)
        if self.rank < 0:
            raise BalanceError(
                f"process {dist.get_rank()} is not in the process_group: pass the group of those that train this model"
            )

    def contains(self, ranks: Iterable[int]) -> bool:
        """Return whether the group contains all these global ranks."""
        return self.size == 1 or set(dist.get_process_group_ranks(self._group)).issuperset(ranks)

    def all_gather(self, value: _T) -> list[_T]:
        """Return the values of all processes, in rank order; a collective."""
        if self.size == 1:
            return [value]
        values = [value] * self.size
        dist.all_gather_object(values, value, group=self._group)
        return values

    def run_on_all_ranks(self, work: Callable[[], _T], what: str, error: type[BalanceError] = BalanceError) -> list[_T]:
        """Return the results of a function on every process; if it fails on one, all raise the same message.

        A process that is interrupted (Ctrl-C) raises that itself, and the others the message. If one has ended, the
        others raise an error as soon as torch.distributed notices, at the latest after the time-out of the group.
        """
        if self.size == 1:
            return [work()]
        try:
            result = work()
        except BaseException as cause:
            return self._exchange(None, cause, what, error)
        return self._exchange(result, None, what, error)

    def run_together(self, work: Callable[[], _T], what: str, error: type[BalanceError] = BalanceError) -> _T:
        """Return the result of a function that calls ``run_on_all_ranks``; if it fails on one process, it does on all.

        A failure between those calls is told at the next one, or at the end, where all processes wait for all.
        """
        if self.size == 1:
            return work()
        self._awaited = True
        try:
            result = work()
            self._exchange(None, None, what, error, last=True)
        except BaseException as cause:
            if self._awaited:
                self._exchange(None, cause, what, error)
            raise
        return result

    def _exchange(
        self, result: Any, cause: BaseException | None, what: str, error: type[BalanceError], last: bool = False
    ) -> list[Any]:
        """Return the results of all processes, or raise if one of them has failed."""
        message = "" if cause is None else ": ".join(filter(None, [type(cause).__name__, str(cause)]))
        try:
            with defer_interrupt():
                outcomes: list[tuple[Any, str]] = self.all_gather((result, message))
                messages = [message for _, message in outcomes]
                self._awaited = not (last or any(messages))
        except RuntimeError as lost:  # of torch.distributed
            self._awaited = False
            raise error(f"{what} failed: another process has stopped ({lost})") from cause or lost
        if cause is not None and not isinstance(cause, Exception):
            raise cause
        failures = [
            f"{message} (rank {', '.join(str(rank) for rank, other in enumerate(messages) if other == message)})"
            for message in dict.fromkeys(filter(None, messages))
        ]
        if failures:
            raise error(f"{what} failed: {'; '.join(failures)}") from cause
        return [result for result, _ in outcomes]


@contextlib.contextmanager
def defer_interrupt() -> Iterator[None]:
    """Delay Ctrl-C until the end of the block: a process that leaves a collective makes the others wait for it."""
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[Any] = []
    signal.signal(signal.SIGINT, lambda *call: received.append(call))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if received:
            handler(*received[0])


class WorkQueue:
    """Processes that divide one piece of work and exchange results as they come, through a store.

    Unlike the collectives of ``ProcessGroup``, no process waits before its own part is done, and waiting can be
    interrupted. In a ``with`` block, an error or Ctrl-C in one process makes the others raise an ``AnalysisError``.

    Args:
        store: A store of torch.distributed that is used for one piece of work; None for a single process.
        rank: Rank of this process.
        size: Number of processes.
        timeout: Seconds without a heartbeat of a process, which each sends every few seconds also while it computes,
            after which the others raise an ``AnalysisError``. Time in which all are stopped does not count.

    Attributes:
        rank: Rank of this process.
        size: Number of processes.
    """

    def __init__(self, store: Any = None, rank: int = 0, size: int = 1, timeout: float = 300.0) -> None:
        self._store = store
        self._read = 0
        self._failed_first: bool | None = None  # None if this process has not failed
        self._timeout = timeout
        self._heartbeat = None if store is None else Heartbeat(store, rank, size, timeout)
        self.rank = rank
        self.size = size

    @classmethod
    def launched(cls, timeout: float = 300.0) -> WorkQueue:
        """Find the processes that torchrun has started.

        Args:
            timeout: Seconds to wait until all have started (their imports may take different times), and later for a
                heartbeat of each.

        Returns:
            A queue of all of them, once all have started; without torchrun, of this process.

        Raises:
            AnalysisError: Some do not call this, for example because one process of a training job runs a command.
        """
        if not dist.is_available() or not dist.is_torchelastic_launched():
            return cls()
        store, rank, size = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
        prefix = f"tempbalance {next(_launches)}"
        queue = cls(dist.PrefixStore(prefix, store), rank, size, timeout)  # type: ignore[attr-defined]
        with queue:
            deadline = time.monotonic() + timeout
            present = queue._count("present", 1)
            while present < size:
                if time.monotonic() > deadline:
                    raise AnalysisError(
                        f"torchrun has started {size} processes, but only {present} of them run this command; to run "
                        "it in one process, unset TORCHELASTIC_RUN_ID"
                    )
                queue._check()
                time.sleep(_POLL_SECONDS)
                present = queue._count("present", 0)
        return queue

    def __enter__(self) -> WorkQueue:
        """Return the queue."""
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        """Tell the other processes of an error."""
        if error is not None:
            self.report_failure(error)

    def broadcast(self, value: _T) -> _T:
        """Return the value of rank 0 on every process."""
        if self._store is None:
            return value
        if self.rank == 0:
            self._ask("set", "broadcast", pickle.dumps(value))
        while not self._ask("check", ["broadcast"]):
            self._check()
            time.sleep(_POLL_SECONDS)
        received: _T = pickle.loads(self._ask("get", "broadcast"))
        return received

    def gather(self, results: Iterable[_T]) -> Iterator[_T]:
        """Yield the results of all processes on every process, as they come."""
        if self._heartbeat is None:
            yield from results
            return
        for value in results:
            self._ask("set", f"result {self._count('results', 1)}", pickle.dumps(value))
            yield from self._received()
        self._count("done", 1)
        while self._count("done", 0) < self.size:
            yield from self._received()
            time.sleep(_POLL_SECONDS)
        yield from self._received()
        if self.rank:
            self._heartbeat.stop()
        self._count("left", 1)
        while self.rank == 0 and self._count("left", 0) < self.size:  # the store may be in the process of rank 0
            self._check()
            time.sleep(_POLL_SECONDS)
        self._heartbeat.stop()

    def report_failure(self, error: BaseException | None = None) -> bool:
        """Make the other processes raise instead of waiting; return whether this is the first to fail.

        Args:
            error: What they say of this process.

        Returns:
            Whether no other process has reported a failure before; the same for every call.
        """
        if self._heartbeat is None:
            return True
        if self._failed_first is None:
            self._failed_first = True  # also if the store cannot be reached
            with contextlib.suppress(AnalysisError):
                kind = ": ".join(filter(None, [type(error).__name__, str(error)])) if error else "see its message"
                self._ask("set", f"failure of {self.rank}", kind.encode(errors="backslashreplace"))
                self._failed_first = self._count("failed", 1) == 1
            self._heartbeat.stop()
        return self._failed_first

    def _ask(self, operation: str, *arguments: Any) -> Any:
        """Return what the store answers."""
        try:
            return getattr(self._store, operation)(*arguments)
        except RuntimeError as error:
            raise AnalysisError(f"the store of torch.distributed does not answer: {error}") from error

    def _count(self, counter: str, increment: int) -> int:
        count: int = self._ask("add", counter, increment)
        return count

    def _received(self) -> Iterator[Any]:
        """Yield the results since the last call, those of this process included."""
        while self._ask("check", [key := f"result {self._read + 1}"]):
            self._read += 1
            yield pickle.loads(self._ask("get", key))
        self._check()

    def _check(self) -> None:
        """Raise if another process has failed or sends no heartbeat."""
        if self._count("failed", 0):
            failed = next(rank for rank in range(self.size) if self._ask("check", [f"failure of {rank}"]))
            reason = self._ask("get", f"failure of {failed}").decode(errors="replace")
            raise AnalysisError(f"another process has failed (rank {failed}: {reason})")
        if self._heartbeat is not None and self._heartbeat.lost:
            raise AnalysisError(
                f"{self._heartbeat.lost} did not answer for {self._timeout:g} s: stopped, killed, or cut off; start "
                "all processes again"
            )


def assign_ranks(costs: Sequence[float], size: int) -> list[int]:
    """Return the rank that does each piece: the most expensive first, each to the process with the least so far."""
    loads = [0.0] * size
    ranks = [0] * len(costs)
    for piece in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        ranks[piece] = min(range(size), key=lambda rank: (loads[rank], rank))
        loads[ranks[piece]] += costs[piece]
    return ranks
