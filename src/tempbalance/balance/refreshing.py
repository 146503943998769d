"""Refreshes: measure the weights at their steps, and hand the multipliers over."""

from __future__ import annotations

import functools
import logging
import time
import warnings
from collections.abc import Callable, Collection, Iterable

import torch
from torch import Tensor

from tempbalance.analysis.change_findings import make_finding
from tempbalance.balance.async_measurement import AsyncMeasurement
from tempbalance.balance.history import Refresh
from tempbalance.balance.initial_weights import InitialWeights
from tempbalance.balance.measuring import Measurement, Measurer
from tempbalance.balance.multipliers import Multipliers
from tempbalance.balance.no_effect import explain_no_effect, find_no_convergence, find_no_decay, find_no_effect
from tempbalance.balance.plan import make_plan
from tempbalance.balance.preparation import Preparation, names_by_group, plan_trained
from tempbalance.balance.snapshot import Snapshot
from tempbalance.balance.split_groups import SplitGroups
from tempbalance.balance.state import BalanceState
from tempbalance.balance.tracking import Tracker
from tempbalance.errors import BalanceError, BalanceWarning, NumericsWarning, RefreshError
from tempbalance.layers import parameter_names
from tempbalance.types import Finding, Severity

__all__ = ["Refresher"]

_logger = logging.getLogger("tempbalance")


