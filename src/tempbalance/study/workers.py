"""Processes that train the trials of a study side by side."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, TypeAlias

import torch

from tempbalance.errors import StudyError
from tempbalance.study.candidates import Configuration
from tempbalance.study.task import Trial, load_task

__all__ = ["Wanted", "Workers", "worker_environments"]

Wanted: TypeAlias = tuple[Configuration, int]  # a configuration and a seed
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_HINT = (
    "Finished trials are kept. In a script, call it under \"if __name__ == '__main__':\"; a function typed in a "
    "notebook must be moved to a file; if the memory was too small, use fewer jobs"
)


@dataclass
class Workers:
    """Train trials in several processes, which start when they are needed and end with the ``with`` block.

    Attributes:
        task: The task, for :func:`load_task`; each process loads it once.
        arguments: Its further arguments.
        jobs: Number of processes.
    """

    task: str | os.PathLike[str] | Callable[..., object]
    arguments: Mapping[str, Any]
    jobs: int
    _started: dict[Connection, BaseProcess] = field(default_factory=dict[Connection, BaseProcess])

    def __enter__(self) -> Workers:
        """Return the workers."""
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        """End the processes; a trial that one of them trains is lost."""
        for process in self._started.values():
            process.terminate()
        for process in self._started.values():
            process.join()

    def train(self, wanted: Sequence[Wanted]) -> Iterator[Trial]:
        """Yield trials as they finish.

        Raises:
            StudyError: A process cannot be started, or ended; the trials of the others are yielded before.
        """
        waiting = deque(wanted)
        self._start(min(self.jobs, len(waiting)))
        idle, busy = [*self._started], dict[Connection, Wanted]()
        error: BaseException | None = None
        while busy or (waiting and error is None):
            while waiting and idle and error is None:
                connection = idle.pop()
                busy[connection] = waiting.popleft()
                with contextlib.suppress(OSError):  # it ended while it waited: what is received says so
                    connection.send(busy[connection])
            for ready in wait([*busy]):
                assert isinstance(ready, Connection)
                answer = self._receive(ready, busy.pop(ready))
                if isinstance(answer, Trial):
                    yield answer
                    idle.append(ready)
                else:
                    error = error or answer
        if error is not None:
            raise error

    def _start(self, count: int) -> None:
        for environment in worker_environments(self.jobs)[len(self._started) : count]:
            ours, theirs = _CONTEXT.Pipe()
            threads = max(1, torch.get_num_threads() // self.jobs)
            process = _CONTEXT.Process(target=_work, args=(theirs, self.task, self.arguments, threads, environment))
            try:
                process.start()
            except Exception as error:  # of pickle, for one of many reasons
                raise StudyError(
                    f"with more than one job, the task and its arguments are sent to other processes: {error}. Use a "
                    "file, or a function of a module"
                ) from error
            theirs.close()  # so that the end of the process is the end of the pipe
            self._started[ours] = process

    def _receive(self, connection: Connection, wanted: Wanted) -> Trial | BaseException:
        try:
            answer: Trial | BaseException = connection.recv()
        except (EOFError, OSError):
            process = self._started.pop(connection)
            process.join()
            code = process.exitcode or 0
            how = f"was ended by signal {-code}" if code < 0 else f"ended with status {code}"
            return StudyError(f"the process of {wanted[0]}, seed {wanted[1]}, {how}. {_HINT}")
        return answer


_CONTEXT = multiprocessing.get_context("spawn")  # a fork of a process that has used a GPU cannot use it


def worker_environments(jobs: int) -> list[dict[str, str]]:
    """Return the environment variables of each process: of several GPUs, one each, in turn.

    Example:
        >>> worker_environments(2) if torch.cuda.device_count() < 2 else [{}, {}]
        [{}, {}]
    """
    count = torch.cuda.device_count()
    if count < 2:  # noqa: PLR2004
        return [{} for _ in range(jobs)]
    devices = os.environ[_VISIBLE].split(",")[:count] if os.environ.get(_VISIBLE) else [*map(str, range(count))]
    return [{_VISIBLE: devices[job % count]} for job in range(jobs)]


def _work(
    connection: Connection,
    task: str | os.PathLike[str] | Callable[..., object],
    arguments: Mapping[str, Any],
    threads: int,
    environment: Mapping[str, str],
) -> None:
    """Train what is asked for, until the process is ended."""
    os.environ.update(environment)  # before CUDA is used
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        loaded = load_task(task, arguments)
        while True:
            configuration, seed = connection.recv()
            connection.send(loaded.run(configuration, seed))
    except BaseException as error:
        _send_error(connection, error)


def _send_error(connection: Connection, error: BaseException) -> None:
    """Send an error as it is, or as text if it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = StudyError("".join(traceback.format_exception(error)))
    connection.send(error)


def _end_with_parent() -> None:
    """End this process with its parent; at most one trial is lost."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
