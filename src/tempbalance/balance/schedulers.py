"""Extend schedulers that were built before the groups of their optimizer were split."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from tempbalance.balance.validation import is_divided
from tempbalance.errors import BalanceError

__all__ = ["extend_schedulers"]

# Lists of schedulers with one entry per parameter group.
_PER_GROUP = ("base_lrs", "_last_lr", "lr_lambdas", "min_lrs", "max_lrs", "base_momentums", "max_momentums")


def extend_schedulers(optimizer: Optimizer, origins: Sequence[int], schedulers: Iterable[Any]) -> None:
    """Extend the lists of schedulers to new groups; ``origins`` are the old groups that these were split from."""
    old = len(optimizer.param_groups)
    if list(origins) == list(range(old)):
        return
    if is_divided(optimizer):
        raise BalanceError(
            "ZeroRedundancyOptimizer has divided its groups among the processes already: build it from "
            "tb.balance.param_groups(model, recipe), whose groups need no split"
        )
    passed = list(_flatten(schedulers))
    other = [found for found in _schedulers_of(optimizer) if not any(found is each for each in passed)]
    if other:
        raise BalanceError(
            f"a scheduler ({type(other[0]).__name__}) was built on this optimizer before the balancer: build the "
            "balancer first, right after the optimizer, or pass it as schedulers=[scheduler]"
        )
    for scheduler in passed:
        for attribute in _PER_GROUP:
            values = getattr(scheduler, attribute, None)
            if isinstance(values, (list, tuple)) and len(values) == old:
                setattr(scheduler, attribute, [values[origin] for origin in origins])


def _flatten(schedulers: Iterable[Any]) -> Iterator[Any]:
    """Yield schedulers and the schedulers inside them (``SequentialLR``, ``ChainedScheduler``)."""
    for scheduler in schedulers:
        yield scheduler
        inner = getattr(scheduler, "_schedulers", None) or getattr(scheduler, "schedulers", None)
        if isinstance(inner, (list, tuple)):
            yield from _flatten(inner)
        elif isinstance(getattr(scheduler, "scheduler", None), LRScheduler):
            yield from _flatten([scheduler.scheduler])


def _schedulers_of(optimizer: Optimizer) -> list[LRScheduler]:
    """Return the schedulers that refer to an optimizer, which has no list of them."""
    referrers = [each for each in gc.get_referrers(optimizer) if isinstance(each, (LRScheduler, dict))]
    found = [each for each in referrers if isinstance(each, LRScheduler)]
    for each in referrers:
        if isinstance(each, dict) and each.get("optimizer") is optimizer:
            found += [owner for owner in gc.get_referrers(each) if isinstance(owner, LRScheduler)]
    return found
