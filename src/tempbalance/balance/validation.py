"""Checks of recipe, optimizer and model; each error message contains the fix."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer

from tempbalance.balance.recipe import Recipe
from tempbalance.errors import BalanceError

__all__ = [
    "DEEPSPEED",
    "FSDP1",
    "Agreement",
    "check_agreement",
    "check_delay",
    "check_model",
    "check_optimizer",
    "check_recipe",
    "is_divided",
    "unwrap",
]

DEEPSPEED = (
    "DeepSpeed keeps parameters and learning rates in its own groups and ignores those of others: train with FSDP2 "
    "(torch.distributed.fsdp.fully_shard) or DDP, which are supported"
)
FSDP1 = (
    "FSDP1 (FullyShardedDataParallel) flattens parameters into vectors, which have no spectrum: use FSDP2, "
    "torch.distributed.fsdp.fully_shard(model), and build the optimizer after it"
)


def unwrap(optimizer: Any) -> Optimizer:
    """Return the optimizer inside a wrapper (Accelerate, Lightning, Lookahead and the like)."""
    inner = optimizer
    while isinstance(getattr(inner, "optimizer", None), Optimizer):
        inner = inner.optimizer
    if any(_is_of(level, "deepspeed") for level in (optimizer, inner, getattr(inner, "optimizer", None))):
        raise BalanceError(DEEPSPEED)
    if not isinstance(inner, Optimizer) or not hasattr(inner, "_optimizer_step_pre_hooks"):
        raise BalanceError(
            f"{type(optimizer).__name__} has no step hooks: pass an optimizer derived from torch.optim.Optimizer, "
            "or the one inside your wrapper"
        )
    return inner


def _is_of(value: object, package: str) -> bool:
    return any(cls.__module__.partition(".")[0] == package for cls in type(value).__mro__)


def is_divided(optimizer: Optimizer) -> bool:
    """Return whether the parameters of an optimizer are divided among processes (ZeroRedundancyOptimizer)."""
    return any(cls.__name__ == "ZeroRedundancyOptimizer" for cls in type(optimizer).__mro__)


def check_recipe(recipe: object) -> None:
    """Check that a recipe is a ``Recipe`` and not the function that returns one."""
    if not isinstance(recipe, Recipe):
        given = f"the function {recipe.__name__}" if inspect.isfunction(recipe) else f"a {type(recipe).__name__}"
        raise BalanceError(f"expected a recipe, such as tempbalance.recipes.model_balancing(), got {given}")


def check_optimizer(optimizer: Optimizer, recipe: Recipe) -> None:
    """Check that an optimizer has the options to multiply, and can keep the tensors of the recipe."""
    if isinstance(optimizer, torch.optim.LBFGS):
        raise BalanceError("LBFGS takes all parameters in one group, so units cannot have different learning rates")
    if recipe.spectrum_of == "update" and is_divided(optimizer):
        raise BalanceError(
            "ZeroRedundancyOptimizer keeps the state of a parameter on one process, but every process needs the "
            "initial weights: use FSDP2, or a recipe with spectrum_of='weights'"
        )
    for key in recipe.keys:
        for group in optimizer.param_groups:
            if key not in group:
                raise BalanceError(f"{type(optimizer).__name__} has no {key}, which the recipe multiplies")
            if not isinstance(group[key], (int, float, torch.Tensor)):
                raise BalanceError(
                    f"the {key} of {type(optimizer).__name__} is {group[key]!r}, not a number: set it "
                    "(Adafactor: relative_step=False and lr=...)"
                )


def check_delay(delay: int, most: int, processes: int) -> None:
    """Check that an asynchronous measurement ends before the next one starts, on a single process."""
    if not 0 <= delay <= most:
        raise BalanceError(
            f"delay={delay}: it must be 0 or more, and at most {most}, the steps between two measurements"
        )
    if delay and processes > 1:
        raise BalanceError(
            f"delay={delay} needs a single process: the {processes} processes share a refresh, which cannot be "
            "asynchronous; leave delay out"
        )


def check_model(model: nn.Module) -> None:
    """Reject models whose parameters are flattened or partitioned."""
    if not isinstance(model, nn.Module):
        raise BalanceError(f"expected the model, a torch.nn.Module, got a {type(model).__name__}")
    if any(cls.__name__ == "FullyShardedDataParallel" for m in model.modules() for cls in type(m).__mro__):
        raise BalanceError(FSDP1)
    if _is_of(model, "deepspeed") or any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        raise BalanceError(DEEPSPEED)


class Agreement(NamedTuple):
    """Settings that must be equal on all processes.

    Attributes:
        groups: Name and shape of every parameter of every group.
        schedule: Interval and start of the measurements.
    """

    groups: list[list[tuple[str | None, tuple[int, ...]]]]
    schedule: str


def check_agreement(agreements: Sequence[Agreement]) -> None:
    """Check that all processes train the same parameters and measure at the same steps."""
    first = agreements[0]
    for rank, other in enumerate(agreements):
        if other.groups != first.groups:
            raise BalanceError(
                f"ranks 0 and {rank} train different models or parameters ({_first_difference(first, other)}), so "
                "their alphas cannot be shared: pass as process_group the processes that train this model"
            )
        if other.schedule != first.schedule:
            raise BalanceError(
                f"ranks 0 and {rank} would measure at different steps ({first.schedule}; {other.schedule}): "
                "give all the same recipe and steps_per_epoch"
            )


def _first_difference(a: Agreement, b: Agreement) -> str:
    ours, theirs = ([parameter for group in each.groups for parameter in group] for each in (a, b))
    for one, other in itertools.zip_longest(ours, theirs):
        if one != other:
            return f"{_described(one)}; {_described(other)}"
    return "in other groups"


def _described(parameter: tuple[str | None, tuple[int, ...]] | None) -> str:
    return "nothing" if parameter is None else f"{parameter[0] or 'one of another model'} of shape {parameter[1]}"
