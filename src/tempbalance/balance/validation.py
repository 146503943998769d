"""Whether an optimizer, a model and a scheduler can be balanced, and what to do if not."""

from __future__ import annotations

import gc
import inspect
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from tempbalance.balance.recipe import Recipe
from tempbalance.errors import BalanceError

__all__ = [
    "DEEPSPEED",
    "FSDP1",
    "Agreement",
    "check_alike",
    "check_delay",
    "check_model",
    "check_optimizer",
    "check_recipe",
    "extend_schedulers",
    "unwrap",
]

DEEPSPEED = (
    "DeepSpeed keeps parameters and rates in groups of its own and loses those of others: train with FSDP2 "
    "(torch.distributed.fsdp.fully_shard) or DDP, which are supported"
)
FSDP1 = (
    "FSDP1 (FullyShardedDataParallel) flattens parameters into vectors, which have no spectrum: use FSDP2, "
    "torch.distributed.fsdp.fully_shard(model), and build the optimizer after it"
)

# Lists that schedulers keep with an entry per parameter group.
_PER_GROUP = ("base_lrs", "_last_lr", "lr_lambdas", "min_lrs", "max_lrs", "base_momentums", "max_momentums")


def unwrap(optimizer: Any) -> Optimizer:
    """The optimizer inside a wrapper (Accelerate, Lightning, Lookahead and the like).

    Args:
        optimizer: An optimizer, or something with one in its attribute ``optimizer``.

    Returns:
        An optimizer with step hooks.

    Raises:
        BalanceError: There is none.
    """
    seen = optimizer
    while isinstance(getattr(seen, "optimizer", None), Optimizer):
        seen = seen.optimizer
    if any(_is_of(level, "deepspeed") for level in (optimizer, seen, getattr(seen, "optimizer", None))):
        raise BalanceError(DEEPSPEED)
    if not isinstance(seen, Optimizer) or not hasattr(seen, "_optimizer_step_pre_hooks"):
        raise BalanceError(
            f"{type(optimizer).__name__} has no step hooks: pass an optimizer derived from torch.optim.Optimizer, "
            "or the one inside your wrapper"
        )
    return seen


def _is_of(value: object, package: str) -> bool:
    return any(cls.__module__.partition(".")[0] == package for cls in type(value).__mro__)


def check_recipe(recipe: object) -> None:
    """Make sure that a recipe is one, and not the function that makes it.

    Args:
        recipe: What was given for a recipe.

    Raises:
        BalanceError: It is none.
    """
    if not isinstance(recipe, Recipe):
        given = f"the function {recipe.__name__}" if inspect.isfunction(recipe) else f"a {type(recipe).__name__}"
        raise BalanceError(f"expected a recipe, such as tempbalance.recipes.model_balancing(), got {given}")


def check_optimizer(optimizer: Optimizer, recipe: Recipe) -> None:
    """Make sure that an optimizer has what is to be multiplied, and room for what is to be kept.

    Args:
        optimizer: The optimizer.
        recipe: What is to be multiplied, and measured.

    Raises:
        BalanceError: An option is missing, or is no number; or the optimizer takes a single group, or divides its state
            where all of it is needed.
    """
    if isinstance(optimizer, torch.optim.LBFGS):
        raise BalanceError("LBFGS takes all parameters in one group, so units cannot have rates of their own")
    if recipe.spectrum_of == "update" and _is_divided(optimizer):
        raise BalanceError(
            "ZeroRedundancyOptimizer keeps the state of a parameter on one process, but all need the start of an "
            "update: use FSDP2, or a recipe with spectrum_of='weights'"
        )
    for key in recipe.keys:
        for group in optimizer.param_groups:
            if key not in group:
                raise BalanceError(f"{type(optimizer).__name__} has no {key}, which the recipe is to multiply")
            if not isinstance(group[key], (int, float, torch.Tensor)):
                raise BalanceError(
                    f"the {key} of {type(optimizer).__name__} is {group[key]!r}, not a number: give it one "
                    "(Adafactor: relative_step=False and lr=...)"
                )


def check_delay(delay: int, most: int, processes: int) -> None:
    """Make sure that a measurement beside training ends before the next one begins, on the only process.

    Args:
        delay: Optimizer steps from a measurement to its effect.
        most: The fewest steps from one measurement to the next.
        processes: How many train the model.

    Raises:
        BalanceError: It does not.
    """
    if not 0 <= delay <= most:
        raise BalanceError(
            f"delay={delay}: it must be 0 or more, and at most {most}, the steps from one measurement to the next"
        )
    if delay and processes > 1:
        raise BalanceError(
            f"delay={delay} is for a single process: {processes} processes share a refresh, and cannot do so beside "
            "training; leave it out"
        )


