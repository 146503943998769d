"""The update of a weight: the difference from its value before the first step.

Copies of the initial parameters are in the optimizer's state, like those of a ``Snapshot``: they are saved, loaded and
sharded with it.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.optim import Optimizer

from tempbalance.balance.snapshot import Copies, swapped
from tempbalance.layers import Index, Weight, full_tensor

__all__ = ["START", "InitialWeights"]

START = "tempbalance_start"


class InitialWeights(Copies):
    """The parameters that the measured weights are computed from, as they were before the first step."""

    def __init__(self, optimizer: Optimizer) -> None:
        super().__init__(optimizer, START)
        self._parameters: tuple[Tensor, ...] = ()
        self._copied = False
        self._lock = threading.Lock()

    def watch(self, parameters: Iterable[Tensor]) -> None:
        """Set the parameters to copy, before a step that moves them."""
        self._parameters = tuple(parameters)
        self._copied = False

    def copy_missing(self) -> None:
        """Copy the parameters without a copy, once before the first step and once after each load."""
        if not self._copied:
            missing = (p for p in self._parameters if p not in self._new and self._copy_of(p) is None)
            self._new.update({p: p.detach().clone() for p in missing})
            self._copied = True

    def loaded(self) -> None:
        """Drop new copies, because the loaded state of the optimizer has its own."""
        self._new.clear()
        self._copied = False

    def update_of(self, weight: Weight, parameters: Mapping[str, Tensor]) -> Weight:
        """Return a weight minus its initial value, in float32 or a wider dtype; zero if it has not moved."""
        return replace(weight, read=functools.partial(self._difference, weight, parameters))

    @torch.no_grad()
    def _difference(self, weight: Weight, parameters: Mapping[str, Tensor], index: Index) -> Tensor:
        copies = {p: copy for p in parameters.values() if (copy := self._new.get(p, self._copy_of(p))) is not None}
        if weight.parameter in parameters and copies:
            now = _precise(weight.read(index))
            then = full_tensor(copies[parameters[weight.parameter]]).to(now.device)
            return now - (then[index] if index else then)
        with self._lock:  # weights are read in several threads, and swapping changes the tensors of a computed one
            now = _precise(weight.read(index))
            with swapped(copies):
                return now - weight.read(index)


def _precise(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
