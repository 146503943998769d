"""Copy weights to a GPU while the previous ones are computed.

The copy uses pinned memory and a separate stream, so that the GPU copies and computes at the same time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import torch
from torch import Tensor

from tempbalance.layers import Weight
from tempbalance.layers.fused import Reader

__all__ = ["streamed"]


def streamed(
    batches: Iterable[Sequence[Weight]], device: torch.device
) -> Iterator[tuple[Sequence[Weight], list[Weight]]]:
    """Yield each batch and its weights on the device, while the next batch (and no other) is copied."""
    # A weight that cannot be read or copied ahead is yielded unchanged: reading it raises the error.
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
    pool = ThreadPoolExecutor(1, thread_name_prefix="tempbalance")
    pending: tuple[Sequence[Weight], Future[list[Weight]]] | None = None
    try:
        for batch in batches:
            following = batch, pool.submit(_copy_batch, batch, device, stream)
            if pending is not None:
                yield pending[0], pending[1].result()
            pending = following
        if pending is not None:
            yield pending[0], pending[1].result()
    finally:
        pool.shutdown(cancel_futures=True)


def _copy_batch(batch: Iterable[Weight], device: torch.device, stream: torch.cuda.Stream | None) -> list[Weight]:
    on_device = []
    for weight in batch:
        try:
            on_device.append(replace(weight, cut=_copy(weight.load().detach(), device, stream)))
        except Exception:  # raised again when the weight is used; memory may be free by then
            on_device.append(weight)
    return on_device


def _copy(tensor: Tensor, device: torch.device, stream: torch.cuda.Stream | None) -> Callable[[Reader], Tensor]:
    if stream is None or tensor.device.type != "cpu":
        on_device = tensor.to(device)
        return lambda _: on_device
    with torch.cuda.stream(stream):
        copy = tensor.pin_memory().to(device, non_blocking=True)
        return functools.partial(_arrived, copy, stream.record_event())


def _arrived(tensor: Tensor, copied: torch.cuda.Event, _: Reader) -> Tensor:
    """Return a copy; the current stream waits until it is complete."""
    stream = torch.cuda.current_stream(tensor.device)
    stream.wait_event(copied)
    tensor.record_stream(stream)  # so that the other stream does not reuse its memory too early
    return tensor
