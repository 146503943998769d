"""Gradual unfreezing: until the turn of a part of the model has come, no gradient is computed for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tempbalance.errors import BalanceError
from tempbalance.layers import is_sharded, refresh_fsdp

__all__ = ["Unfreezing", "check_unfreezing"]


class Unfreezing:
    """Frees one part of a model after the other; what is free already is left as it is.

    A frozen parameter has ``requires_grad`` False and no gradient, so the optimizer skips it: weight decay and momentum
    leave it alone, too. Nothing is frozen before the first forward pass, because torch.distributed.checkpoint loads the
    state of what requires a gradient, and of nothing else.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> unfreezing = Unfreezing(model, [list(model[1].parameters()), list(model[0].parameters())], interval=100)
        >>> _ = model(torch.ones(1, 2))
        >>> model[1].weight.requires_grad, model[0].weight.requires_grad
        (True, False)
        >>> unfreezing.at(step=100)
        >>> model[0].weight.requires_grad
        True
    """

    def __init__(self, model: nn.Module, parts: Sequence[Sequence[Tensor]], interval: int) -> None:
        """Wait for the first forward pass of a model.

        Args:
            model: The model.
            parts: Its parameters in the order in which they are freed; the first part always is. Empty ones do not
                count.
            interval: Optimizer steps from one part to the next.
        """
        self._model = model
        self._parts = [part for part in parts if part]
        self._interval = interval
        self._free = len(self._parts)
        self._step = 0
        waiting = model.modules() if self._parts else ()  # whichever of them is called first (Lightning: not the root)
        begin = torch.compiler.disable(self._begin)  # type: ignore[no-untyped-call]
        self._waiting = [module.register_forward_pre_hook(begin, prepend=True) for module in waiting]

    def _begin(self, _module: nn.Module, _args: Any) -> None:
        self._stop_waiting()
        self.at(self._step)

    def _stop_waiting(self) -> None:
        for handle in self._waiting:
            handle.remove()
        self._waiting.clear()

    def at(self, step: int) -> None:
        """Freeze and free what a step needs; before the first forward pass, when that comes.

        Args:
            step: Optimizer steps that were taken before it.
        """
        self._step = step
        if self._waiting:
            return
        free = min(len(self._parts), 1 + step // self._interval)
        for part in self._parts[free : self._free]:
            for parameter in part:
                parameter.requires_grad_(False)
                parameter.grad = None
        for part in self._parts[self._free : free]:
            for parameter in part:
                parameter.requires_grad_(True)
        if free > self._free:
            refresh_fsdp(self._model)
        self._free = free

    def end(self) -> None:
        """Free everything."""
        self._stop_waiting()
        self.at(self._interval * len(self._parts))


def check_unfreezing(model: nn.Module, processes: int) -> None:
    """Make sure that the gradients of what is freed later will reach all processes.

    Args:
        model: The model.
        processes: How many train it together.

    Raises:
        BalanceError: It is in no DDP or FSDP2 yet, or in a DDP that waits for the gradients of what is frozen.
    """
    if processes == 1 or any(is_sharded(parameter) for parameter in model.parameters()):
        return
    ddp: Any = model
    if not any(cls.__name__ == "DistributedDataParallel" for cls in type(model).__mro__):
        raise BalanceError(
            "gradual unfreezing: wrap the model in DDP or FSDP2 before the balancer is built; "
            "DDP never averages the gradients of what is frozen when it wraps a model"
        )
    if not ddp.find_unused_parameters or ddp.static_graph:
        raise BalanceError(
            "gradual unfreezing: DDP would wait for the gradients of what is frozen; build it with "
            "find_unused_parameters=True and without static_graph"
        )
