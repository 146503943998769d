"""The balanced parameter groups of an optimizer, with the state of each unit in them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from torch.optim import Optimizer

from tempbalance.balance.history import UnitState
from tempbalance.balance.plan import Plan
from tempbalance.balance.recipe import Recipe
from tempbalance.balance.state import KEY, CachedFit, read
from tempbalance.types import Status

__all__ = ["Groups"]


class Groups:
    """The balanced groups of an optimizer; groups that were added later are left out."""

    def __init__(self, optimizer: Optimizer, plan: Plan, recipe: Recipe) -> None:
        self._optimizer = optimizer
        self._plan = plan
        self._recipe = recipe

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Iterate over the groups."""
        for group in self._optimizer.param_groups:
            read(group)
            if KEY in group:
                yield group

    @property
    def steps(self) -> int:
        """Optimizer steps taken so far."""
        return int(next(iter(self))[KEY]["steps"])

    def count_step(self) -> None:
        """Count one more optimizer step."""
        for group in self:
            group[KEY]["steps"] += 1

    def units(self) -> list[UnitState]:
        """Return every unit with its alpha and its latest multiplier, in the order of the model."""
        states = {group[KEY]["unit"]: group[KEY] for group in self}
        return [_unit_state(unit.name, states[unit.name]) for unit in self._plan.units if unit.name in states]

    def fits(self) -> dict[str, CachedFit]:
        """Return the last fit of each weight, by name."""
        return {name: fit for group in self for name, fit in group[KEY]["weights"].items()}

    def forget(self, names: Collection[str]) -> None:
        """Delete the fits of some weights; alphas and multipliers of units stay."""
        for group in self:
            fits = group[KEY]["weights"]
            group[KEY]["weights"] = {name: fits[name] for name in fits if name not in names}

    def assign(self, fits: Mapping[str, CachedFit], at: int) -> None:
        """Compute the next multipliers from all fits; they take effect after ``at`` optimizer steps."""
        facts = self._plan.facts(fits, {group[KEY]["unit"]: group[KEY]["first"] for group in self})
        multipliers = dict(zip(facts, self._recipe.assignment.assign(list(facts.values())), strict=True))
        weights = {unit.name: {name: fits[name] for name in unit.weights if name in fits} for unit in self._plan.units}
        for group in self:
            state, unit = group[KEY], group[KEY]["unit"]
            if unit is not None:
                state["alpha"], state["first"] = facts[unit].alpha, facts[unit].first_alpha
                state["status"] = _status(state["alpha"], list(weights[unit].values()))
                state["weights"] = weights[unit]
                state["next"] = (multipliers[unit], at)

    def settle(self) -> None:
        """Put the next multipliers into effect if their step has come."""
        steps = self.steps
        for group in self:
            state = group[KEY]
            if state["next"] is not None and steps >= state["next"][1]:
                state["from"] = self.multiplier(group, steps - 1)
                state["multiplier"], state["next"] = state["next"][0], None
                state["refreshed"] = steps

    def multiplier(self, group: Mapping[str, Any], steps: int) -> float:
        """Return the multiplier of a group at a step, interpolated between the old and the new one during a ramp."""
        state = group[KEY]
        target: float = state["multiplier"]
        refreshed: int | None = state["refreshed"]
        if refreshed is None or steps - refreshed + 1 >= self._recipe.ramp:
            return target
        old: float = state["from"]
        return old + (target - old) * (steps - refreshed + 1) / self._recipe.ramp


def _unit_state(name: str, state: Mapping[str, Any]) -> UnitState:
    multiplier = state["multiplier"] if state["next"] is None else state["next"][0]
    return UnitState(name=name, alpha=state["alpha"], multiplier=multiplier, status=state["status"])


def _status(alpha: float, fits: list[CachedFit]) -> Status | None:
    if math.isnan(alpha):
        return fits[0].status if fits else None
    fitted = [fit for fit in fits if not math.isnan(fit.alpha)]
    random = bool(fitted) and all(fit.status is Status.RANDOM for fit in fitted)
    return Status.RANDOM if random else Status.OK
