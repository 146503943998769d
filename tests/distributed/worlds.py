"""Run functions in a few gloo processes, and return their results; a process that hangs is killed and fails the test.

The processes of a world of one size stay alive from test to test, because starting them takes longer than most tests.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import faulthandler
import gc
import pickle
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from processes import context
from tempbalance.errors import BalanceWarning

SECONDS = 40  # a call that takes longer hangs: the slowest here needs 5 s on a busy machine


def run(size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """Return the results of ``function(*args)`` in each process of a world, in the order of their ranks.

    A process that raises fails the test, with the traceback of every process. If a signal ends a process, the function
    is run once more in a new world: gloo's own thread was seen to die in ``malloc`` ("pt_gloo_runloop: segfault", torch
    2.13).
    """
    try:
        return _run(size, function, *args)
    except _Crash as crash:
        print(f"{crash}: once more", file=sys.stderr)
    try:
        return _run(size, function, *args)
    except _Crash as crash:
        pytest.fail(str(crash), pytrace=False)


@contextlib.contextmanager
def fresh_world(size: int) -> Iterator[None]:
    """Give the calls in a block processes that run nothing else, for functions that leave traces in them."""
    _close(size)
    try:
        yield
    finally:
        _close(size)


def run_once(size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """Run a function in a world of its own."""
    with fresh_world(size):
        return run(size, function, *args)


def run_killed(size: int, killed: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """Return the results of the processes that are left when one of them has killed itself."""
    world = _World(size)
    try:
        results = _send(world, function, *args, killed=killed)
    finally:
        world.close()
    return [result for rank, result in enumerate(results) if rank != killed]


class _Crash(Exception):
    """A signal has ended a process."""


class _World:
    """Processes that wait for functions to run."""

    def __init__(self, size: int) -> None:
        self.folder = tempfile.mkdtemp()
        self.ends: list[Connection] = []
        self.processes: list[Any] = []
        for rank in range(size):
            end, other = context.Pipe()
            process = context.Process(target=_main, args=(rank, size, self.folder, other), daemon=True)
            process.start()
            other.close()
            self.ends.append(end)
            self.processes.append(process)

    def close(self) -> None:
        """Let the processes end, and kill those that do not."""
        for end in self.ends:
            end.close()
        for process in self.processes:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()
        shutil.rmtree(self.folder, ignore_errors=True)


_worlds: dict[int, _World] = {}


def _close(size: int) -> None:
    if size in _worlds:
        _worlds.pop(size).close()


@atexit.register
def _close_all() -> None:
    for size in list(_worlds):
        _close(size)


def _run(size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    world = _worlds.pop(size, None) or _World(size)
    try:
        results = _send(world, function, *args)
    except BaseException:  # its processes may be in different states
        world.close()
        raise
    _worlds[size] = world
    return results


def _send(world: _World, function: Callable[..., Any], *args: Any, killed: int | None = None) -> list[Any]:
    task = pickle.dumps((function, args))
    for end in world.ends:
        end.send_bytes(task)
    return _results(world.ends, world.processes, killed)


def _results(ends: list[Connection], processes: list[Any], killed: int | None) -> list[Any]:
    deadline = time.monotonic() + SECONDS
    outcomes: dict[int, Any] = {}
    failed = False
    while len(outcomes) < len(ends) and time.monotonic() < deadline:
        for end in wait([end for rank, end in enumerate(ends) if rank not in outcomes], timeout=0.5):
            rank = ends.index(end)
            try:
                outcomes[rank] = pickle.loads(end.recv_bytes())
            except EOFError:
                processes[rank].join(5)
                code = processes[rank].exitcode
                if rank == killed and code == -signal.SIGKILL:
                    outcomes[rank] = (None, None)
                    continue
                if code is not None and code < 0:
                    raise _Crash(f"{signal.Signals(-code).name} ended rank {rank}") from None
                outcomes[rank] = (None, f"died without a word, exit code {code}")
            if outcomes[rank][1] is not None and not failed:
                failed = True
                deadline = min(deadline, time.monotonic() + 5)  # for the others to report their errors
    silent = [f"rank {rank} hangs" for rank in range(len(ends)) if rank not in outcomes]
    failures = [f"rank {rank}: {failure}" for rank, (_, failure) in sorted(outcomes.items()) if failure is not None]
    if failures or silent:
        pytest.fail("\n".join([*failures, *silent]), pytrace=False)
    return [outcomes[rank][0] for rank in range(len(ends))]


def _main(rank: int, size: int, folder: str, end: Connection) -> None:
    faulthandler.enable(file=sys.__stderr__)
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    warnings.simplefilter("ignore", BalanceWarning)
    store = f"file://{Path(folder) / 'store'}"
    timeout = datetime.timedelta(seconds=SECONDS / 2)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size, timeout=timeout)
    while True:
        try:
            task = end.recv_bytes()  # until then no process ends: a connection that goes away is an error to the others
        except EOFError:
            break
        faulthandler.dump_traceback_later(SECONDS - 5, file=sys.__stderr__)
        result, failure = None, None
        try:
            function, args = pickle.loads(task)
            result = function(*args)
        except BaseException:  # all of it is reported
            failure = traceback.format_exc()
        end.send_bytes(pickle.dumps((result, failure)))
        faulthandler.cancel_dump_traceback_later()
        del task, result
        gc.collect()
    dist.destroy_process_group()
