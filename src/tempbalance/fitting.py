"""Fit the tails of many weights: equal shapes in one batch, small weights in threads, a share of them per process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from tempbalance.distributed import share
from tempbalance.errors import TempBalanceError, WindowError
from tempbalance.layers import Weight
from tempbalance.matrices import as_matrices, matrix_shape
from tempbalance.pooling import WindowedFit, pooled_fits, window_key
from tempbalance.spectrum import spectra
from tempbalance.streaming import streamed
from tempbalance.tail import TailEstimator
from tempbalance.windows import Windows

__all__ = ["Fitted", "cost", "fit_weights", "own_share"]

Fitted: TypeAlias = tuple[Weight, WindowedFit | TempBalanceError]

_BATCH = 1 << 21  # weights of equal shape that are analysed together hold at most this many numbers
_LEAST = 1 << 16  # so that tiny weights do share a call
_ROUNDS = 4  # batches per thread, at least, where there is enough to do
_SMALL = 1 << 20  # weights of up to so many numbers gain little from a second thread of linear algebra


def fit_weights(
    weights: Sequence[Weight],
    *,
    estimator: TailEstimator,
    windows: Windows | None = None,
    device: torch.device | str | None = None,
) -> Iterator[list[Fitted]]:
    """Compute the spectra of weights and fit their tails; small weights first, each in a thread of its own.

    Args:
        weights: What to read and fit.
        estimator: How the tails are fitted.
        windows: FARMS windows whose spectra are pooled; None for whole matrices.
        device: Where to compute; by default where each weight is. A GPU gets the next weights while it computes.

    Yields:
        Batch by batch, in no particular order, each weight with its fit or with the error that it raised. The numbers
        do not depend on which weights share a batch on a CPU.

    Example:
        >>> from tempbalance.layers import find_weights
        >>> from tempbalance.tail import Hill
        >>> weights, _ = find_weights({"a": torch.eye(20), "b": torch.full((20, 20), torch.nan)})
        >>> {w.name: type(fit).__name__ for batch in fit_weights(weights, estimator=Hill()) for w, fit in batch}
        {'a': 'WindowedFit', 'b': 'NonFiniteError'}
    """
    job = _Job(estimator, windows, device)
    if device is not None and _is_streamed(there := torch.device(device)):
        for batch, brought in streamed(_batches(weights, windows, _BATCH), there):
            fits = [fit for _, fit in job.fit(brought)]
            brought.clear()  # room for the one after the next
            yield list(zip(batch, fits, strict=True))
        return
    small = [weight for weight in weights if _size(weight) <= _SMALL]
    large = [weight for weight in weights if _size(weight) > _SMALL]
    threads = torch.get_num_threads()
    if threads > 1 and small and (device is None or torch.device(device).type == "cpu"):
        pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
        even = sum(map(_size, small)) // (_ROUNDS * threads)  # a few weights must not end up in one thread
        try:
            yield from pool.map(job.fit, _batches(small, windows, min(_BATCH, max(_LEAST, even))))
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)  # a thread's own number is also that of threads yet to come
    else:
        yield from map(job.fit, _batches(small, windows, _BATCH))
    yield from map(job.fit, _batches(large, windows, _BATCH))


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
    if windows is None:
        return weight.shape, weight.layout
    try:
        return window_key(matrix_shape(weight.shape, weight.layout), weight.layout, windows)
    except WindowError:  # is raised again, and listed, when the turn of this weight comes
        return weight.name


@dataclass(frozen=True)
class _Job:
    """What stays the same from weight to weight."""

    estimator: TailEstimator
    windows: Windows | None
    device: torch.device | str | None

    def fit(self, batch: list[Weight]) -> list[Fitted]:
        """Each weight of a batch with its fit or its error."""
        try:
            tensors = [as_matrices(weight.load(), weight.layout) for weight in batch]
            found = self._measure(tensors, batch)
        except TempBalanceError as error:
            if len(batch) > 1:  # find out which one it is
                return [fitted for weight in batch for fitted in self.fit([weight])]
            return [(batch[0], error)]
        return list(zip(batch, found, strict=True))

    def _measure(self, tensors: list[Tensor], batch: list[Weight]) -> list[WindowedFit]:
        if self.windows is not None:
            layouts = [weight.layout for weight in batch]
            return pooled_fits(tensors, layouts, windows=self.windows, estimator=self.estimator, device=self.device)
        found = spectra(tensors, device=self.device)
        fits = self.estimator.fit_batch(torch.stack([spectrum.eigenvalues for spectrum in found]))
        return [WindowedFit(spectrum, fit, 1, 1.0) for spectrum, fit in zip(found, fits, strict=True)]
