"""Weights on their way to a GPU: while some are computed, the next are read and copied.

The copy goes through pinned memory, on a stream of its own, so that the GPU copies and computes at a time.
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
    """Bring weights to a device, one batch ahead of the one that is asked for.

    Args:
        batches: Weights that lie elsewhere, in the order in which they are needed.
        device: Where they are needed.

    Yields:
        Each batch, and its weights as they are on the device. So long as nobody keeps these, two batches at most lie
        there. What cannot be read or copied ahead is as it was: whoever reads it when its turn has come sees the error.

    Example:
        >>> from tempbalance.layers import find_weights
        >>> weights, _ = find_weights({"a": torch.ones(2, 3), "b": torch.ones(3, 2)})
        >>> [there[0].load().shape for _, there in streamed([[weight] for weight in weights], torch.device("cpu"))]
        [torch.Size([2, 3]), torch.Size([3, 2])]
    """
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
    pool = ThreadPoolExecutor(1, thread_name_prefix="tempbalance")
    coming: tuple[Sequence[Weight], Future[list[Weight]]] | None = None
    try:
        for batch in batches:
            following = batch, pool.submit(_bring, batch, device, stream)
            if coming is not None:
                yield coming[0], coming[1].result()
            coming = following
        if coming is not None:
            yield coming[0], coming[1].result()
    finally:
        pool.shutdown(cancel_futures=True)


def _bring(batch: Iterable[Weight], device: torch.device, stream: torch.cuda.Stream | None) -> list[Weight]:
    there = []
    for weight in batch:
        try:
            there.append(replace(weight, cut=_sent(weight.load().detach(), device, stream)))
        except Exception:  # is raised again when its turn has come, and may be memory that is free by then
            there.append(weight)
    return there


def _sent(tensor: Tensor, device: torch.device, stream: torch.cuda.Stream | None) -> Callable[[Reader], Tensor]:
    if stream is None or tensor.device.type != "cpu":
        return functools.partial(_here, tensor.to(device))
    with torch.cuda.stream(stream):
        copy = tensor.pin_memory().to(device, non_blocking=True)
        return functools.partial(_arrived, copy, stream.record_event())


def _here(tensor: Tensor, _: Reader) -> Tensor:
    return tensor


def _arrived(tensor: Tensor, copied: torch.cuda.Event, _: Reader) -> Tensor:
    """A copy, once it is there: what is computed on the current stream from now on waits for it."""
    stream = torch.cuda.current_stream(tensor.device)
    stream.wait_event(copied)
    tensor.record_stream(stream)  # its memory was taken on the other stream, which may not have it back before
    return tensor
