"""Run several studies at a time, each in its own process."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Generator, Mapping
from contextlib import redirect_stderr
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from tempbalance._progress import progress_bar
from tempbalance.errors import TempBalanceError
from tempbalance.study.runner import count_trials, run

__all__ = ["run_many"]

_POLL = 1.0  # seconds
_COUNTED = ("task", "methods", "seeds", "lr", "tuning_seeds", "baseline")


def run_many(
    studies: Mapping[Path, Mapping[str, Any]], *, processes: int = 2, progress: bool = True
) -> Generator[tuple[Path, str], None, None]:
    """Run several studies, some at a time, each in a process with one thread.

    Warnings and errors of a study are written to ``FOLDER.log``. If the generator is closed, or this process ends, the
    studies are stopped; the same call resumes them.

    Args:
        studies: Arguments of :func:`run` by output folder. A task given as a function must be importable.
        processes: Number of processes.
        progress: Whether to show a progress bar over all trials (only on a terminal).

    Yields:
        The folder of a finished study, and its error; an empty string if there was none.

    Raises:
        StudyError: A method of a study is wrong; nothing has been started.
    """
    totals = {
        out: count_trials(**{key: options[key] for key in _COUNTED if key in options})
        for out, options in studies.items()
    }
    waiting, running, before = [*studies], dict[BaseProcess, Path](), 0
    with progress_bar("training", sum(totals.values()), progress) as advance:
        try:
            while waiting or running:
                while waiting and len(running) < processes:
                    process = _start(waiting[0], studies[waiting[0]])
                    running[process] = waiting.pop(0)
                wait([process.sentinel for process in running], timeout=_POLL)
                for process in [process for process in running if not process.is_alive()]:
                    yield running[process], "" if process.exitcode == 0 else _last_line(running[process])
                    del running[process]
                now = sum(min(total, sum(1 for _ in out.glob("runs/*/seed-*.json"))) for out, total in totals.items())
                advance(now - before)
                before = now
        finally:
            for process in running:
                process.terminate()
                process.join()


def _log(out: Path) -> Path:
    return out.with_name(f"{out.name}.log")


def _last_line(out: Path) -> str:
    return _log(out).read_text(encoding="utf-8").strip().rpartition("\n")[2] or "the process was killed"


def _start(out: Path, options: Mapping[str, Any]) -> BaseProcess:
    out.parent.mkdir(parents=True, exist_ok=True)
    _log(out).touch()
    process = multiprocessing.get_context("spawn").Process(target=_work, args=(out, dict(options)), name=out.name)
    process.start()
    return process


def _work(out: Path, options: Mapping[str, Any]) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent stops this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with open(_log(out), "w", encoding="utf-8") as log, redirect_stderr(log):
        try:
            run(out=out, progress=False, **options)
            return
        except TempBalanceError as error:
            log.write(f"{error}\n")
        except Exception:
            traceback.print_exc()
    sys.exit(1)


def _end_with_parent() -> None:
    """End this process with its parent, to release the lock of the folder; at most one trial is lost."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
