"""Measure the weights that are due: each process fits a part of them, and all processes get all fits."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from tempbalance.analysis.batching import UnexpectedError, cost, fit_model_weights, weights_of_rank
from tempbalance.analysis.distributed import ProcessGroup, assign_ranks, defer_interrupt
from tempbalance.balance.initial_weights import InitialWeights
from tempbalance.balance.recipe import Recipe
from tempbalance.balance.state import CachedFit
from tempbalance.balance.tracking import TrackedWeight, Tracker
from tempbalance.errors import NonFiniteError, RefreshError, TempBalanceError
from tempbalance.layers import Weight
from tempbalance.tail import find_estimator
from tempbalance.types import Status
from tempbalance.weight_fit import WeightFit

__all__ = ["Measurement", "Measurer", "PreparedMeasurement"]

_logger = logging.getLogger("tempbalance")
_Fitted: TypeAlias = tuple[str, WeightFit | TempBalanceError]


class Measurement(NamedTuple):
    """The result of a measurement; the same on all processes, except for their shards."""

    fits: dict[str, CachedFit]  # of each trained weight, by name
    due: list[TrackedWeight]  # what was measured
    non_finite: str  # message about a weight that is not finite and has no new fit; empty if all are finite


class PreparedMeasurement(NamedTuple):
    """A measurement whose weights are copied, and whose spectra are still to be computed."""

    due: list[TrackedWeight]
    copies: list[Tensor]
    finish: Callable[[], Measurement]  # uses the copies only: training may continue


class Measurer:
    """Measures the weights that are due."""

    def __init__(
        self, recipe: Recipe, tracker: Tracker, initial: InitialWeights, ranks: ProcessGroup, dtype: torch.dtype | None
    ) -> None:
        self._recipe = recipe
        self._dtype = dtype
        self._estimator = find_estimator(recipe.estimator)
        self._tracker = tracker
        self._initial = initial
        self._ranks = ranks
        self._logged: set[str] = set()

    def measure(self, fits: Mapping[str, CachedFit], what: str) -> Measurement:
        """Return all fits after measuring the weights that are due; a collective, which fails on all processes or none.

        ``what`` is the operation in error messages.

        Raises:
            RefreshError: It failed on one of several processes, or they train different weights; the same message on
                all. (A single process raises the original error.)
        """
        if not self._recipe.assignment.uses_alpha:
            return Measurement({}, [], "")
        gathers = self._tracker.sharded and self._ranks.size > 1
        with _full_precision(), defer_interrupt() if gathers else contextlib.nullcontext():
            names, due = self._tracker.find_due(fits, what)
            parts = self._ranks.run_on_all_ranks(
                lambda: self._measure([self._weight(each) for each in due]), what, RefreshError
            )
        found = _merged(fits, names, due, parts)
        if not found.non_finite:
            self._tracker.keep(due)
        return found

    def prepare(self, fits: Mapping[str, CachedFit], what: str) -> PreparedMeasurement:
        """Copy the weights that are due, to be measured later; for a single process."""
        with _full_precision():
            names, due = self._tracker.find_due(fits, what)
            weights = [self._weight(each) for each in due]
            copies = [weight.load().detach().clone() for weight in weights]
        self._tracker.keep(due)
        copied = [_loaded(weight, copy) for weight, copy in zip(weights, copies, strict=True)]
        return PreparedMeasurement(due, copies, lambda: _merged(fits, names, due, [self._measure(copied)]))

    def _weight(self, tracked: TrackedWeight) -> Weight:
        if self._recipe.spectrum_of == "weights":
            return tracked.weight
        return self._initial.update_of(tracked.weight, tracked.parameters)

    def _measure(self, weights: Sequence[Weight]) -> tuple[dict[str, CachedFit], str]:
        """Return the fits of this process's part of the weights, and a message about one that is not finite."""
        if self._tracker.sharded:
            found = self._fit_sharded(weights)
        else:
            found = self._fit(weights_of_rank(weights, self._ranks.rank, self._ranks.size))
        fits, non_finite = {}, ""
        for name, fit in found:
            if isinstance(fit, NonFiniteError):
                non_finite = non_finite or f"{name}: {fit}"
            else:
                fits[name] = self._cached(name, fit)
        return fits, non_finite

    def _fit(self, weights: Sequence[Weight]) -> list[_Fitted]:
        batches = fit_model_weights(weights, estimator=self._estimator, windows=self._recipe.windows, dtype=self._dtype)
        found = [(weight.name, fit) for batch in batches for weight, fit in batch]
        for _, fit in found:  # training must not continue with multipliers of half of the weights
            if isinstance(fit, UnexpectedError) and fit.__cause__ is not None:
                raise fit.__cause__
        return found

    def _fit_sharded(self, weights: Sequence[Weight]) -> list[_Fitted]:
        """Gather one parameter per process; each process then fits its own; repeat for the next ones."""
        # So a process has at most two full parameters in memory, its own and the one that is gathered.
        parameters: dict[str, list[Weight]] = {}
        for weight in weights:
            parameters.setdefault(weight.parameter, []).append(weight)
        costs = {name: sum(map(cost, parts)) for name, parts in parameters.items()}
        owners = dict(zip(costs, assign_ranks(list(costs.values()), self._ranks.size), strict=True))
        costly_first = sorted(costs, key=lambda name: -costs[name])
        queues = [[name for name in costly_first if owners[name] == rank] for rank in range(self._ranks.size)]
        found: list[_Fitted] = []
        failure: BaseException | None = None
        for names in itertools.zip_longest(*queues, fillvalue=""):
            mine = []
            for rank, name in enumerate(names):
                for weight in parameters.get(name, ()):
                    tensor = weight.load()  # a collective: in this order on every process, even after a failure
                    if rank == self._ranks.rank:
                        mine.append(_loaded(weight, tensor))
                    del tensor
            try:
                found += self._fit(mine)
            except BaseException as error:
                failure = failure or error
        if failure is not None:
            raise failure
        return found

    def _cached(self, name: str, fit: WeightFit | TempBalanceError) -> CachedFit:
        if isinstance(fit, TempBalanceError):
            self._log(name, str(fit))
            return CachedFit(radius=0.0, error=str(fit))
        if fit.fit.status is not Status.OK:
            self._log(name, fit.fit.status.message)
            too_few = len(fit.spectrum.eigenvalues) < self._estimator.min_eigenvalues  # and always will have
            return CachedFit(radius=math.inf if too_few else 0.0, status=fit.fit.status)
        tolerance = self._recipe.tolerance
        radius = self._estimator.radius(fit.spectrum, tolerance) if tolerance else 0.0
        radius /= math.sqrt(fit.num_windows)  # windows may overlap: each moves by as much
        return CachedFit(fit.fit.alpha, fit.fit.stderr, radius, fit.status)

    def _log(self, name: str, reason: str) -> None:
        if name not in self._logged:
            self._logged.add(name)
            _logger.info("%s has no alpha: %s", name, reason)


def _merged(
    fits: Mapping[str, CachedFit],
    names: Sequence[str],
    due: list[TrackedWeight],
    parts: Sequence[tuple[dict[str, CachedFit], str]],
) -> Measurement:
    """Merge the last fits and those of each process, for the weights that are still trained."""
    now = {**fits, **{name: fit for found, _ in parts for name, fit in found.items()}}
    non_finite = next((message for _, message in parts if message), "")
    return Measurement({name: now[name] for name in names if name in now}, due, non_finite)


def _loaded(weight: Weight, tensor: Tensor) -> Weight:
    """Return a weight that reads a tensor in memory."""
    return replace(weight, cut=lambda _: tensor)


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """Turn autocast off: spectra must be computed in full precision."""
    with contextlib.ExitStack() as stack:
        for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
            stack.enter_context(torch.autocast(device, enabled=False))
        yield
