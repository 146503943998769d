"""Snapshots of parameters in the optimizer's state, and the drift: the distance of weights from their snapshot.

Copies in the optimizer's state are saved, loaded and sharded with it, so a resumed run measures the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from tempbalance.layers import Weight, is_sharded, local_tensor

__all__ = ["REFERENCE", "Copies", "Snapshot", "swapped"]

REFERENCE = "tempbalance_reference"
_CHUNK = 1 << 17


class Copies:
    """Copies of parameters in the optimizer's state."""

    def __init__(self, optimizer: Optimizer, key: str) -> None:
        self._optimizer = optimizer
        self._key = key
        self._new: dict[Tensor, Tensor] = {}

    def _copy_of(self, parameter: Tensor) -> Tensor | None:
        state: dict[str, Tensor] = self._optimizer.state.get(parameter, {})
        return state.get(self._key)

    def store(self) -> None:
        """Move new copies into the optimizer's state, after the optimizer has initialised that state.

        Many optimizers initialise a state only if it is empty, so nothing may be put there before. A parameter without
        a gradient did not move; its copy is stored later. ZeroRedundancyOptimizer steps only some of the parameters.
        """
        if not self._new:
            return
        states = self._optimizer.state
        own = {parameter for group in self._optimizer.param_groups for parameter in group["params"]}
        for parameter in list(self._new):
            if parameter in own and (parameter.grad is not None or states.get(parameter)):
                states[parameter][self._key] = self._new.pop(parameter)

    def remove(self) -> None:
        """Remove all copies from the optimizer's state."""
        self._new.clear()
        for state in self._optimizer.state.values():
            state.pop(self._key, None)


class Snapshot(Copies):
    """The parameters as they were when the weights computed from them were last measured."""

    def __init__(self, optimizer: Optimizer) -> None:
        super().__init__(optimizer, REFERENCE)

    def squared_drift(self, weight: Weight, parameters: Mapping[str, Tensor]) -> float:
        """Return (a bound of) the squared drift of a weight on this rank; infinite without a snapshot."""
        copies = [self._copy_of(parameter) for parameter in parameters.values()]
        known = {p: c for p, c in zip(parameters.values(), copies, strict=True) if c is not None and _same_layout(c, p)}
        if not parameters or len(known) < len(parameters):
            return math.inf
        if len(parameters) == 1 and weight.parameter in parameters:
            (parameter,) = parameters.values()
            return _squared_norm(local_tensor(parameter.detach()), local_tensor(known[parameter]))
        if any(is_sharded(parameter) for parameter in parameters.values()):
            return math.inf  # computed from shards: always measured again
        now = weight.load().clone()
        with swapped(known):
            return _squared_norm(now, weight.load())

    def keep(self, parameters: Iterable[Tensor]) -> None:
        """Copy parameters; existing copies are overwritten."""
        for parameter in parameters:
            copy = self._copy_of(parameter)
            if copy is not None and _same_layout(copy, parameter):
                copy.copy_(parameter.detach())
            else:
                self._new[parameter] = parameter.detach().clone()

    def store(self) -> None:
        """See the base class; copies that cannot be stored yet are dropped, and their weights measured again."""
        super().store()
        self._new.clear()


class swapped:
    """Context manager that replaces the values of parameters."""

    def __init__(self, values: Mapping[Tensor, Tensor]) -> None:
        self._values = values

    @torch.no_grad()
    def __enter__(self) -> None:
        self._own: dict[Tensor, Tensor] = {}
        for parameter, value in self._values.items():
            if is_sharded(parameter):  # FSDP2 gathers the memory of the shard
                self._own[parameter] = local_tensor(parameter).clone()
                local_tensor(parameter).copy_(local_tensor(value))
            else:
                self._own[parameter] = parameter.data
                parameter.data = value.to(device=parameter.device, dtype=parameter.dtype)

    @torch.no_grad()
    def __exit__(self, *_: Any) -> None:
        for parameter, data in self._own.items():
            if is_sharded(parameter):
                local_tensor(parameter).copy_(data)
            else:
                parameter.data = data


def _same_layout(copy: Tensor, parameter: Tensor) -> bool:
    return (
        is_sharded(copy) == is_sharded(parameter)
        and (copy.dtype, copy.device) == (parameter.dtype, parameter.device)
        and copy.shape == parameter.shape
        and local_tensor(copy).shape == local_tensor(parameter).shape
    )


def _squared_norm(a: Tensor, b: Tensor) -> float:
    """Return the squared norm of ``a - b``; on a CPU in chunks, so that the difference stays in the cache."""
    size = _CHUNK if a.device.type == "cpu" else max(1, a.numel())
    total = 0.0
    chunks = (torch.split(t.reshape(-1), size) for t in (a, b))
    for one, other in zip(*chunks, strict=True):
        difference = one - other
        dtype = None if difference.is_complex() else torch.promote_types(difference.dtype, torch.float32)
        norm = float(torch.linalg.vector_norm(difference, dtype=dtype))
        total += norm * norm  # not norm**2, which raises if it overflows
    return math.inf if math.isnan(total) else total
