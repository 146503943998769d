"""A measurement beside training: in a thread of its own, on a GPU on a stream of its own, until it is asked for."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

import torch
from torch import Tensor

from tempbalance.errors import RefreshError

__all__ = ["AsyncMeasurement"]

_T = TypeVar("_T")


class AsyncMeasurement(Generic[_T]):
    """Work that has begun. Nothing depends on when it ends: who asks for the result waits for it.

    It has one thread of linear algebra, so that it takes no more than one core from training. On a GPU it queues behind
    what was launched before it, and runs beside what is launched after.

    Attributes:
        step: Optimizer steps that were taken before it began.

    Example:
        >>> AsyncMeasurement(lambda: 1 + 1, [], step=0).result()
        2
    """

    def __init__(self, work: Callable[[], _T], reads: Iterable[Tensor], *, step: int) -> None:
        """Begin.

        Args:
            work: What to do.
            reads: The tensors that it reads, which nobody else writes.
            step: Optimizer steps that were taken before.
        """
        self.step = step
        streams = _side_streams(reads)
        ready = threading.Event()
        pool = ThreadPoolExecutor(1, thread_name_prefix="tempbalance", initializer=_one_thread, initargs=(ready,))
        threads = torch.get_num_threads()
        self._future = pool.submit(_on_streams, streams, work)
        pool.shutdown(wait=False)  # its thread ends with the work; a program that ends before waits for it
        ready.wait()
        torch.set_num_threads(threads)  # a thread's own number is also that of threads yet to come

    def result(self) -> _T:
        """What the work gave; waits for it.

        Returns:
            The same each time.

        Raises:
            RefreshError: The work has raised; its error is the cause.
        """
        try:
            return self._future.result()
        except Exception as error:
            raise RefreshError(
                f"the measurement that began at step {self.step}, beside training, failed: "
                f"{type(error).__name__}: {error}"
            ) from error


def _one_thread(ready: threading.Event) -> None:
    torch.get_num_threads()  # the first question gives a thread the number of all; only then it can have its own
    torch.set_num_threads(1)
    ready.set()


def _side_streams(tensors: Iterable[Tensor]) -> list[torch.cuda.Stream]:
    """A stream for each GPU that has tensors, behind what its current stream does; they outlive what it reads there."""
    streams: dict[torch.device, torch.cuda.Stream] = {}
    for tensor in tensors:
        if tensor.device.type == "cuda":
            if tensor.device not in streams:
                streams[tensor.device] = torch.cuda.Stream(tensor.device)  # type: ignore[no-untyped-call]
                streams[tensor.device].wait_stream(torch.cuda.current_stream(tensor.device))
            tensor.record_stream(streams[tensor.device])
    return list(streams.values())


def _on_streams(streams: Iterable[torch.cuda.Stream], work: Callable[[], _T]) -> _T:
    with contextlib.ExitStack() as stack:
        for stream in streams:
            stack.enter_context(torch.cuda.stream(stream))
        return work()
