"""Fit the weights of a model in batches of equal shape, in parallel threads, and on several processes.

On a CPU the reduction to tridiagonal form is limited by memory bandwidth, and the threads of one linear-algebra call
wait for each other. Therefore weights are computed in parallel, each in one thread, if this keeps all threads busy.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from tempbalance.analysis.distributed import assign_ranks
from tempbalance.analysis.streaming import streamed
from tempbalance.errors import TempBalanceError, WeightError, WindowError
from tempbalance.layers import Weight
from tempbalance.spectra.matrices import as_matrices, matrix_shape
from tempbalance.spectra.windows import Windows
from tempbalance.tail import TailEstimator
from tempbalance.weight_fit import WeightFit, batch_key, fit_weights

__all__ = [
    "BatchLimits",
    "Fitted",
    "UnexpectedError",
    "cost",
    "fit_model_weights",
    "should_parallelize",
    "weights_of_rank",
]

Fitted: TypeAlias = tuple[Weight, WeightFit | TempBalanceError]

_logger = logging.getLogger("tempbalance")


class UnexpectedError(WeightError):
    """A library, or an estimator of the user, raised its ``__cause__`` for a weight. An analysis skips the weight."""


_BATCHES_PER_THREAD = 4  # at least, where there are enough weights
_WEIGHTS_PER_THREAD = 2  # least total cost per thread over the largest cost: threads end at about the same time
_WINDOWS_BYTES = 10  # at most, per entry of a float32 weight


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Limits for weights that share a batch or are computed in parallel threads.

    Attributes:
        batch: Largest number of entries in a batch of weights of equal shape.
        smallest_batch: Number of entries up to which a batch is not distributed over threads.
        small: Largest number of entries of a small weight, which gains little from a second thread of linear algebra.
        memory: Largest memory in bytes, without the weight itself, for a large weight in a parallel thread.
    """

    batch: int = 1 << 21
    smallest_batch: int = 1 << 16
    small: int = 1 << 20
    memory: int = 1 << 29


_LIMITS = BatchLimits()


def fit_model_weights(  # noqa: PLR0913  options by keyword
    weights: Sequence[Weight],
    *,
    estimator: TailEstimator,
    windows: Windows | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    traps: bool = False,
    parallel: bool = False,
    stream: bool | None = None,
    limits: BatchLimits = _LIMITS,
) -> Iterator[list[Fitted]]:
    """Compute the spectra of weights and fit their tails.

    Small weights are computed in parallel, as many as torch has threads, each with one thread of linear algebra; large
    ones one after the other with all threads, or in parallel too.

    Args:
        weights: Weights to read and fit.
        estimator: Estimator of the tails.
        windows: FARMS windows whose spectra are pooled; None for full matrices.
        device: Device for the computation; by default that of each weight.
        dtype: ``torch.float32`` for eigenvalues in float32, as for ``fit_weights``.
        traps: Whether to count correlation traps.
        parallel: Whether large weights are computed in parallel too, the most expensive first, if none needs more than
            512 MB in addition. Without ``device`` only: weights on an accelerator are computed one by one.
        stream: Whether the next weights are copied to the device during the computation; by default to a GPU only.
        limits: Sizes of batches.

    Yields:
        Batch by batch, in no particular order, each weight with its fit or with the error that it raised. On a CPU the
        numbers do not depend on which weights share a batch, nor on the number of threads (if more than one).

    Example:
        >>> from tempbalance.layers import find_weights
        >>> from tempbalance.tail import Hill
        >>> weights, _ = find_weights({"a": torch.eye(20), "b": torch.full((20, 20), torch.nan)})
        >>> {w.name: type(fit).__name__ for batch in fit_model_weights(weights, estimator=Hill()) for w, fit in batch}
        {'a': 'WeightFit', 'b': 'NonFiniteError'}
    """
    fitter = _BatchFitter(estimator, windows, device, dtype, traps, limits)
    if device is not None and (torch.device(device).type == "cuda" if stream is None else stream):
        for batch, on_device in streamed(fitter.batches(weights, limits.batch), torch.device(device)):
            fits = [fit for _, fit in fitter.fit(on_device)]
            on_device.clear()  # free the memory for the batch after the next
            yield list(zip(batch, fits, strict=True))
        return
    threads = torch.get_num_threads()
    if threads == 1 or (device is not None and torch.device(device).type != "cpu"):
        yield from map(fitter.fit, fitter.batches(weights, limits.batch))
        return
    small = [weight for weight in weights if _size(weight) <= limits.small]
    large = [weight for weight in weights if parallel and _is_large_but_fits(weight, windows, limits)]
    in_threads = {weight.name for weight in small + large}
    even = sum(map(_size, small)) // (_BATCHES_PER_THREAD * threads)  # so that a few weights use all threads
    most = min(limits.batch, max(limits.smallest_batch, even))
    batches = [*fitter.batches(large, limits.batch), *fitter.batches(small, most)]
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield from pool.map(fitter.fit, sorted(batches, key=lambda batch: -sum(map(cost, batch))))
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # the setting of a pool thread is the default of threads created later
    rest = [weight for weight in weights if weight.name not in in_threads]
    yield from map(fitter.fit, fitter.batches(rest, limits.batch))


