"""Checks of recipe and model, on one process and across processes; each error message contains the fix."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from tempbalance.balance.optimizers import DEEPSPEED, FSDP1, is_of
from tempbalance.balance.recipe import Recipe
from tempbalance.errors import BalanceError

__all__ = ["Agreement", "check_agreement", "check_delay", "check_model", "check_recipe"]


def check_recipe(recipe: object) -> None:
    """Check that a recipe is a ``Recipe`` and not the function that returns one."""
    if not isinstance(recipe, Recipe):
        given = f"the function {recipe.__name__}" if inspect.isfunction(recipe) else f"a {type(recipe).__name__}"
        raise BalanceError(f"expected a recipe, such as tempbalance.recipes.model_balancing(), got {given}")


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
    if is_of(model, "deepspeed") or any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        raise BalanceError(DEEPSPEED)


class Agreement(NamedTuple):
    """Settings that must be equal on all processes."""

    groups: list[list[tuple[str, tuple[int, ...]]]]  # name and shape of each parameter; empty if not of the model
    schedule: str  # interval and start of the measurements


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


def _described(parameter: tuple[str, tuple[int, ...]] | None) -> str:
    return "nothing" if parameter is None else f"{parameter[0] or 'one of another model'} of shape {parameter[1]}"
