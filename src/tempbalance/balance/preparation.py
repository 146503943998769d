"""Check and plan everything before the optimizer is changed."""

from __future__ import annotations

import weakref
from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tempbalance.analysis.distributed import ProcessGroup
from tempbalance.balance.optimizers import check_optimizer, find_levels
from tempbalance.balance.plan import Plan, make_plan
from tempbalance.balance.recipe import Recipe
from tempbalance.balance.schedule import Schedule
from tempbalance.balance.trial_steps import check_by_steps
from tempbalance.balance.unfreezing import check_unfreezing
from tempbalance.balance.validation import Agreement, check_agreement, check_model
from tempbalance.errors import BalanceError
from tempbalance.layers import mesh_ranks, parameter_names, reshard

__all__ = ["BALANCED", "Preparation", "names_by_group", "plan_trained", "prepare"]

BALANCED: weakref.WeakSet[Optimizer] = weakref.WeakSet()  # optimizers with a balancer


class Preparation(NamedTuple):
    """Everything that a balancer needs to start."""

    model: nn.Module
    recipe: Recipe
    ranks: ProcessGroup
    levels: list[Optimizer]  # the optimizer and those inside it; the last one takes the steps
    plan: Plan
    schedule: Schedule  # when to measure and to unfreeze
    dtype: torch.dtype | None = None  # of the eigenvalues; None for float64


def prepare(
    optimizer: Any, model: nn.Module, recipe: Recipe, ranks: ProcessGroup, *, steps_per_epoch: Any, delay: int
) -> Preparation:
    """Check the arguments of a balancer and plan its units without changing the optimizer; a collective."""
    prepared: list[Preparation] = []

    def plan() -> Agreement:
        """Plan on this process, and return the settings that must be equal on all."""
        levels = find_levels(optimizer)
        check_optimizer(levels, recipe)
        if any(level in BALANCED for level in levels):
            raise BalanceError("this optimizer has a balancer already: call its remove() first")
        check_model(model)
        schedule = Schedule(recipe, steps_per_epoch, delay=delay, processes=ranks.size)
        reshard(model)
        shapes = {name: tuple(p.shape) for name, p in _trained(levels, model, ranks).items()}
        plan = plan_trained(model, recipe, levels)
        if recipe.unfreeze is not None:
            check_unfreezing(model, ranks.size)
        prepared.append(Preparation(model, recipe, ranks, levels, plan, schedule))
        named = [[name or "" for name in names] for names in names_by_group(levels[0], model)]
        groups = [[(name, shapes.get(name, ())) for name in names] for names in named]
        return Agreement(groups=groups, schedule=f"{recipe.name} {schedule.settings}")

    check_agreement(ranks.run_on_all_ranks(plan, "setting up the balancer"))
    ready = prepared[0]
    ranks.run_on_all_ranks(lambda: check_by_steps(ready.levels[-1], recipe.keys), "setting up the balancer")
    return ready


def plan_trained(model: nn.Module, recipe: Recipe, levels: list[Optimizer], also: Collection[Tensor] = ()) -> Plan:
    """Plan the units of the parameters that the optimizer trains now, and of those in ``also``."""
    known = {id(p) for p in also}
    trained = _in_optimizer(levels, model)
    return make_plan(model, recipe, {name for name, p in trained.items() if p.requires_grad or id(p) in known})


def names_by_group(optimizer: Any, model: nn.Module) -> list[list[str | None]]:
    """Return the names of the parameters in each group of an optimizer; None for one that is not of the model."""
    names = {id(parameter): name for name, parameter in parameter_names(model).items()}
    return [[names.get(id(parameter)) for parameter in group["params"]] for group in optimizer.param_groups]


def _in_optimizer(levels: list[Optimizer], model: nn.Module) -> dict[str, Tensor]:
    ids = {id(p) for group in levels[0].param_groups for p in group["params"]}
    return {name: p for name, p in parameter_names(model).items() if id(p) in ids}


def _trained(levels: list[Optimizer], model: nn.Module, ranks: ProcessGroup) -> dict[str, Tensor]:
    """Return the parameters of the model that are in the optimizer, by name."""
    trained = _in_optimizer(levels, model)
    if not trained:
        raise BalanceError(
            "the optimizer has no parameter of this model: build it from model.parameters() of the same model "
            "(after any call that replaces them, such as fully_shard or model.to(...) of some devices)"
        )
    if not ranks.contains(process for p in trained.values() for process in mesh_ranks(p)):
        raise BalanceError(
            "the model is sharded over processes outside of the process_group: pass a group with all of them"
        )
    return trained
