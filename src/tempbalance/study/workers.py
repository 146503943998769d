"""Processes that train the trials of a study side by side."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, NamedTuple, TypeAlias, cast
from unittest.mock import patch

import torch

from tempbalance.errors import StudyError
from tempbalance.study.candidates import Configuration
from tempbalance.study.task import Task, Trial, load_task

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
        task: The task.
        source: Its file or function, for :func:`load_task`: each process loads it once.
        jobs: Number of processes; with 1, trials are trained in this one.
    """

    task: Task
    source: str | os.PathLike[str] | Callable[..., object]
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
        if self.jobs == 1:
            yield from (self.task.run(configuration, seed) for configuration, seed in wanted)
            return
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
                connection = cast("Connection", ready)  # on Windows a class beside it
                answer = self._receive(connection, busy.pop(connection))
                if isinstance(answer, Trial):
                    yield answer
                    idle.append(connection)
                else:
                    error = error or answer
        if error is not None:
            raise error

    def _start(self, count: int) -> None:
        for environment in worker_environments(self.jobs)[len(self._started) : count]:
            ours, theirs = _CONTEXT.Pipe()
            given = (theirs, self.source, self.task.parameters, self.task.digest, _TorchState.now(self.jobs))
            process = _CONTEXT.Process(target=_work, args=given)
            try:
                with patch.dict(os.environ, environment):  # of the process from its beginning: its imports may use CUDA
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


class _TorchState(NamedTuple):
    """Global settings of torch that change the numbers of a trial, for a new process."""

    threads: int
    dtype: torch.dtype
    device: torch.device
    precision: str
    deterministic: bool
    warn_only: bool

    @classmethod
    def now(cls, jobs: int) -> _TorchState:
        """Return the settings of this process, with its share of the threads."""
        return cls(
            threads=max(1, torch.get_num_threads() // jobs),
            dtype=torch.get_default_dtype(),
            device=torch.get_default_device(),
            precision=torch.get_float32_matmul_precision(),
            deterministic=torch.are_deterministic_algorithms_enabled(),
            warn_only=torch.is_deterministic_algorithms_warn_only_enabled(),
        )

    def restore(self) -> None:
        """Make them the settings of this process."""
        torch.set_num_threads(self.threads)
        torch.set_default_dtype(self.dtype)
        if self.device != torch.get_default_device():
            torch.set_default_device(self.device)
        torch.set_float32_matmul_precision(self.precision)
        torch.use_deterministic_algorithms(self.deterministic, warn_only=self.warn_only)


def _work(
    connection: Connection,
    source: str | os.PathLike[str] | Callable[..., object],
    arguments: Mapping[str, Any],
    digest: str,
    state: _TorchState,
) -> None:
    """Train what is asked for, until the process is ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        loaded = load_task(source, arguments)
        if loaded.digest != digest:
            raise StudyError(f"{loaded.name} was changed while its trials are trained: use another folder")
        state.restore()
        while True:
            configuration, seed = connection.recv()
            trial = loaded.run(configuration, seed)
            with contextlib.suppress(AttributeError, OSError, ValueError):  # there is none, or it is closed
                sys.stdout.flush()  # what the task printed is lost when the parent ends this process
            connection.send(trial)
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
