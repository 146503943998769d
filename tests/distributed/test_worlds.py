"""Worlds of processes stay from test to test; a call that a signal ends is run once more, and only once."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch.distributed as dist

from .worlds import run


def crashes(marks: str, times: int) -> int:
    rank = dist.get_rank()
    if rank == 1:
        begun = Path(marks) / str(len(list(Path(marks).iterdir())))
        begun.touch()
        if int(begun.name) < times:
            os.kill(os.getpid(), signal.SIGSEGV)
    return rank


def raises() -> None:
    raise ValueError("the cat ate it")


def process_id() -> int:
    return os.getpid()


def test_the_processes_of_a_world_stay_until_one_fails():
    first = run(2, process_id)
    assert run(2, process_id) == first
    with pytest.raises(pytest.fail.Exception, match="the cat ate it"):
        run(2, raises)
    assert set(run(2, process_id)).isdisjoint(first)


def test_a_call_that_a_signal_ends_is_run_once_more(tmp_path):
    assert run(2, crashes, str(tmp_path), 1) == [0, 1]
    with pytest.raises(pytest.fail.Exception, match="SIGSEGV ended rank 1"):
        run(2, crashes, str(tmp_path), 9)
    assert len(list(tmp_path.iterdir())) == 4


def test_a_call_that_raises_is_not_run_again():
    with pytest.raises(pytest.fail.Exception, match="the cat ate it"):
        run(2, raises)