class Refresher:
    """Measures the weights of a model at the steps of its schedule, and sets the multipliers.

    Attributes:
        multipliers: The multipliers and the state.
        schedule: When to measure.
        snapshot: Copies of the weights at their last measurement.
        initial: Copies of the weights before the first step.
        tracker: The weights to measure.
        history: One entry per refresh in this process.
    """

    def __init__(
        self,
        ready: Preparation,
        groups: SplitGroups,
        unfrozen_later: list[Tensor],
        *,
        delay: int,
        on_refresh: Iterable[Callable[[Refresh], object]],
    ) -> None:
        """Prepare to measure, and give the groups the units of the plan; ``unfrozen_later`` count as trained."""
        self.history: list[Refresh] = []
        self.schedule = ready.schedule
        self.multipliers = Multipliers(BalanceState(), ready.plan, ready.recipe)
        self.snapshot = Snapshot(ready.levels[-1])
        self.initial = InitialWeights(ready.levels[-1])
        self.tracker = Tracker(
            ready.model, ready.recipe, ready.plan.measured, snapshot=self.snapshot, ranks=ready.ranks
        )
        self._measurer = Measurer(ready.recipe, self.tracker, self.initial, ready.ranks, ready.dtype)
        self._model, self._recipe, self._ranks, self._levels, *_ = ready
        self._groups = groups
        self._unfrozen_later = unfrozen_later
        self._delay = delay
        self._on_refresh = tuple(on_refresh)
        self._pending: AsyncMeasurement[Measurement] | None = None
        self._warned_no_effect = self._warned_non_finite = False
        self._soon = False
        self._set_plan()

    def copy_initial(self) -> None:
        """Copy the weights that have no initial value yet; those unfrozen since the last step have not moved."""
        if self._recipe.spectrum_of == "update":
            self._join()
            self.initial.copy_missing()

    def before_step(self) -> None:
        """Refresh if it is due, and put multipliers into effect whose step has come."""
        steps = self.multipliers.state.steps
        if self._pending is not None and steps >= self._pending.step + self._delay:
            self.finish()
        self.multipliers.settle()
        if self._is_due(steps):
            if self._delay:
                self._start()
            else:
                self.refresh(delay=self._recipe.effect_after)
                self.multipliers.settle()

    def _is_due(self, steps: int) -> bool:
        if self._soon and steps >= self._recipe.start:
            self._soon = False
            return True
        if self.schedule.known or steps < self._recipe.start:
            return self.schedule.is_due(steps)
        # The length of an epoch is asked for on every process, and must be the same.
        texts = self._ranks.run_on_all_ranks(self._resolved, _name(steps), RefreshError)
        if len(set(texts)) > 1:
            raise RefreshError(f"the processes would measure at different steps ({'; '.join(dict.fromkeys(texts))})")
        return self.schedule.is_due(steps)

    def _resolved(self) -> str:
        self.schedule.resolve()
        return self.schedule.settings

    def _set_plan(self) -> None:
        plan = self.multipliers.plan
        unit_of = {name: unit.name for unit in plan.units for name in unit.parameters}
        self._groups.set_units(unit_of, functools.partial(parameter_names, self._model))
        self.tracker.names = plan.measured
        if self._recipe.spectrum_of == "update":
            self.initial.watch(self.tracker.parameters())
        self._planned_for = self._trained()

    def measure_soon(self) -> None:
        """Measure at the next step, also if it is not due."""
        self._soon = True

    def replan(self, unplanned: Collection[str]) -> None:
        """Use the plan of a saved run until the next refresh: parameters may have been frozen or unfrozen since."""
        names = {name for group in names_by_group(self._levels[0], self._model) for name in group if name is not None}
        other_names = names.difference(unplanned) != self.multipliers.plan.trained
        if other_names:
            self.multipliers.plan = make_plan(self._model, self._recipe, names.difference(unplanned))
        if other_names or self._trained() != self._planned_for:  # parameters may have been replaced, as by FSDP2
            self._set_plan()
        if other_names:
            self._planned_for = []

    def _trained(self) -> list[tuple[int, bool]]:
        """Return the parameters in the optimizer, and whether they are trained."""
        groups = self._levels[0].param_groups
        return [(id(parameter), parameter.requires_grad) for group in groups for parameter in group["params"]]

    def _join(self) -> None:
        """Plan again if parameters were unfrozen, frozen, or added to the optimizer."""
        trained = self._trained()
        if trained == self._planned_for:
            return
        before = set(self.multipliers.plan.measured)
        try:
            self.multipliers.plan = plan_trained(self._model, self._recipe, self._levels, self._unfrozen_later)
        except BalanceError:  # nothing is trained for a while
            self._planned_for = trained
            return
        self._set_plan()
        if joined := sorted(self.multipliers.plan.measured - before):
            _logger.info("%d weights have joined the balanced ones, such as %s", len(joined), joined[0])

    @torch.no_grad()
    def refresh(self, *, delay: int = 0) -> Refresh:
        """Return the result of measuring while training waits; the multipliers take effect after ``delay`` steps.

        A measurement in progress is discarded.
        """
        self.discard()
        started, steps = time.perf_counter(), self.multipliers.state.steps

        def run() -> Refresh:
            self._join()
            found = self._measurer.measure(self.multipliers.state.fits, _name(steps))
            return self._apply(found, steps, delay, started)

        return self._ranks.run_together(run, _name(steps), RefreshError)

    @torch.no_grad()
    def _start(self) -> None:
        """Start an asynchronous measurement; until it is finished, its weights have no fit."""
        started, steps = time.perf_counter(), self.multipliers.state.steps
        self._join()
        prepared = self._measurer.prepare(self.multipliers.state.fits, _name(steps))
        self.multipliers.forget({tracked.weight.name for tracked in prepared.due})
        self._pending = AsyncMeasurement(prepared.finish, prepared.copies, step=steps)
        self._waited = time.perf_counter() - started

    def discard(self) -> None:
        """Discard the asynchronous measurement, if there is one."""
        self._pending = None

    def finish(self) -> None:
        """Wait for the asynchronous measurement, if there is one; its multipliers take effect at their step."""
        if self._pending is None:
            return
        started, pending = time.perf_counter() - self._waited, self._pending
        try:
            found = pending.result()
        except RefreshError:
            self._pending = None
            raise
        self._pending = None
        self._apply(found, pending.step, self._delay, started)

    def _apply(self, found: Measurement, steps: int, delay: int, started: float) -> Refresh:
        """Compute the next multipliers from a measurement, and report."""
        if found.non_finite:
            findings = self._not_finite(found.non_finite, steps)
        else:
            self.multipliers.assign(found.fits, steps + delay)
            findings = self._no_effect(first=steps == 0)
        units = self.multipliers.units()
        seconds = time.perf_counter() - started
        refresh = Refresh(
            step=steps,
            delay=delay,
            units=units,
            measured=len(found.due),
            seconds=seconds,
            findings=(*findings, *find_no_convergence(self.history, units, self._recipe)),
        )
        self.history.append(refresh)
        _logger.debug("step %d: %d weights measured, imbalance %.3f", steps, refresh.measured, refresh.imbalance)
        for call in self._on_refresh if self._ranks.rank == 0 else ():
            call(refresh)
        return refresh

    def _not_finite(self, reason: str, steps: int) -> list[Finding]:
        """Return the finding, and warn once."""
        step = "the multipliers stay as they are until all weights are finite again"
        if not self._warned_non_finite:
            self._warned_non_finite = True
            warnings.warn(f"step {steps}: {reason}; {step}", NumericsWarning, stacklevel=3)
        return [make_finding("nan", reason, next_step=step, severity=Severity.ERROR)]

    def _no_effect(self, *, first: bool) -> list[Finding]:
        """Return the findings, and warn once on rank 0."""
        units = self.multipliers.units()
        of_multipliers = find_no_effect(units, self._recipe, first=first)
        findings = [*find_no_decay(self._levels[-1].param_groups, self._recipe), *of_multipliers]
        if findings and not self._warned_no_effect and not self._ranks.rank:
            self._warned_no_effect = True
            warnings.warn(explain_no_effect(findings, units, self._recipe), BalanceWarning, stacklevel=3)
        return findings


def _name(steps: int) -> str:
    return f"the refresh of the multipliers at step {steps}"
