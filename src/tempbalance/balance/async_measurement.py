"""Measure asynchronously, in one thread and, on a GPU, on a separate stream."""

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
    """A function that runs in a background thread; ``result`` waits for it.

    It uses one thread of linear algebra, so that it takes at most one core from training. On a GPU it starts after the
    kernels that were launched before it, and runs concurrently with those launched later.

    Attributes:
        step: Optimizer steps taken before it was started.

    Example:
        >>> AsyncMeasurement(lambda: 1 + 1, [], step=0).result()
        2
    """

    def __init__(self, work: Callable[[], _T], reads: Iterable[Tensor], *, step: int) -> None:
        self.step = step
        streams = _side_streams(reads)
        ready = threading.Event()
        pool = ThreadPoolExecutor(1, thread_name_prefix="tempbalance", initializer=_one_thread, initargs=(ready,))
        threads = torch.get_num_threads()
        self._future = pool.submit(_on_streams, streams, work)
        pool.shutdown(wait=False)  # the thread ends with the work; the interpreter waits for it at exit
        ready.wait()
        torch.set_num_threads(threads)  # setting it in one thread also sets the default of new threads

    def result(self) -> _T:
        """Wait for the function and return its result."""
        try:
            return self._future.result()
        except Exception as error:
            raise RefreshError(
                f"the asynchronous measurement started at step {self.step} failed: {type(error).__name__}: {error}"
            ) from error


def _one_thread(ready: threading.Event) -> None:
    torch.get_num_threads()  # initialises the number of this thread, which would otherwise override the next line
    torch.set_num_threads(1)
    ready.set()


def _side_streams(tensors: Iterable[Tensor]) -> list[torch.cuda.Stream]:
    """Return a new stream per GPU, which waits for its current stream; the tensors are kept until it is done."""
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