def should_parallelize(
    weights: Sequence[Weight], windows: Windows | None = None, limits: BatchLimits = _LIMITS
) -> bool:
    """Return whether large weights are better computed in parallel: a few would leave threads idle at the end."""
    # ``weights`` must be all of the model, also those of another run or process: the choice changes the last bits.
    costs = [cost(weight) for weight in weights if _is_large_but_fits(weight, windows, limits)]
    return sum(costs) >= _WEIGHTS_PER_THREAD * torch.get_num_threads() * max(costs, default=1.0)


def cost(weight: Weight) -> float:
    """Estimate the operations for the eigenvalues of a weight, up to a constant factor; nothing is read."""
    rows, columns = matrix_shape(weight.shape, weight.layout)
    short = min(rows, columns)
    return _size(weight) * short * (1 + 4 * short / max(rows, columns))


def weights_of_rank(weights: Sequence[Weight], rank: int, size: int) -> list[Weight]:
    """Return the weights that one of several processes computes, so that all have about the same work."""
    ranks = assign_ranks([cost(weight) for weight in weights], size)
    return [weight for weight, owner in zip(weights, ranks, strict=True) if owner == rank]


def _is_large_but_fits(weight: Weight, windows: Windows | None, limits: BatchLimits) -> bool:
    rows, columns = matrix_shape(weight.shape, weight.layout)
    gram = torch.float64.itemsize * min(rows, columns) ** 2
    matrices = _size(weight) // (rows * columns)
    needed = gram * (matrices + 1) if windows is None else _WINDOWS_BYTES * _size(weight)  # LAPACK copies one at a time
    return _size(weight) > limits.small and needed <= limits.memory


def _size(weight: Weight) -> int:
    return torch.Size(weight.shape).numel()


@dataclass(frozen=True)
class _BatchFitter:
    """Reads and fits batches, in any thread."""

    estimator: TailEstimator
    windows: Windows | None
    device: torch.device | str | None
    dtype: torch.dtype | None
    traps: bool
    limits: BatchLimits
    lock: threading.Lock = field(default_factory=threading.Lock)

    def batches(self, weights: Sequence[Weight], most: int) -> Iterator[list[Weight]]:
        """Yield consecutive weights with equal keys, with at most ``most`` entries in total."""
        batch: list[Weight] = []
        last: object = None
        total = 0
        for weight in weights:
            key, size = self._key(weight), _size(weight)
            if batch and (key != last or total + size > most):
                yield batch
                batch, total = [], 0
            batch.append(weight)
            last, total = key, total + size
        if batch:
            yield batch

    def fit(self, batch: list[Weight]) -> list[Fitted]:
        """Return each weight of a batch with its fit or its error."""
        try:
            tensors = [as_matrices(weight.load(), weight.layout) for weight in batch]
            with self.lock if self._takes_turns(tensors[0]) else contextlib.nullcontext():
                found = fit_weights(
                    tensors,
                    [weight.layout for weight in batch],
                    estimator=self.estimator,
                    windows=self.windows,
                    device=self.device,
                    dtype=self.dtype,
                    traps=self.traps,
                )
        except (MemoryError, torch.cuda.OutOfMemoryError):  # the machine is too small, the weight is not bad
            raise
        except Exception as error:
            if len(batch) > 1:  # find the one that failed
                return [fitted for weight in batch for fitted in self.fit([weight])]
            return [(batch[0], _typed(error))]
        return list(zip(batch, found, strict=True))

    def _key(self, weight: Weight) -> object:
        try:
            return batch_key(weight.shape, weight.layout, self.windows)
        except WindowError:  # raised again when this weight is fitted
            return weight.name

    def _takes_turns(self, tensor: Tensor) -> bool:
        """Return whether a batch is computed alone, as an accelerator does not compute large matrices in parallel."""
        return tensor.device.type != "cpu" and tensor.numel() > self.limits.small


def _typed(error: Exception) -> TempBalanceError:
    """Return an error, of whatever library, as the reason to skip a weight: one bad layer never ends an analysis."""
    if isinstance(error, TempBalanceError):
        return error
    _logger.debug("a weight cannot be analysed", exc_info=error)
    reason = str(error).strip().partition("\n")[0]
    found = UnexpectedError(f"it cannot be analysed: {type(error).__name__}: {reason}")
    found.__cause__ = error
    return found
