"""Gradual unfreezing: train more and more parts of a model."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tempbalance.errors import BalanceError, BalanceWarning
from tempbalance.layers import is_sharded, refresh_fsdp

__all__ = ["Unfreezing", "check_unfreezing"]


class Unfreezing:
    """Unfreezes one part of a model after another. The parameters of an unfrozen part are not changed again.

    A frozen parameter has ``requires_grad=False`` and no gradient, so the optimizer skips it, including weight decay
    and momentum. Nothing is frozen before the first forward pass, because torch.distributed.checkpoint only loads the
    state of parameters that require a gradient.

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

    def __init__(self, model: nn.Module, parts: Sequence[Sequence[Tensor]], interval: Callable[[], int] | int) -> None:
        """Register hooks for the first forward pass. A function is asked for the interval then."""
        self._model = model
        self._parts = [part for part in parts if part]
        self._given = interval
        self._num_unfrozen = len(self._parts)
        self._step = 0
        waiting = model.modules() if self._parts else ()  # one of them is called first: in Lightning not the root
        hook = _FirstForward(torch.compiler.disable(self._start))  # type: ignore[no-untyped-call]
        self._waiting = [module.register_forward_pre_hook(hook, prepend=True) for module in waiting]

    @functools.cached_property
    def _interval(self) -> int:
        return self._given if isinstance(self._given, int) else self._given()

    def _start(self) -> None:
        self._stop_waiting()
        self.at(self._step)

    def _stop_waiting(self) -> None:
        for handle in self._waiting:
            handle.remove()
        self._waiting.clear()

    def at(self, step: int) -> None:
        """Freeze and unfreeze parts for a step, at the first forward pass or later."""
        self._step = step
        if self._waiting or not self._parts:
            return
        unfrozen = min(len(self._parts), 1 + step // self._interval)
        for part in self._parts[unfrozen : self._num_unfrozen]:
            for parameter in part:
                parameter.requires_grad_(False)
                parameter.grad = None
        for part in self._parts[self._num_unfrozen : unfrozen]:
            for parameter in part:
                parameter.requires_grad_(True)
        if unfrozen > self._num_unfrozen:
            refresh_fsdp(self._model)
        self._num_unfrozen = unfrozen

    def end(self) -> None:
        """Unfreeze all parts."""
        started = not self._waiting
        self._stop_waiting()
        if started and self._parts:
            self.at(self._interval * len(self._parts))


class _FirstForward:
    """The hook that starts the freezing; in a copy of the model it does nothing."""

    def __init__(self, start: Callable[[], None] | None = None) -> None:
        self._start = start

    def __call__(self, _module: nn.Module, _args: Any) -> None:
        if self._start is not None:
            self._start()

    def __reduce__(self) -> tuple[type, tuple[()]]:
        if self._start is not None:
            text = "the copy of a model that is unfrozen gradually is not: build a tempbalance.Balancer for the copy"
            warnings.warn(text, BalanceWarning, stacklevel=2)
        return (_FirstForward, ())


def check_unfreezing(model: nn.Module, processes: int) -> None:
    """Check that all processes will get the gradients of parameters that are unfrozen later."""
    if processes == 1 or any(is_sharded(parameter) for parameter in model.parameters()):
        return
    ddp: Any = model
    if not any(cls.__name__ == "DistributedDataParallel" for cls in type(model).__mro__):
        raise BalanceError(
            "gradual unfreezing: wrap the model in DDP or FSDP2 before the balancer is built; DDP never averages the "
            "gradients of parameters that are frozen when it wraps a model. The Trainer of Transformers and Lightning "
            "wrap it later: there train in one process, or with FSDP2"
        )
    if not ddp.find_unused_parameters or ddp.static_graph:
        raise BalanceError(
            "gradual unfreezing: DDP would wait for the gradients of frozen parameters; build it with "
            "find_unused_parameters=True and without static_graph"
        )
