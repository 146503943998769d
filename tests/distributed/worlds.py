"""Start a few gloo processes, run a function in each, and get what they return; what hangs is killed and fails."""

from __future__ import annotations

import datetime
import faulthandler
import multiprocessing
import pickle
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

SECONDS = 40  # a world that takes longer hangs: the slowest here needs 5 s on a busy machine

# Processes are forked from a server that has imported all this once. It has no threads yet, as a test process may have.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "torch._dynamo",
        "torch.distributed.checkpoint.state_dict",
        "torch.distributed.fsdp",
        "tempbalance",
        "pytest",
    ]
)


def run(size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """What ``function(*args)`` returns in each process of a world, in the order of their ranks.

    A process that raises fails the test, with the traceback of every process. One that a signal ends is another matter:
    gloo's own thread was seen to die in ``malloc`` ("pt_gloo_runloop: segfault", torch 2.13), so such a world is run
    once more.
    """
    try:
        return _run(size, function, *args)
    except _Crash as crash:
        print(f"{crash}: once more", file=sys.stderr)
    try:
        return _run(size, function, *args)
    except _Crash as crash:
        pytest.fail(str(crash), pytrace=False)


class _Crash(Exception):
    """A signal has ended a process."""


def _run(size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    with tempfile.TemporaryDirectory() as folder:
        ends, processes = [], []
        for rank in range(size):
            end, other = _context.Pipe()
            process = _context.Process(target=_main, args=(rank, size, folder, other, function, args), daemon=True)
            process.start()
            other.close()
            ends.append(end)
            processes.append(process)
        try:
            return _results(ends, processes)
        finally:
            for end in ends:
                end.close()  # lets them go
            for process in processes:
                process.join(5)
                if process.is_alive():
                    process.kill()
                    process.join()


def _results(ends: list[Connection], processes: list[Any]) -> list[Any]:
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
                if code is not None and code < 0:
                    raise _Crash(f"{signal.Signals(-code).name} ended rank {rank}") from None
                outcomes[rank] = (None, f"died without a word, exit code {code}")
            if outcomes[rank][1] is not None and not failed:
                failed = True
                deadline = min(deadline, time.monotonic() + 5)  # for the others to say what they know
    silent = [f"rank {rank} hangs" for rank in range(len(ends)) if rank not in outcomes]
    failures = [f"rank {rank}: {failure}" for rank, (_, failure) in sorted(outcomes.items()) if failure is not None]
    if failures or silent:
        pytest.fail("\n".join([*failures, *silent]), pytrace=False)
    return [outcomes[rank][0] for rank in range(len(ends))]


def _main(
    rank: int, size: int, folder: str, end: Connection, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    faulthandler.enable(file=sys.__stderr__)
    faulthandler.dump_traceback_later(SECONDS - 5, file=sys.__stderr__)
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    result, failure = None, None
    try:
        store = f"file://{Path(folder) / 'store'}"
        timeout = datetime.timedelta(seconds=SECONDS / 2)
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size, timeout=timeout)
        result = function(*args)
    except BaseException:  # all of it is reported
        failure = traceback.format_exc()
    end.send_bytes(pickle.dumps((result, failure)))
    faulthandler.cancel_dump_traceback_later()
    try:
        end.recv_bytes()  # until all have reported: a connection that goes away early is an error to the others
    except EOFError:
        pass
    dist.destroy_process_group()
