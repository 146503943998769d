"""Heartbeats of the processes that share a piece of work, so that one that is stopped or killed is noticed."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

__all__ = ["Heartbeat"]

_MOST_SECONDS = 5.0  # between two heartbeats
_LEFT = -(2**40)  # added to the heartbeats of a process that needs nothing more of the others


class Heartbeat:
    """Counts up in a store every few seconds, also while the process computes, and watches the counts of the others.

    The seconds that another process is silent are counted in heartbeats of this process, so that time in which all are
    stopped (Ctrl-Z, a suspended machine) does not count.

    Args:
        store: A store of torch.distributed.
        rank: Rank of this process.
        size: Number of processes.
        timeout: Seconds without a heartbeat after which a process is lost.
    """

    def __init__(self, store: Any, rank: int, size: int, timeout: float) -> None:
        self._store = store
        self._rank = rank
        self._timeout = timeout
        self._interval = min(timeout / 10, _MOST_SECONDS)
        self._beats = dict.fromkeys(range(size), 0)
        self._silent = dict.fromkeys(range(size), 0.0)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="tempbalance heartbeat")
        self._thread.start()

    @property
    def lost(self) -> str:
        """The processes without a heartbeat during the time-out, as text; empty if there are none."""
        ranks = [str(rank) for rank, seconds in self._silent.items() if seconds >= self._timeout]
        return f"{'rank' if len(ranks) == 1 else 'ranks'} {', '.join(ranks)}" if ranks else ""

    def stop(self) -> None:
        """End the heartbeats; the others wait for no more of them."""
        if not self._stopped.is_set():
            self._stopped.set()
            self._thread.join(self._interval)
            with contextlib.suppress(RuntimeError):
                self._store.add(self._key(self._rank), _LEFT)

    def _run(self) -> None:
        with contextlib.suppress(RuntimeError):  # the store is gone: the process notices when it uses it
            while not self._stopped.is_set():
                self._store.add(self._key(self._rank), 1)
                for rank in self._beats.keys() - {self._rank}:
                    beats = self._store.add(self._key(rank), 0)
                    silent = 0 <= beats == self._beats[rank]
                    self._silent[rank] = self._silent[rank] + self._interval if silent else 0.0
                    self._beats[rank] = beats
                self._stopped.wait(self._interval)

    @staticmethod
    def _key(rank: int) -> str:
        return f"heartbeats of {rank}"
