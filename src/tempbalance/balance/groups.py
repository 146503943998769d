"""The parameter groups that are balanced, and what each says of its unit.

That lies in the group itself, to be saved with it: the alpha and what is known of the weights; the multiplier, the one
before and the step of the change; the next multiplier and the step at which it takes effect.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from torch.optim import Optimizer

from tempbalance.balance.history import UnitState
from tempbalance.balance.measuring import CachedFit
from tempbalance.balance.param_groups import KEY
from tempbalance.balance.plan import Plan
from tempbalance.balance.recipe import Recipe
from tempbalance.balance.state import read

__all__ = ["Groups", "unmeasured"]


def unmeasured() -> dict[str, Any]:
    """What a group says before anything is measured."""
    measured: dict[str, Any] = {"alpha": None, "first": None, "weights": {}}
    return measured | {"multiplier": 1.0, "from": 1.0, "refreshed": None, "steps": 0}


class Groups:
    """The groups of an optimizer that are balanced, as they are now."""

    def __init__(self, optimizer: Optimizer, plan: Plan, recipe: Recipe) -> None:
        """Look at an optimizer.

        Args:
            optimizer: Has groups that a balancer has split.
            plan: Its units.
            recipe: From alphas to multipliers, and how fast these change.
        """
        self._optimizer = optimizer
        self._plan = plan
        self._recipe = recipe

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The groups; those that were added since are left out."""
        for group in self._optimizer.param_groups:
            read(group)
            if KEY in group:
                yield group

    @property
    def steps(self) -> int:
        """Optimizer steps taken so far."""
        return int(next(iter(self))[KEY]["steps"])

    def count_step(self) -> None:
        """One more is taken."""
        for group in self:
            group[KEY]["steps"] += 1

    def units(self) -> list[UnitState]:
        """Every unit with its alpha, and the multiplier that it has or is to have, in the order of the model."""
        states = {group[KEY]["unit"]: group[KEY] for group in self}
        return [_unit_state(unit.name, states[unit.name]) for unit in self._plan.units if unit.name in states]

    def known(self) -> dict[str, CachedFit]:
        """What is known of each weight, by name."""
        return {name: CachedFit(*known) for group in self for name, known in group[KEY]["weights"].items()}

    def forget(self, names: Collection[str]) -> None:
        """Know nothing of some weights any more; alphas and multipliers stay."""
        for group in self:
            known = group[KEY]["weights"]
            group[KEY]["weights"] = {name: known[name] for name in known if name not in names}

    def assign(self, found: Mapping[str, CachedFit], at: int) -> None:
        """Set the next multipliers.

        Args:
            found: What is known of each weight, by name.
            at: How many optimizer steps will have been taken when they take effect.
        """
        facts = self._plan.facts(found, {group[KEY]["unit"]: group[KEY]["first"] for group in self})
        multipliers = dict(zip(facts, self._recipe.assignment.assign(list(facts.values())), strict=True))
        weights = {unit.name: [name for name in unit.weights if name in found] for unit in self._plan.units}
        for group in self:
            state, unit = group[KEY], group[KEY]["unit"]
            if unit is not None:
                state["alpha"], state["first"] = map(_finite, (facts[unit].alpha, facts[unit].first_alpha))
                state["weights"] = {name: tuple(found[name]) for name in weights[unit]}
                state["next"] = (multipliers[unit], at)

    def settle(self) -> None:
        """Let the next multipliers take effect, if their step has come."""
        steps = self.steps
        for group in self:
            state = group[KEY]
            if "next" in state and steps >= state["next"][1]:
                state["from"] = self.multiplier(group, steps - 1)
                state["multiplier"], _ = state.pop("next")
                state["refreshed"] = steps

    def multiplier(self, group: Mapping[str, Any], steps: int) -> float:
        """The multiplier of a group at a step, on its way from the old to the new one."""
        state = group[KEY]
        target: float = state["multiplier"]
        refreshed: int | None = state["refreshed"]
        if refreshed is None or steps - refreshed + 1 >= self._recipe.ramp:
            return target
        old: float = state["from"]
        return old + (target - old) * (steps - refreshed + 1) / self._recipe.ramp


def _unit_state(name: str, state: Mapping[str, Any]) -> UnitState:
    alpha = math.nan if state["alpha"] is None else state["alpha"]
    multiplier, _ = state.get("next", (state["multiplier"], None))
    return UnitState(name=name, alpha=alpha, multiplier=multiplier)


def _finite(alpha: float) -> float | None:
    return alpha if math.isfinite(alpha) else None
