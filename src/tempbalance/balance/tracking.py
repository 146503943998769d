"""The weights that a recipe measures, and which of them have moved too far since they were last measured."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor, nn

from tempbalance.analysis.distributed import ProcessGroup
from tempbalance.balance.recipe import Recipe
from tempbalance.balance.snapshot import Snapshot
from tempbalance.balance.state import CachedFit
from tempbalance.errors import RefreshError
from tempbalance.layers import (
    Weight,
    find_weights,
    is_sharded,
    num_shards,
    parameter_names,
    plain_modules,
    reshard,
    source_parameters,
)

__all__ = ["TrackedWeight", "Tracker"]


class TrackedWeight(NamedTuple):
    """A weight to measure."""

    weight: Weight
    parameters: dict[str, Tensor]  # the trained ones that it is computed from, by name
    uses_buffers: bool  # such as the mask of a pruned layer, which changes without a step of the optimizer


class Tracker:
    """Finds the weights to measure, and measures their drift: the distance from a snapshot.

    Attributes:
        names: Names of the weights that the plan measures.
    """

    def __init__(
        self, model: nn.Module, recipe: Recipe, names: Collection[str], *, snapshot: Snapshot, ranks: ProcessGroup
    ) -> None:
        self._model = model
        self._recipe = recipe
        self.names = names
        self._snapshot = snapshot
        self._ranks = ranks
        self._cache: tuple[Any, dict[str, TrackedWeight]] | None = None

    @property
    def sharded(self) -> bool:
        """Whether the model has sharded parameters."""
        return any(is_sharded(parameter) for parameter in self._model.parameters())

    def weights(self) -> dict[str, TrackedWeight]:
        """Return the weights to measure, by name; searched again if a parameter has changed, or is trained now."""
        parameters = parameter_names(self._model)
        key = (self.names, [(name, id(p), p.requires_grad, p.dtype, p.device) for name, p in parameters.items()])
        if self._cache is not None and self._cache[0] == key:
            return self._cache[1]
        tracked, modules = {}, plain_modules(self._model)
        for weight in find_weights(self._model, replace(self._recipe.select, embeddings=True), sharded=True)[0]:
            if weight.name in self.names:
                sources = {name: parameters[name] for name in source_parameters(weight, parameters)}
                trained = {name: p for name, p in sources.items() if p.requires_grad}
                layer = modules.get(weight.parameter.rpartition(".")[0], nn.Identity())
                uses_buffers = weight.parameter not in parameters and any(True for _ in layer.buffers())
                if trained:
                    tracked[weight.name] = TrackedWeight(weight, trained, uses_buffers)
        # Only plain weights are cached: a computed or sharded one may be read differently later (LoRA is merged, ...).
        plain = all(each.weight.parameter in parameters for each in tracked.values()) and not self.sharded
        self._cache = (key, tracked) if plain else None
        return tracked

    def parameters(self) -> list[Tensor]:
        """Return the trained parameters that the weights are computed from."""
        return [parameter for tracked in self.weights().values() for parameter in tracked.parameters.values()]

    def find_due(self, fits: Mapping[str, CachedFit], what: str) -> tuple[list[str], list[TrackedWeight]]:
        """Find the weights whose alpha can have changed by more than the tolerance; a collective."""
        weights: dict[str, TrackedWeight] = {}

        def local_drift() -> dict[str, float]:
            """Return the squared drift on this process; the weights are not sent."""
            reshard(self._model)
            weights.update(self.weights())
            return self._squared_drift(weights)

        squares = self._ranks.run_on_all_ranks(local_drift, what, RefreshError)
        if any(list(part) != list(weights) for part in squares):
            raise RefreshError(
                f"{what} failed: the processes do not train the same weights any more; freeze them on all"
            )
        return list(weights), self._due(weights, fits, squares)

    def keep(self, tracked: Iterable[TrackedWeight] | None = None) -> None:
        """Take a snapshot of the parameters of some weights, or of all; without a tolerance none is needed."""
        if self._recipe.tolerance:
            tracked = self.weights().values() if tracked is None else tracked
            self._snapshot.keep(parameter for each in tracked for parameter in each.parameters.values())

    def _squared_drift(self, weights: Mapping[str, TrackedWeight]) -> dict[str, float]:
        """Return the part of each squared drift that this process adds to the sum over all processes."""
        if not self._recipe.tolerance:
            return dict.fromkeys(weights, math.inf)
        of_parameter: dict[tuple[str, ...], float] = {}  # parts of one parameter have one drift
        squares = {}
        for name, (weight, parameters, uses_buffers) in weights.items():
            key = (weight.parameter, *parameters)
            if uses_buffers:
                of_parameter[key] = math.inf
            if key not in of_parameter:
                copies = self._ranks.size / max(num_shards(parameter) for parameter in parameters.values())
                of_parameter[key] = self._snapshot.squared_drift(weight, parameters) / copies
            squares[name] = of_parameter[key]
        return squares

    def _due(
        self,
        weights: Mapping[str, TrackedWeight],
        fits: Mapping[str, CachedFit],
        squares: Sequence[Mapping[str, float]],
    ) -> list[TrackedWeight]:
        if not self._recipe.tolerance:
            return list(weights.values())
        drift = {name: math.sqrt(sum(part[name] for part in squares)) for name in weights}
        due = {name for name in weights if name not in fits or not drift[name] <= fits[name].radius}  # NaN is due
        # A new snapshot of a parameter resets the drift of all weights computed from it, so all of them are due.
        replaced: set[str] = set()
        while more := {parameter for name in due for parameter in weights[name].parameters} - replaced:
            replaced |= more
            due |= {name for name, each in weights.items() if not replaced.isdisjoint(each.parameters)}
        return [each for name, each in weights.items() if name in due]