def _is_divided(optimizer: Optimizer) -> bool:
    return any(cls.__name__ == "ZeroRedundancyOptimizer" for cls in type(optimizer).__mro__)


def check_model(model: nn.Module) -> None:
    """Refuse models whose parameters are not where they belong.

    Args:
        model: The model.

    Raises:
        BalanceError: It is wrapped by FSDP1, or partitioned by DeepSpeed.
    """
    if not isinstance(model, nn.Module):
        raise BalanceError(f"expected the model, a torch.nn.Module, got a {type(model).__name__}")
    if any(cls.__name__ == "FullyShardedDataParallel" for m in model.modules() for cls in type(m).__mro__):
        raise BalanceError(FSDP1)
    if _is_of(model, "deepspeed") or any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        raise BalanceError(DEEPSPEED)


class Agreement(NamedTuple):
    """What must be the same on all processes that balance together.

    Attributes:
        groups: Name and shape of every parameter of every group.
        schedule: When weights are measured.
    """

    groups: list[list[tuple[str | None, tuple[int, ...]]]]
    schedule: str


def check_alike(plans: Sequence[Agreement]) -> None:
    """Make sure that all processes are about to do the same.

    Args:
        plans: Of each process.

    Raises:
        BalanceError: They differ; the same message on all.
    """
    first = plans[0]
    for rank, plan in enumerate(plans):
        if plan.groups != first.groups:
            raise BalanceError(
                f"ranks 0 and {rank} train different models or parameters ({_first_difference(first, plan)}), so their "
                "alphas cannot be shared: pass as process_group the processes that train this model"
            )
        if plan.schedule != first.schedule:
            raise BalanceError(
                f"ranks 0 and {rank} would measure at different steps ({first.schedule}; {plan.schedule}): "
                "give all the same recipe and steps_per_epoch"
            )


def _first_difference(a: Agreement, b: Agreement) -> str:
    ours, theirs = ([parameter for group in plan.groups for parameter in group] for plan in (a, b))
    for one, other in itertools.zip_longest(ours, theirs):
        if one != other:
            return f"{_described(one)}; {_described(other)}"
    return "in other groups"


def _described(parameter: tuple[str | None, tuple[int, ...]] | None) -> str:
    return "nothing" if parameter is None else f"{parameter[0] or 'one of another model'} of shape {parameter[1]}"


def extend_schedulers(optimizer: Optimizer, origins: Sequence[int], schedulers: Iterable[Any]) -> None:
    """Fit schedulers that exist already to the groups of a split optimizer.

    Args:
        optimizer: The optimizer before the split.
        origins: For each new group, the place of the old one that it comes from.
        schedulers: Those that the user has named.

    Raises:
        BalanceError: There is one that the user has not named: it would leave the new groups alone. Or the optimizer
            cannot be split any more.
    """
    old = len(optimizer.param_groups)
    if list(origins) == list(range(old)):
        return
    if _is_divided(optimizer):
        raise BalanceError(
            "ZeroRedundancyOptimizer has divided its groups among the processes already: build it from "
            "tb.balance.param_groups(model, recipe), which need no further split"
        )
    named = list(_flatten(schedulers))
    unnamed = [found for found in _schedulers_of(optimizer) if not any(found is known for known in named)]
    if unnamed:
        raise BalanceError(
            f"a scheduler ({type(unnamed[0]).__name__}) was built on this optimizer before the balancer: build the "
            "balancer first, right after the optimizer, or pass it as schedulers=[scheduler]"
        )
    for scheduler in named:
        for attribute in _PER_GROUP:
            values = getattr(scheduler, attribute, None)
            if isinstance(values, (list, tuple)) and len(values) == old:
                setattr(scheduler, attribute, [values[origin] for origin in origins])


def _flatten(schedulers: Iterable[Any]) -> Iterator[Any]:
    """Schedulers, and those that they consist of (``SequentialLR``, ``ChainedScheduler``)."""
    for scheduler in schedulers:
        yield scheduler
        inner = getattr(scheduler, "_schedulers", None) or getattr(scheduler, "schedulers", None)
        if isinstance(inner, (list, tuple)):
            yield from _flatten(inner)
        elif isinstance(getattr(scheduler, "scheduler", None), LRScheduler):
            yield from _flatten([scheduler.scheduler])


def _schedulers_of(optimizer: Optimizer) -> list[LRScheduler]:
    """The schedulers that hold a reference to an optimizer; the optimizer itself does not know them."""
    holders = [holder for holder in gc.get_referrers(optimizer) if isinstance(holder, (LRScheduler, dict))]
    found = [holder for holder in holders if isinstance(holder, LRScheduler)]
    for holder in holders:
        if isinstance(holder, dict) and holder.get("optimizer") is optimizer:
            found += [owner for owner in gc.get_referrers(holder) if isinstance(owner, LRScheduler)]
    return found
