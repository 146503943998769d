"""A process that is stopped, killed or interrupted ends a shared analysis; one that computes for long does not."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file

import tempbalance as tb
from tempbalance.analysis.distributed import WorkQueue
from tempbalance.errors import AnalysisError

from .worlds import run_killed, run_once

TIMEOUT = 2.0


@pytest.fixture
def source(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    tensors = {f"layers.{i}.weight": torch.randn(60 + i, 50, generator=generator) for i in range(12)}
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def analysed(source: Path, in_the_middle: Callable[[], None]) -> str:
    """Return the analysis or the error of this process, which does something after two of its results."""
    path, size = source.with_name("messages"), dist.get_world_size()
    processes = WorkQueue(dist.FileStore(str(path), size), dist.get_rank(), size, TIMEOUT)
    gather = processes.gather

    def slow(own: Any) -> Iterator[Any]:
        for number, value in enumerate(own):
            if number == 2:
                in_the_middle()
            yield value

    processes.gather = lambda own: gather(slow(own))  # type: ignore[method-assign]
    try:
        return repr(tb.analyze(source, progress=False, processes=processes))
    except (AnalysisError, KeyboardInterrupt) as error:
        return f"{type(error).__name__}: {error}"


def send(number: int, rank: int) -> None:
    if dist.get_rank() == rank:
        os.kill(os.getpid(), number)


def pids() -> list[int]:
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, os.getpid())
    return found


def stopped(source: Path) -> str:
    others = pids()
    try:
        return analysed(source, lambda: send(signal.SIGSTOP, 1))
    finally:
        if dist.get_rank() == 0:
            os.kill(others[1], signal.SIGCONT)


def test_the_others_raise_the_rank_that_is_stopped_and_so_does_this_when_it_continues(source):
    first, second, third = run_once(3, stopped, source)
    lost = "AnalysisError: rank 1 did not answer for 2 s"
    failed = "AnalysisError: another process has failed (rank "
    assert any(each.startswith(lost) for each in (first, third))
    assert all(each.startswith((lost, failed)) for each in (first, third))
    assert second.startswith(failed)
    assert lost in second


def killed(source: Path) -> str:
    return analysed(source, lambda: send(signal.SIGKILL, 1))


def test_the_others_raise_the_rank_that_is_killed(source):
    assert run_killed(2, 1, killed, source)[0].startswith(
        "AnalysisError: rank 1 did not answer for 2 s: stopped, killed"
    )


def interrupted(source: Path) -> str:
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may start tests with Ctrl-C ignored
    try:
        return analysed(source, lambda: send(signal.SIGINT, 0))
    finally:
        signal.signal(signal.SIGINT, handler)


def test_an_interrupt_of_one_process_ends_the_others_with_an_error(source):
    first, second = run_once(2, interrupted, source)
    assert first == "KeyboardInterrupt: "
    assert second == "AnalysisError: another process has failed (rank 0: KeyboardInterrupt)"


def slow(source: Path) -> str:
    """Compute for longer than the time-out on one process; then stop all for longer than it (Ctrl-Z, and fg)."""
    others = pids()

    def wait() -> None:
        if dist.get_rank() == 1:
            time.sleep(1.5 * TIMEOUT)
            with contextlib.suppress(ProcessLookupError):
                command = f"sleep {1.5 * TIMEOUT}; kill -CONT {' '.join(map(str, others))}"
                subprocess.Popen(["sh", "-c", command], start_new_session=True)
                for pid in (others[0], others[1]):
                    os.kill(pid, signal.SIGSTOP)

    return analysed(source, wait)


@pytest.mark.slow
def test_a_long_computation_and_a_stop_of_all_processes_are_no_failure(source):
    assert run_once(2, slow, source) == [repr(tb.analyze(source))] * 2
