"""Check and plan everything before the optimizer is changed."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import nn
from torch.optim import Optimizer

from tempbalance.analysis.distributed import ProcessGroup
from tempbalance.balance.param_groups import split_groups
from tempbalance.balance.plan import Plan, make_plan
from tempbalance.balance.recipe import Every, Recipe
from tempbalance.balance.schedulers import extend_schedulers
from tempbalance.balance.state import KEY
from tempbalance.balance.unfreezing import check_unfreezing
from tempbalance.balance.validation import (
    Agreement,
    check_agreement,
    check_delay,
    check_model,
    check_optimizer,
    unwrap,
)
from tempbalance.errors import BalanceError
from tempbalance.layers import mesh_ranks, parameter_names, reshard

__all__ = ["BALANCED", "Preparation", "prepare"]

BALANCED: weakref.WeakSet[Optimizer] = weakref.WeakSet()  # optimizers with a balancer


class Preparation(NamedTuple):
    """Everything that a balancer needs to start.

    Attributes:
        optimizer: The optimizer, without wrappers.
        plan: The recipe applied to the model.
        groups: The groups of the optimizer, split by unit.
        origins: For each group, the index of the group that it was split from.
        interval: Optimizer steps between two measurements.
        unfreeze_interval: Optimizer steps between unfreezing two blocks.
    """

    optimizer: Optimizer
    plan: Plan
    groups: list[dict[str, Any]]
    origins: list[int]
    interval: int
    unfreeze_interval: int


def prepare(  # noqa: PLR0913  options by keyword
    optimizer: Any,
    model: nn.Module,
    recipe: Recipe,
    ranks: ProcessGroup,
    *,
    steps_per_epoch: int | None,
    delay: int,
    schedulers: Iterable[Any],
) -> Preparation:
    """Check the arguments of a balancer and plan its groups without changing the optimizer; a collective."""
    prepared: list[Preparation] = []

    def plan() -> Agreement:
        """Plan on this process, and return the settings that must be equal on all."""
        prepared.append(_plan(optimizer, model, recipe, ranks, steps_per_epoch, delay))
        return _agreement(prepared[0], recipe)

    what = "setting up the balancer"
    check_agreement(ranks.run_on_all_ranks(plan, what))
    (ready,) = prepared
    ranks.run_on_all_ranks(lambda: extend_schedulers(ready.optimizer, ready.origins, schedulers), what)
    return ready


def _plan(
    optimizer: Any, model: nn.Module, recipe: Recipe, ranks: ProcessGroup, steps_per_epoch: int | None, delay: int
) -> Preparation:
    optimizer = unwrap(optimizer)
    check_optimizer(optimizer, recipe)
    if optimizer in BALANCED:
        raise BalanceError("this optimizer has a balancer already: call its remove() first")
    check_model(model)
    interval = _steps(recipe, recipe.every, steps_per_epoch)
    shortest = next((n for n in range(1, interval) if recipe.every.is_due(n, interval)), interval)
    check_delay(delay, shortest, ranks.size)
    reshard(model)
    parameters = parameter_names(model)
    in_optimizer = {id(p) for group in optimizer.param_groups for p in group["params"]}
    trained = {name: p for name, p in parameters.items() if id(p) in in_optimizer}
    if not trained:
        raise BalanceError(
            "the optimizer has no parameter of this model: build it from model.parameters() of the same model "
            "(after any call that replaces them, such as fully_shard or model.to(...) of some devices)"
        )
    if not ranks.contains(process for p in trained.values() for process in mesh_ranks(p)):
        raise BalanceError(
            "the model is sharded over processes outside of the process_group: pass a group with all of them"
        )
    plan = make_plan(model, recipe, {name for name, p in trained.items() if p.requires_grad})
    if recipe.unfreeze is not None:
        check_unfreezing(model, ranks.size)
    groups, origins = split_groups(optimizer.param_groups, plan.units, parameters)
    return Preparation(
        optimizer=optimizer,
        plan=plan,
        groups=groups,
        origins=origins,
        interval=interval,
        unfreeze_interval=1 if recipe.unfreeze is None else _steps(recipe, recipe.unfreeze, steps_per_epoch),
    )


def _steps(recipe: Recipe, every: Every, steps_per_epoch: int | None) -> int:
    interval = every.interval(steps_per_epoch)
    if interval is None:
        raise BalanceError(
            f"{recipe.name} counts in epochs: pass steps_per_epoch, the number of optimizer steps in an epoch "
            "(len(loader) // gradient accumulation)"
        )
    return interval


def _agreement(ready: Preparation, recipe: Recipe) -> Agreement:
    return Agreement(
        groups=[
            [(name, tuple(p.shape)) for name, p in zip(group[KEY]["names"], group["params"], strict=True)]
            for group in ready.groups
        ],
        schedule=f"{recipe.name} every {ready.interval} steps from step {recipe.start} on, "
        f"tolerance {recipe.tolerance}",
    )
