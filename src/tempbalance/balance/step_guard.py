"""Call a function after every ``optimizer.step()``, also after one that raises: hooks are not called then."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

__all__ = ["StepGuard"]


class StepGuard:
    """Wraps the ``step`` of one optimizer, as the schedulers of torch do.

    Attributes:
        active: Whether a step is running.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1)
        >>> guard = StepGuard(optimizer, lambda: print("done"))
        >>> optimizer.step()
        done
    """

    def __init__(self, optimizer: Optimizer, at_end: Callable[[], object]) -> None:
        self.active = False
        self._optimizer = optimizer
        own = vars(optimizer).get("step")  # the step that a scheduler has wrapped
        self._own = own
        step: Callable[..., Any] = type(optimizer).step if own is None else own

        @functools.wraps(step)
        def guarded(optimizer: Optimizer, /, *args: Any, **kwargs: Any) -> Any:
            try:
                self.active = True
                try:
                    return step(optimizer, *args, **kwargs) if own is None else step(*args, **kwargs)
                finally:
                    self.active = False
                    at_end()
            except BaseException:  # perhaps an interrupt in the lines above
                self.active = False
                at_end()
                raise

        self._guarded = types.MethodType(guarded, optimizer)  # schedulers need a method
        vars(optimizer)["step"] = self._guarded

    def remove(self) -> None:
        """Put the step back, unless other code has wrapped it again."""
        if vars(self._optimizer).get("step") is not self._guarded:
            return
        if self._own is None:
            del vars(self._optimizer)["step"]
        else:
            vars(self._optimizer)["step"] = self._own
