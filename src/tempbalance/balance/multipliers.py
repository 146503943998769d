"""The multipliers of all units: computed at a refresh, put into effect later, ramped, and reported."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from tempbalance.balance.history import UnitState
from tempbalance.balance.plan import Plan
from tempbalance.balance.recipe import Recipe
from tempbalance.balance.state import BalanceState, CachedFit, UnitRecord
from tempbalance.layers import Unit
from tempbalance.types import Skipped, Status

__all__ = ["Multipliers"]


class Multipliers:
    """Computes multipliers from fits, and keeps them in a state.

    Attributes:
        state: The state; replaced when another one is loaded.
        plan: The units; replaced when parameters join.
    """

    def __init__(self, state: BalanceState, plan: Plan, recipe: Recipe) -> None:
        self.state = state
        self.plan = plan
        self._recipe = recipe
        self._current: dict[str, float] = {}
        self._current_of = state

    def units(self) -> list[UnitState]:
        """Return every unit with its alpha and its latest multiplier, in the order of the model."""
        return [self._unit_state(unit) for unit in self.plan.units]

    def skipped(self) -> tuple[Skipped, ...]:
        """Return the weights without an alpha, with the reason."""
        fits = self.state.fits
        measured = [name for unit in self.plan.units if unit.name not in self.plan.at_max for name in unit.weights]
        failed = [
            Skipped(name, fits[name].reason) for name in measured if name in fits and math.isnan(fits[name].alpha)
        ]
        return (*self.plan.skipped, *failed)

    def forget(self, names: Collection[str]) -> None:
        """Delete the fits of some weights; alphas and multipliers of units stay."""
        self.state.fits = {name: fit for name, fit in self.state.fits.items() if name not in names}

    def assign(self, fits: Mapping[str, CachedFit], at: int) -> None:
        """Compute the next multipliers from all fits; they take effect after ``at`` optimizer steps."""
        first = {unit.name: self._record(unit.name).first_alpha for unit in self.plan.units}
        facts = self.plan.facts(fits, first)
        multipliers = self._recipe.assignment.assign(list(facts.values()))
        self.state.fits = dict(fits)
        for unit, multiplier in zip(self.plan.units, multipliers, strict=True):
            record = self.state.units.setdefault(unit.name, UnitRecord())
            record.alpha, record.stderr, record.first_alpha = facts[unit.name][:3]
            record.status, record.reason = _verdict(record.alpha, [fits[name] for name in unit.weights if name in fits])
            record.pending = (multiplier, at)

    def settle(self) -> None:
        """Put the next multipliers into effect if their step has come."""
        steps = self.state.steps
        for record in self.state.units.values():
            if record.pending is not None and steps >= record.pending[1]:
                record.previous = self._at(record, steps - 1)
                record.multiplier, record.pending, record.since = record.pending[0], None, steps
                self._current = {}

    def current(self) -> dict[str, float]:
        """Return the multiplier of each unit for the next step; during a ramp, between the old and the new one.

        As long as nothing changes, it is the same object.
        """
        if not self._current or self._recipe.ramp or self._current_of is not self.state:
            self._current = {name: self._at(record, self.state.steps) for name, record in self.state.units.items()}
            self._current_of = self.state
        return self._current

    def _at(self, record: UnitRecord, steps: int) -> float:
        if record.since is None or steps - record.since + 1 >= self._recipe.ramp:
            return record.multiplier
        share = (steps - record.since + 1) / self._recipe.ramp
        return record.previous + (record.multiplier - record.previous) * share

    def _record(self, name: str) -> UnitRecord:
        return self.state.units.get(name) or UnitRecord()

    def _unit_state(self, unit: Unit) -> UnitState:
        record = self._record(unit.name)
        return UnitState(
            name=unit.name,
            alpha=record.alpha,
            stderr=record.stderr,
            multiplier=record.multiplier if record.pending is None else record.pending[0],
            status=record.status,
            reason=record.reason,
            parameters=unit.parameters,
        )


def _verdict(alpha: float, fits: Sequence[CachedFit]) -> tuple[Status | None, str]:
    """Return the status of a unit and its reason: random if all fitted weights are, else the first failure."""
    if math.isnan(alpha):
        return (fits[0].status, fits[0].reason) if fits else (None, "")
    fitted = [fit for fit in fits if not math.isnan(fit.alpha)]
    random = bool(fitted) and all(fit.status is Status.RANDOM for fit in fitted)
    return (Status.RANDOM, Status.RANDOM.message) if random else (Status.OK, "")
