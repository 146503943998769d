"""At which optimizer steps a recipe measures and unfreezes; the length of an epoch may be asked for later."""

from __future__ import annotations

import numbers
import sys
from collections.abc import Callable
from typing import Any

from tempbalance.balance.recipe import Every, Recipe
from tempbalance.balance.validation import check_delay
from tempbalance.errors import BalanceError, check_integer

__all__ = ["Schedule"]


class Schedule:
    """The intervals of a recipe in optimizer steps.

    A loader or a function is asked for the length of an epoch when an interval is first needed, because a loader is
    often built after the optimizer.
    """

    def __init__(self, recipe: Recipe, steps_per_epoch: Any, *, delay: int, processes: int) -> None:
        """Check what can be checked now.

        Raises:
            BalanceError: The recipe counts in epochs, and their length is missing or not a positive integer; or the
                delay is too long.
        """
        check_integer("delay", delay)
        self._recipe = recipe
        self._given = steps_per_epoch
        self._delay = delay
        self._processes = processes
        self._steps_per_epoch: int | None = None
        self._in_epochs = any(each is not None and each.epochs is not None for each in (recipe.every, recipe.unfreeze))
        self.known = False
        if not self._in_epochs or steps_per_epoch is None or isinstance(steps_per_epoch, numbers.Number):
            self.resolve()
        else:
            check_delay(delay, sys.maxsize, processes)

    def resolve(self) -> None:
        """Find the length of an epoch if it is needed and not known yet."""
        if self.known:
            return
        if self._in_epochs:
            self._steps_per_epoch = _length(self._given)
        interval = self.interval = self._steps(self._recipe.every)
        self.unfreeze_interval = 1 if self._recipe.unfreeze is None else self._steps(self._recipe.unfreeze)
        every = self._recipe.every
        between = range(1, interval if type(every).is_due is not Every.is_due else 1)  # an interval may be very long
        shortest = next((n for n in between if every.is_due(n, interval)), interval)
        check_delay(self._delay, shortest, self._processes)
        self.known = True

    def is_due(self, steps: int) -> bool:
        """Return whether to measure after ``steps`` optimizer steps."""
        since = steps - self._recipe.start
        if since < 0:
            return False
        self.resolve()
        return self._recipe.every.is_due(since, self.interval)

    def unfreezing(self) -> int:
        """Return the steps between unfreezing two blocks."""
        self.resolve()
        return self.unfreeze_interval

    def __str__(self) -> str:
        every = self._recipe.every
        if not self.known and every.epochs is not None:
            return f"every {every.epochs:g} epochs"
        return f"every {self.interval if self.known else every.steps} steps"

    @property
    def settings(self) -> str:
        """Everything that must be equal on all processes."""
        return f"{self} from step {self._recipe.start} on, tolerance {self._recipe.tolerance}"

    def _steps(self, every: Every) -> int:
        interval = every.interval(self._steps_per_epoch)
        if interval is None:
            raise BalanceError(
                f"{self._recipe.name} counts in epochs: pass steps_per_epoch, the number of optimizer steps in an "
                "epoch (len(loader) // gradient accumulation), the loader, or a function that returns it"
            )
        return interval


def _length(given: Any) -> int | None:
    """Return the optimizer steps per epoch that were given; None if none were."""
    value = given() if isinstance(given, Callable) and not hasattr(given, "__len__") else given  # type: ignore[arg-type]
    if value is None:
        return None
    if not isinstance(value, numbers.Integral):
        try:
            value = len(value)
        except (TypeError, NotImplementedError):
            raise BalanceError(
                f"steps_per_epoch is {value!r}, which has no length: pass the number of optimizer steps in an epoch"
            ) from None
    if isinstance(value, bool) or int(value) < 1:
        raise BalanceError(f"steps_per_epoch must be a positive number of optimizer steps, got {value!r}")
    return int(value)
