"""How far a weight has moved since it was last measured.

Copies of the parameters as they were then lie in the optimizer's state, beside its momenta: so they are saved, loaded
and sharded with them, and a resumed run takes the same decisions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from tempbalance.layers import Weight, is_sharded, local

__all__ = ["REFERENCE", "Copies", "Snapshot", "swapped"]

REFERENCE = "tempbalance_reference"
_PIECE = 1 << 17


class Copies:
    """Copies of parameters in the optimizer's state, under a key of their own."""

    def __init__(self, optimizer: Optimizer, key: str) -> None:
        self._optimizer = optimizer
        self._key = key
        self._new: dict[Tensor, Tensor] = {}

    def _copy_of(self, source: Tensor) -> Tensor | None:
        state = self._optimizer.state.get(source) or {}  # ZeroRedundancyOptimizer: None where another process has it
        return state.get(self._key)

    def store(self) -> None:
        """Move new copies into the optimizer's state, once it has made that state itself.

        Many optimizers take an empty state for a sign to set it up, so nothing may be put there before. A parameter
        without a gradient did not move; its copy waits.
        """
        states = self._optimizer.state
        for source in list(self._new):
            elsewhere = source in states and states[source] is None
            if not elsewhere and (source.grad is not None or states.get(source)):
                states[source][self._key] = self._new.pop(source)

    def remove(self) -> None:
        """Take all copies out of the optimizer's state."""
        self._new.clear()
        for state in self._optimizer.state.values():
            (state or {}).pop(self._key, None)


class Snapshot(Copies):
    """The parameters that measured weights are made of, as they were when they were measured."""

    def __init__(self, optimizer: Optimizer) -> None:
        super().__init__(optimizer, REFERENCE)

    def squared_distance(self, weight: Weight, sources: Mapping[str, Tensor]) -> float:
        """Squared Frobenius distance of a weight from where it was measured; of a sharded one, this rank's part.

        Args:
            weight: The weight; of a part of a parameter, the distance of all of it is taken.
            sources: The parameters that it is made of, by name.

        Returns:
            The square, or a little more; infinite where there is no copy to compare with.
        """
        copies = [self._copy_of(source) for source in sources.values()]
        known = {p: c for p, c in zip(sources.values(), copies, strict=True) if c is not None and _alike(c, p)}
        if not sources or len(known) < len(sources):
            return math.inf
        if len(sources) == 1 and weight.parameter in sources:
            (source,) = sources.values()
            return _squared_norm(local(source.detach()), local(known[source]))
        if any(is_sharded(source) for source in sources.values()):
            return math.inf  # a product of shards: simply measured again
        now = weight.load().clone()
        with swapped(known):
            return _squared_norm(now, weight.load())

    def keep(self, sources: Iterable[Tensor]) -> None:
        """Remember parameters as they are now.

        Args:
            sources: The parameters; copies that exist already are overwritten.
        """
        for source in sources:
            copy = self._copy_of(source)
            if copy is not None and _alike(copy, source):
                copy.copy_(source.detach())
            else:
                self._new[source] = source.detach().clone()

    def store(self) -> None:
        """As above; but what did not move is measured again next time."""
        super().store()
        self._new.clear()


class swapped:
    """Lets parameters hold other numbers for a moment."""

    def __init__(self, values: Mapping[Tensor, Tensor]) -> None:
        self._values = values

    @torch.no_grad()
    def __enter__(self) -> None:
        self._own: dict[Tensor, Tensor] = {}
        for parameter, value in self._values.items():
            if is_sharded(parameter):  # what FSDP2 gathers is the memory of the shard
                self._own[parameter] = local(parameter).clone()
                local(parameter).copy_(local(value))
            else:
                self._own[parameter] = parameter.data
                parameter.data = value

    @torch.no_grad()
    def __exit__(self, *_: Any) -> None:
        for parameter, data in self._own.items():
            if is_sharded(parameter):
                local(parameter).copy_(data)
            else:
                parameter.data = data


def _alike(copy: Tensor, source: Tensor) -> bool:
    """Whether a copy is sharded as its parameter is."""
    return (
        is_sharded(copy) == is_sharded(source)
        and copy.shape == source.shape
        and local(copy).shape == local(source).shape
    )


def _squared_norm(a: Tensor, b: Tensor) -> float:
    """Squared norm of a difference, on a CPU piece by piece, so that the difference stays in the cache."""
    size = _PIECE if a.device.type == "cpu" else max(1, a.numel())
    total = 0.0
    pieces = (torch.split(t.reshape(-1), size) for t in (a, b))
    for one, other in zip(*pieces, strict=True):
        difference = one - other
        norm = float(torch.linalg.vector_norm(difference, dtype=None if difference.is_complex() else torch.float32))
        total += norm * norm  # not norm**2, which raises where this is infinite
    return math.inf if math.isnan(total) else total
