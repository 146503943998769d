"""The update of a weight: what training has added to it since the first step.

Copies of the parameters as they were then lie in the optimizer's state, as those of ``motion`` do: they are saved,
loaded and sharded with it.
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
from tempbalance.layers import Index, Weight
from tempbalance.layers.sharded import whole

__all__ = ["START", "InitialWeights"]

START = "tempbalance_start"


class InitialWeights(Copies):
    """The parameters that judged weights are made of, as they were before the first step."""

    def __init__(self, optimizer: Optimizer) -> None:
        super().__init__(optimizer, START)
        self._sources: tuple[Tensor, ...] = ()
        self._begun = False
        self._lock = threading.Lock()

    def watch(self, sources: Iterable[Tensor]) -> None:
        """Say which parameters are to be copied."""
        self._sources = tuple(sources)

    def begin(self) -> None:
        """Before a step: copy what has no copy yet. After a load, that is what had not moved before it was saved."""
        if not self._begun:
            self._new = {p: p.detach().clone() for p in self._sources if self._copy_of(p) is None}
            self._begun = True

    def loaded(self) -> None:
        """After the optimizer has loaded a state: its copies count, and no others."""
        self._new.clear()
        self._begun = False

    def update_of(self, weight: Weight, sources: Mapping[str, Tensor]) -> Weight:
        """The update in the place of a weight.

        Args:
            weight: The weight.
            sources: The parameters that it is made of, by name, as far as they are trained.

        Returns:
            The weight less what it was at the start, in float32 at least; zero where it has not moved.
        """
        return replace(weight, read=functools.partial(self._difference, weight, sources))

    @torch.no_grad()
    def _difference(self, weight: Weight, sources: Mapping[str, Tensor], index: Index) -> Tensor:
        copies = {p: copy for p in sources.values() if (copy := self._new.get(p, self._copy_of(p))) is not None}
        if weight.parameter in sources and copies:
            now = _precise(weight.read(index))
            then = whole(copies[sources[weight.parameter]])
            return now - (then[index] if index else then)
        with self._lock:  # weights are read in threads, and one that is computed sees its parameters swapped
            now = _precise(weight.read(index))
            with swapped(copies):
                return now - weight.read(index)


def _precise(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
