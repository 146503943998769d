"""What a balancer knows of its weights: which have moved too far since they were measured, and their alphas.

Nothing here changes a parameter, a group or the state of an optimizer; that is for the balancer.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from tempbalance.analysis.batching import cost, fit_model_weights, weights_of_rank
from tempbalance.analysis.distributed import ProcessGroup, assign_ranks
from tempbalance.balance.initial_weights import InitialWeights
from tempbalance.balance.recipe import Recipe
from tempbalance.balance.snapshot import Snapshot
from tempbalance.errors import NonFiniteError, RefreshError, TempBalanceError
from tempbalance.layers import Weight, find_weights, is_sharded, parameter_names, reshard, shards, sources_of
from tempbalance.types import Status
from tempbalance.weight_fit import WeightFit

__all__ = ["CachedFit", "Measurement", "Measurer", "PreparedMeasurement", "TrackedWeight"]

_logger = logging.getLogger("tempbalance")
_Fitted: TypeAlias = tuple[str, WeightFit | TempBalanceError]


class CachedFit(NamedTuple):
    """What is known of one weight.

    Attributes:
        alpha: Its exponent; None where there is no fit.
        stderr: Standard error of alpha; None likewise.
        radius: How far it may move, in the Frobenius norm, before that changes by more than the tolerance.
    """

    alpha: float | None
    stderr: float | None
    radius: float


class TrackedWeight(NamedTuple):
    """A weight that is to be measured.

    Attributes:
        weight: The weight.
        sources: The parameters that it is made of, by name, as far as they are trained.
    """

    weight: Weight
    sources: dict[str, Tensor]


class Measurement(NamedTuple):
    """What is known after a measurement; the same on all processes, but for their shards.

    Attributes:
        known: What is known now of each weight that is trained, by name.
        due: The weights that were measured anew.
        non_finite: What is said of a weight that is not finite, of which nothing new is known; empty without one.
    """

    known: dict[str, CachedFit]
    due: list[TrackedWeight]
    non_finite: str


class PreparedMeasurement(NamedTuple):
    """A measurement for which everything has been read and copied, and nothing computed.

    Attributes:
        due: The weights that are to be measured anew.
        copies: What is measured of each, as it was.
        finish: Computes the rest; it reads the copies and nothing else, so training may go on.
    """

    due: list[TrackedWeight]
    copies: list[Tensor]
    finish: Callable[[], Measurement]


class Measurer:
    """Measures the weights of a model as a recipe wants it, those alone whose alpha can have changed."""

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        wanted: Collection[str],
        *,
        references: Snapshot,
        start: InitialWeights,
        ranks: ProcessGroup,
    ) -> None:
        """Look at a model; nothing is measured yet.

        Args:
            model: A live model.
            recipe: Which estimator, which windows, and which tolerance; with 0 every weight is measured each time.
            wanted: Names of the weights that are measured.
            references: The parameters as they were when their weights were measured.
            start: The parameters as they were before the first step, for recipes that measure updates.
            ranks: The processes that share the work.
        """
        self._model = model
        self._recipe = recipe
        self._wanted = wanted
        self._tolerance = recipe.tolerance
        self._references = references
        self._start = start
        self._ranks = ranks
        self._found: tuple[list[tuple[str, int, bool]], dict[str, TrackedWeight]] | None = None
        self._told: set[str] = set()

    @property
    def sharded(self) -> bool:
        """Whether parameters of the model lie in shards over several processes."""
        return any(is_sharded(parameter) for parameter in self._model.parameters())

    def weights(self) -> dict[str, TrackedWeight]:
        """The weights that are measured, by name: found anew where parameters were replaced, frozen or freed."""
        parameters = parameter_names(self._model)
        key = [(name, id(parameter), parameter.requires_grad) for name, parameter in parameters.items()]
        if self._found is not None and self._found[0] == key:
            return self._found[1]
        found, _ = find_weights(self._model, replace(self._recipe.select, embeddings=True), sharded=True)
        judged = {}
        for weight in found:
            if weight.name in self._wanted:
                sources = {name: parameters[name] for name in sources_of(weight, parameters)}
                judged[weight.name] = TrackedWeight(weight, {name: p for name, p in sources.items() if p.requires_grad})
        judged = {name: each for name, each in judged.items() if each.sources}
        # What is computed from several parameters, or made whole, is read in a way that may change (LoRA merged, ...).
        plain = all(each.weight.parameter in parameters for each in judged.values()) and not self.sharded
        self._found = (key, judged) if plain else None
        return judged

    def sources(self) -> list[Tensor]:
        """The parameters that the measured weights are made of, as far as they are trained."""
        return [parameter for judged in self.weights().values() for parameter in judged.sources.values()]

    def measure(self, known: Mapping[str, CachedFit], what: str) -> Measurement:
        """Measure the weights that have moved too far. In distributed training a collective.

        Args:
            known: What was known before, by the names of weights.
            what: What this is called in messages.

        Returns:
            What is known now.

        Raises:
            RefreshError: It failed on one of several processes, or they train different weights; the same message on
                all. (A process that is alone raises what went wrong.)
        """
        if not self._wanted:
            return Measurement({}, [], "")
        with _full_precision():
            names, due = self._look(known, what)
            parts = self._ranks.run_on_all_ranks(
                lambda: self._measure([self._read(each) for each in due]), what, RefreshError
            )
        return _merged(known, names, due, parts)

    def begin(self, known: Mapping[str, CachedFit], what: str) -> PreparedMeasurement:
        """Copy the weights that have moved too far, to be measured later; for a process that trains alone.

        Args:
            known: What was known before, by the names of weights.
            what: What this is called in messages.

        Returns:
            What is left to do.
        """
        with _full_precision():
            names, due = self._look(known, what)
            read = [self._read(each) for each in due]
            copies = [weight.load().detach().clone() for weight in read]
        still = [replace(weight, cut=functools.partial(_same, copy)) for weight, copy in zip(read, copies, strict=True)]
        return PreparedMeasurement(due, copies, lambda: _merged(known, names, due, [self._measure(still)]))

    # What has moved

    def _look(self, known: Mapping[str, CachedFit], what: str) -> tuple[list[str], list[TrackedWeight]]:
        """Names of the weights that are measured, and those of them whose alpha can have moved too far."""
        weights: dict[str, TrackedWeight] = {}

        def look() -> dict[str, float]:
            """How far this process sees each weight moved; the weights themselves stay here."""
            reshard(self._model)
            weights.update(self.weights())
            return self._squared_distances(weights)

        squares = self._ranks.run_on_all_ranks(look, what, RefreshError)
        if any(list(part) != list(weights) for part in squares):
            raise RefreshError(
                f"{what} failed: the processes do not train the same weights any more; freeze them on all"
            )
        return list(weights), self._due(weights, known, squares)

    def _squared_distances(self, weights: Mapping[str, TrackedWeight]) -> dict[str, float]:
        """How far weights have moved since they were measured, squared: the part that this process adds to the sum."""
        if not self._tolerance:
            return dict.fromkeys(weights, math.inf)
        shared: dict[tuple[str, ...], float] = {}  # parts of one parameter have one distance
        squares = {}
        for name, (weight, sources) in weights.items():
            key = (weight.parameter, *sources)
            if key not in shared:
                copies = self._ranks.size / max(shards(source) for source in sources.values())
                shared[key] = self._references.squared_distance(weight, sources) / copies
            squares[name] = shared[key]
        return squares

    def _due(
        self,
        weights: Mapping[str, TrackedWeight],
        known: Mapping[str, CachedFit],
        squares: Sequence[Mapping[str, float]],
    ) -> list[TrackedWeight]:
        """The weights whose alpha can have moved too far, and all that share parameters with them."""
        if not self._tolerance:
            return list(weights.values())
        moved = {name: math.sqrt(sum(part[name] for part in squares)) for name in weights}
        due = {name for name in weights if name not in known or not moved[name] <= known[name].radius}  # NaN is due
        renewed: set[str] = set()  # copies of parameters: nobody knows any more how far others made of them have moved
        while more := {source for name in due for source in weights[name].sources} - renewed:
            renewed |= more
            due |= {name for name, each in weights.items() if not renewed.isdisjoint(each.sources)}
        return [each for name, each in weights.items() if name in due]

    # What is measured

    def _read(self, judged: TrackedWeight) -> Weight:
        """What is measured of a weight: itself, or its update."""
        if self._recipe.spectrum_of == "weights":
            return judged.weight
        return self._start.update_of(judged.weight, judged.sources)

    def _measure(self, weights: Sequence[Weight]) -> tuple[dict[str, CachedFit], str]:
        """This process's share of the weights, and what is said of one that is not finite."""
        found, non_finite = {}, ""
        for name, fit in self._fit_sharded(weights) if self.sharded else self._fit_whole(weights):
            if isinstance(fit, NonFiniteError):
                non_finite = non_finite or f"{name}: {fit}"
            else:
                found[name] = self._known(name, fit)
        return found, non_finite

    def _fit(self, weights: Sequence[Weight]) -> list[_Fitted]:
        batches = fit_model_weights(weights, estimator=self._recipe.estimator, windows=self._recipe.windows)
        return [(weight.name, fit) for batch in batches for weight, fit in batch]

    def _fit_whole(self, weights: Sequence[Weight]) -> list[_Fitted]:
        return self._fit(weights_of_rank(weights, self._ranks.rank, self._ranks.size))

    def _fit_sharded(self, weights: Sequence[Weight]) -> list[_Fitted]:
        """Make sharded parameters whole, one after the other and one per process; then each fits its own; and again."""
        # So a process holds two whole parameters at most, its own and the one that passes by, and all fit at a time.
        parameters: dict[str, list[Weight]] = {}
        for weight in weights:
            parameters.setdefault(weight.parameter, []).append(weight)
        costs = {name: sum(map(cost, parts)) for name, parts in parameters.items()}
        owners = dict(zip(costs, assign_ranks(list(costs.values()), self._ranks.size), strict=True))
        costly_first = sorted(costs, key=lambda name: -costs[name])
        queues = [[name for name in costly_first if owners[name] == rank] for rank in range(self._ranks.size)]
        found: list[_Fitted] = []
        failure: Exception | None = None
        for names in itertools.zip_longest(*queues, fillvalue=""):
            mine = []
            for rank, name in enumerate(names):
                for weight in parameters.get(name, ()):
                    tensor = weight.load()  # a collective: in this order on every process, even on one that has failed
                    if rank == self._ranks.rank:
                        mine.append(replace(weight, cut=functools.partial(_same, tensor)))
                    del tensor
            try:
                found += self._fit(mine)
            except Exception as error:
                failure = failure or error
        if failure is not None:
            raise failure
        return found

    def _known(self, name: str, fit: WeightFit | TempBalanceError) -> CachedFit:
        if isinstance(fit, TempBalanceError) or fit.fit.status is not Status.OK:
            reason = fit if isinstance(fit, TempBalanceError) else fit.fit.status.message
            if name not in self._told:
                self._told.add(name)
                _logger.info("%s is not judged: %s", name, reason)
            return CachedFit(None, None, math.inf if self._is_too_small(fit) else 0.0)
        radius = self._recipe.estimator.radius(fit.spectrum, self._tolerance) if self._tolerance else 0.0
        radius /= math.sqrt(fit.num_windows)  # windows may overlap: each moves as much
        return CachedFit(fit.fit.alpha, fit.fit.stderr, radius)

    def _is_too_small(self, fit: WeightFit | TempBalanceError) -> bool:
        """Whether a weight will never have enough eigenvalues, however it moves."""
        enough = self._recipe.estimator.min_eigenvalues
        return isinstance(fit, WeightFit) and len(fit.spectrum.eigenvalues) < enough


def _merged(
    known: Mapping[str, CachedFit],
    names: Sequence[str],
    due: list[TrackedWeight],
    parts: Sequence[tuple[dict[str, CachedFit], str]],
) -> Measurement:
    """What was known and what each process has found, as far as it is of weights that are still measured."""
    now = {**known, **{name: new for found, _ in parts for name, new in found.items()}}
    non_finite = next((message for _, message in parts if message), "")
    return Measurement({name: now[name] for name in names if name in now}, due, non_finite)


def _same(tensor: Tensor, _: object) -> Tensor:
    return tensor


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """Mixed precision is for training; spectra are computed in what they need."""
    with contextlib.ExitStack() as stack:
        for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
            stack.enter_context(torch.autocast(device, enabled=False))
        yield
