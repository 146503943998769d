"""Fit the tails of many weights: equal shapes in one batch, several batches at a time, a share of them per process.

On a CPU the reduction to tridiagonal form waits for memory more than it computes, and threads within one linear-algebra
call wait for each other: on a machine that is busy with other work, too, for long. So weights are computed side by side
where that keeps all threads busy, each in a thread of its own.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from tempbalance.analysis.distributed import share
from tempbalance.analysis.streaming import streamed
from tempbalance.errors import TempBalanceError, WindowError
from tempbalance.layers import Weight
from tempbalance.spectra.matrices import as_matrices, matrix_shape
from tempbalance.spectra.windows import Windows
from tempbalance.tail import TailEstimator
from tempbalance.weight_fit import WeightFit, batch_key, fit_weights

__all__ = ["Fitted", "cost", "enough_side_by_side", "fit_model_weights", "own_share"]

Fitted: TypeAlias = tuple[Weight, WeightFit | TempBalanceError]

_BATCH = 1 << 21  # weights of equal shape that are analysed together hold at most this many numbers
_LEAST = 1 << 16  # so that tiny weights do share a call
_ROUNDS = 4  # batches per thread, at least, where there is enough to do
_SMALL = 1 << 20  # weights of up to so many numbers gain little from a second thread of linear algebra
_ROOM = 1 << 29  # bytes that a weight computed beside others may need, itself not counted
_WINDOWS_BYTES = 10  # for each number of a float32 weight: what its windows need at most
_FULL = 2  # times the work of the most expensive weight, for each thread: so that they end at about the same time


def fit_model_weights(
    weights: Sequence[Weight],
    *,
    estimator: TailEstimator,
    windows: Windows | None = None,
    device: torch.device | str | None = None,
    side_by_side: bool = False,
) -> Iterator[list[Fitted]]:
    """Compute the spectra of weights and fit their tails.

    Small weights are computed in threads, as many at a time as torch has threads, each with one thread of linear
    algebra; large ones one after the other, each with all threads, or likewise.

    Args:
        weights: What to read and fit.
        estimator: How the tails are fitted.
        windows: FARMS windows whose spectra are pooled; None for whole matrices.
        device: Where to compute; by default where each weight is. A GPU gets the next weights while it computes.
        side_by_side: Whether large weights are computed in threads, too, the most expensive first, as far as none needs
            more than 512 MB beside itself. Without a device alone: weights on an accelerator take turns.

    Yields:
        Batch by batch, in no particular order, each weight with its fit or with the error that it raised. On a CPU the
        numbers do not depend on which weights share a batch; those of what is computed in threads do not depend on how
        many threads there are, either (if more than one).

    Example:
        >>> from tempbalance.layers import find_weights
        >>> from tempbalance.tail import Hill
        >>> weights, _ = find_weights({"a": torch.eye(20), "b": torch.full((20, 20), torch.nan)})
        >>> {w.name: type(fit).__name__ for batch in fit_model_weights(weights, estimator=Hill()) for w, fit in batch}
        {'a': 'WeightFit', 'b': 'NonFiniteError'}
    """
    job = _Job(estimator, windows, device)
    if device is not None and _is_streamed(there := torch.device(device)):
        yield from _streamed_fits(job, weights, there)
        return
    threads = torch.get_num_threads()
    if threads == 1 or (device is not None and torch.device(device).type != "cpu"):
        yield from map(job.fit, _batches(weights, windows, _BATCH))
        return
    small = [weight for weight in weights if _size(weight) <= _SMALL]
    beside = [weight for weight in weights if side_by_side and _is_large_but_fits(weight, windows)]
    in_threads = {weight.name for weight in small + beside}
    even = sum(map(_size, small)) // (_ROUNDS * threads)  # a few weights must not end up in one thread
    batches = [*_batches(beside, windows, _BATCH), *_batches(small, windows, min(_BATCH, max(_LEAST, even)))]
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield from pool.map(job.fit, sorted(batches, key=lambda batch: -sum(map(cost, batch))))
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # a thread's own number is also that of threads yet to come
    yield from map(job.fit, _batches([w for w in weights if w.name not in in_threads], windows, _BATCH))


def _streamed_fits(job: _Job, weights: Sequence[Weight], device: torch.device) -> Iterator[list[Fitted]]:
    for batch, brought in streamed(_batches(weights, job.windows, _BATCH), device):
        fits = [fit for _, fit in job.fit(brought)]
        brought.clear()  # room for the one after the next
        yield list(zip(batch, fits, strict=True))


def enough_side_by_side(weights: Sequence[Weight], windows: Windows | None = None) -> bool:
    """Whether large weights are better computed side by side than one after the other.

    A few of them would leave threads without work at the end.

    Args:
        weights: All weights of a model, whichever of them are computed in this run and by this process: the answer, and
            with it the last bits of the numbers, is then that of all runs and processes.
        windows: FARMS windows whose spectra are pooled; None for whole matrices.

    Returns:
        Whether there is work enough for all threads of torch.

    Example:
        >>> from tempbalance.layers import find_weights
        >>> weights, _ = find_weights({"a": torch.ones(2000, 2000)})
        >>> enough_side_by_side(weights), enough_side_by_side(weights * 2 * torch.get_num_threads())
        (False, True)
    """
    costs = [cost(weight) for weight in weights if _is_large_but_fits(weight, windows)]
    return sum(costs) >= _FULL * torch.get_num_threads() * max(costs, default=1.0)


def _is_large_but_fits(weight: Weight, windows: Windows | None) -> bool:
    rows, columns = matrix_shape(weight.shape, weight.layout)
    gram = torch.float64.itemsize * min(rows, columns) ** 2
    matrices = _size(weight) // (rows * columns)
    room = gram * (matrices + 1) if windows is None else _WINDOWS_BYTES * _size(weight)  # LAPACK copies one at a time
    return _size(weight) > _SMALL and room <= _ROOM


def cost(weight: Weight) -> float:
    """Operations for the eigenvalues of a weight, roughly.

    Args:
        weight: The weight; nothing is read.

    Returns:
        Their number, up to a factor.
    """
    rows, columns = matrix_shape(weight.shape, weight.layout)
    short = min(rows, columns)
    return _size(weight) * short * (1 + 4 * short / max(rows, columns))


def own_share(weights: Sequence[Weight], rank: int, size: int) -> list[Weight]:
    """Which weights one of several processes computes, so that all have about the same work.

    Args:
        weights: All of them, the same on every process.
        rank: Number of the process.
        size: How many there are.

    Returns:
        Its weights, in the order given.

    Example:
        >>> from tempbalance.layers import find_weights
        >>> weights, _ = find_weights({"a": torch.ones(30, 30), "b": torch.ones(20, 20), "c": torch.ones(20, 20)})
        >>> [[weight.name for weight in own_share(weights, rank, 2)] for rank in (0, 1)]
        [['a'], ['b', 'c']]
    """
    owners = share([cost(weight) for weight in weights], size)
    return [weight for weight, owner in zip(weights, owners, strict=True) if owner == rank]


def _is_streamed(device: torch.device) -> bool:
    return device.type == "cuda"


def _size(weight: Weight) -> int:
    return torch.Size(weight.shape).numel()


def _batches(weights: Sequence[Weight], windows: Windows | None, most: int) -> Iterator[list[Weight]]:
    """Runs of neighbours of one shape and layout, or of one window, that hold at most so many numbers together."""
    batch: list[Weight] = []
    last: object = None
    total = 0
    for weight in weights:
        key, size = _key(weight, windows), _size(weight)
        if batch and (key != last or total + size > most):
            yield batch
            batch, total = [], 0
        batch.append(weight)
        last, total = key, total + size
    if batch:
        yield batch


def _key(weight: Weight, windows: Windows | None) -> object:
    try:
        return batch_key(weight.shape, weight.layout, windows)
    except WindowError:  # is raised again, and listed, when the turn of this weight comes
        return weight.name


@dataclass(frozen=True)
class _Job:
    """What stays the same from weight to weight."""

    estimator: TailEstimator
    windows: Windows | None
    device: torch.device | str | None
    turn: threading.Lock = field(default_factory=threading.Lock)

    def fit(self, batch: list[Weight]) -> list[Fitted]:
        """Each weight of a batch with its fit or its error."""
        try:
            tensors = [as_matrices(weight.load(), weight.layout) for weight in batch]
            with self.turn if _takes_turns(tensors[0]) else contextlib.nullcontext():
                found = self._measure(tensors, batch)
        except TempBalanceError as error:
            if len(batch) > 1:  # find out which one it is
                return [fitted for weight in batch for fitted in self.fit([weight])]
            return [(batch[0], error)]
        return list(zip(batch, found, strict=True))

    def _measure(self, tensors: list[Tensor], batch: list[Weight]) -> list[WeightFit]:
        layouts = [weight.layout for weight in batch]
        return fit_weights(tensors, layouts, estimator=self.estimator, windows=self.windows, device=self.device)


def _takes_turns(tensor: Tensor) -> bool:
    """An accelerator has one memory for all, and computes one large matrix as fast as several at a time."""
    return tensor.device.type != "cpu" and tensor.numel() > _SMALL
