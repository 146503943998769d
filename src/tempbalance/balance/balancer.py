"""The balancer: multiplies learning rates or weight decays inside ``optimizer.step``.

Between steps every parameter group has exactly the values that the scheduler set, so schedulers, loggers and trainers
work unchanged. The state of the balancer is in the optimizer's groups and state, and is saved with them.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from tempbalance.analysis.distributed import ProcessGroup
from tempbalance.balance.async_measurement import AsyncMeasurement
from tempbalance.balance.groups import Groups
from tempbalance.balance.history import Refresh, UnitState
from tempbalance.balance.initial_weights import InitialWeights
from tempbalance.balance.measuring import Measurement, Measurer
from tempbalance.balance.preparation import BALANCED, prepare
from tempbalance.balance.recipe import Recipe
from tempbalance.balance.scaled_options import ScaledOptions
from tempbalance.balance.snapshot import Snapshot
from tempbalance.balance.state import KEY, pack, unpack
from tempbalance.balance.tracking import Tracker
from tempbalance.balance.unfreezing import Unfreezing
from tempbalance.balance.validation import check_recipe
from tempbalance.errors import NumericsWarning, RefreshError
from tempbalance.layers import local_tensor, parameter_names
from tempbalance.metrics import imbalance
from tempbalance.types import Skipped

__all__ = ["Balancer"]

_logger = logging.getLogger("tempbalance")


class Balancer:
    """Balances training: lower learning rate (or weight decay) for heavy-tailed units, higher for light-tailed ones.

    Create it after the optimizer and before the scheduler; nothing else in the training loop changes. The parameter
    groups are split so that each unit has its own, with all options and state kept. Before each optimizer step the
    learning rate of each group is multiplied by the multiplier of its unit, and restored afterwards: the learning rate
    of a step is the multiplier times the scheduled rate, with any scheduler.

    Alphas, multipliers and counters are in ``optimizer.state_dict()``; a run resumed from it is bit-identical to an
    uninterrupted one. With every multiplier 1 a run is bit-identical to one without tempbalance. In distributed
    training (DDP, FSDP2) all processes must train the same model; they share the measurements.

    Attributes:
        optimizer: The optimizer, with its groups split.
        recipe: The balancing method.
        skipped: Weights that are not measured, with the reason; they keep the base value.
        history: One entry per refresh in this process.
    """

    def __init__(  # noqa: PLR0913  all but the first three are options by keyword
        self,
        optimizer: Optimizer,
        model: nn.Module,
        recipe: Recipe,
        *,
        steps_per_epoch: int | None = None,
        exact: bool = False,
        delay: int = 0,
        schedulers: Sequence[Any] = (),
        on_refresh: Iterable[Callable[[Refresh], object]] = (),
        process_group: Any = None,
    ) -> None:
        """Balance an optimizer.

        Args:
            optimizer: Any optimizer derived from ``torch.optim.Optimizer``; a wrapper with an attribute ``optimizer``
                (Accelerate) is unwrapped.
            model: The model it trains, wrapped (``torch.compile``, DDP, PEFT) or not.
            recipe: The method; see ``tempbalance.recipes``.
            steps_per_epoch: Optimizer steps per epoch, ``len(loader) // accumulation``; required by recipes that count
                in epochs.
            exact: Whether to measure every weight at every refresh, even if the recipe has a tolerance. This saves the
                memory of one copy of the measured weights.
            delay: Optimizer steps from a refresh to its effect. With 0, training waits for the measurement. With more,
                copies of the weights are measured asynchronously in one thread (on a GPU on a separate stream), and the
                result takes effect exactly ``delay`` steps later. For a single process only.
            schedulers: Schedulers that were built before the balancer; build them after it if possible.
            on_refresh: Functions called with each ``Refresh`` on rank 0, such as the loggers in
                ``tempbalance.integrations``.
            process_group: The processes that train this model together; by default all.

        Raises:
            BalanceError: Optimizer, model and recipe do not fit together; the message contains the fix.

        Example:
            >>> import tempbalance as tb
            >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
            >>> optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
            >>> recipe = tb.Recipe(name="mine", assignment=tb.assign.Linear(0.5, 1.5))
            >>> balancer = Balancer(optimizer, model, recipe)
            >>> model(torch.randn(8, 64)).sum().backward()
            >>> optimizer.step()
            >>> sorted(unit.multiplier for unit in balancer.units), optimizer.param_groups[0]["lr"]
            ([0.5, 1.5], 0.001)
        """
        check_recipe(recipe)
        self.recipe = recipe
        self.history: list[Refresh] = []
        self._delay = delay
        self._pending: AsyncMeasurement[Measurement] | None = None
        self._on_refresh = list(on_refresh)
        self._scaled = ScaledOptions()
        self._idle = False
        self._warned_late = self._warned_non_finite = False
        self._ranks = ProcessGroup(process_group)
        effective = replace(recipe, tolerance=0.0) if exact else recipe
        ready = prepare(
            optimizer,
            model,
            effective,
            self._ranks,
            steps_per_epoch=steps_per_epoch,
            delay=delay,
            schedulers=schedulers,
        )
        plan = ready.plan
        self.optimizer = ready.optimizer
        self.optimizer.param_groups[:] = ready.groups
        self.skipped: tuple[Skipped, ...] = plan.skipped
        self._num_units = len(plan.units)
        self._interval = ready.interval
        self._groups = Groups(self.optimizer, plan, recipe)
        self._snapshot = Snapshot(self.optimizer)
        self._initial = InitialWeights(self.optimizer)
        self._tracker = Tracker(model, effective, plan.measured, snapshot=self._snapshot, ranks=self._ranks)
        self._measurer = Measurer(effective, self._tracker, self._initial, self._ranks)
        if recipe.spectrum_of == "update":
            self._initial.watch(self._tracker.parameters())
        parameters = parameter_names(model)
        parts = [[parameters[name] for name in group] for group in plan.depth_groups if recipe.unfreeze]
        self._unfreezing = Unfreezing(model, parts, ready.unfreeze_interval)
        # The optimizer refers to its hooks, and they to the balancer. Hooks are not compiled by torch.compile.
        before, after = (torch.compiler.disable(hook) for hook in (self._before, self._after))  # type: ignore[no-untyped-call]
        self._handles = [
            self.optimizer.register_step_pre_hook(before),
            self.optimizer.register_step_post_hook(after),
            self.optimizer.register_state_dict_pre_hook(lambda _: self._finish()),
            self.optimizer.register_state_dict_post_hook(pack),
            self.optimizer.register_load_state_dict_pre_hook(unpack),
            self.optimizer.register_load_state_dict_post_hook(self._loaded),
        ]
        BALANCED.add(self.optimizer)

    def __repr__(self) -> str:
        """Return the name of the recipe, the number of units and the interval."""
        return f"Balancer({self.recipe.name}, {self._num_units} {self.recipe.unit}s, every {self._interval} steps)"

    @property
    def units(self) -> list[UnitState]:
        """Every unit with its alpha and multiplier, in the order of the model."""
        return self._groups.units()

    @property
    def imbalance(self) -> float:
        """Standard deviation of alpha over the units with an alpha; NaN before the first refresh."""
        return imbalance(unit.alpha for unit in self.units)

    def refresh(self) -> Refresh:
        """Measure and set the multipliers now. In distributed training a collective.

        Training waits for it; an asynchronous measurement in progress is discarded.

        Returns:
            The result.

        Raises:
            RefreshError: It failed on one of several processes; the same message on all. (A single process raises the
                original error.)
        """
        self._pending = None
        refresh = self._refresh(delay=0)
        self._groups.settle()
        return refresh

    def remove(self) -> None:
        """Remove the hooks, and the state from the optimizer. The groups stay split."""
        self._scaled.restore()
        self._pending = None
        for handle in self._handles:
            handle.remove()
        for group in self._groups:
            del group[KEY]
        self._snapshot.remove()
        self._initial.remove()
        self._unfreezing.end()
        BALANCED.discard(self.optimizer)

    # Hooks of every step

    def _before(self, _optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        self._scaled.restore()  # after a step that raised
        steps = self._groups.steps
        if steps == 0:  # so that every checkpoint has the same tensors
            self._tracker.keep()
        self._initial.copy_missing()
        self._idle = self._is_idle()
        if self._idle:
            return
        if self._pending is not None and steps >= self._pending.step + self._delay:
            self._finish()
        self._groups.settle()
        since = steps - self.recipe.start
        if since >= 0 and self.recipe.every.is_due(since, self._interval):
            if self._delay:
                self._start()
            else:
                self._refresh(delay=self.recipe.effect_after)
                self._groups.settle()
        for group in self._groups:
            multiplier = self._groups.multiplier(group, steps)
            if multiplier != 1.0:
                for key in self.recipe.keys:
                    self._scaled.multiply(group, key, multiplier)
        for group in self.optimizer.param_groups:
            if KEY not in group:
                self._warn_late(group)

    def _after(self, _optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        self._scaled.restore()
        self._snapshot.store()
        self._initial.store()
        if not self._idle:
            self._groups.count_step()
            self._unfreezing.at(self._groups.steps)

    def _loaded(self, _optimizer: Optimizer) -> None:
        self._pending = None
        self._initial.loaded()
        self._unfreezing.at(self._groups.steps)

    def _is_idle(self) -> bool:
        """Return whether a step cannot change any parameter. Such a step is not counted."""
        # torch.distributed.checkpoint initialises a state by a step with all learning rates and gradients zero.
        groups = self.optimizer.param_groups
        if self.optimizer.state or any(float(group.get("lr", 1.0)) != 0 for group in groups):
            return False
        idle = not any(bool(local_tensor(p.grad).any()) for g in groups for p in g["params"] if p.grad is not None)
        return all(self._ranks.all_gather(idle)) if self._tracker.sharded else idle  # a shard may be empty

    def _warn_late(self, group: Mapping[str, Any]) -> None:
        if not self._warned_late:
            self._warned_late = True
            _logger.warning(
                "a parameter group (%d parameters) was added after the balancer: it keeps its own learning rate; to "
                "balance it, call balancer.remove() and build a new Balancer",
                len(group["params"]),
            )

    # Refreshes

    @torch.no_grad()
    def _refresh(self, *, delay: int) -> Refresh:
        """Measure while training waits; the multipliers take effect after ``delay`` steps."""
        started, steps = time.perf_counter(), self._groups.steps
        return self._apply(self._measurer.measure(self._groups.fits(), _name(steps)), steps, delay, started)

    @torch.no_grad()
    def _start(self) -> None:
        """Start an asynchronous measurement; until it is finished, its weights have no fit."""
        started, steps = time.perf_counter(), self._groups.steps
        prepared = self._measurer.prepare(self._groups.fits(), _name(steps))
        self._groups.forget({tracked.weight.name for tracked in prepared.due})
        self._pending = AsyncMeasurement(prepared.finish, prepared.copies, step=steps)
        self._waited = time.perf_counter() - started

    def _finish(self) -> None:
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
        if not found.non_finite:
            self._groups.assign(found.fits, steps + delay)
        elif not self._warned_non_finite:
            self._warned_non_finite = True
            text = "the multipliers stay as they are until all weights are finite again"
            warnings.warn(f"step {steps}: {found.non_finite}; {text}", NumericsWarning, stacklevel=2)
        seconds = time.perf_counter() - started
        refresh = Refresh(step=steps, delay=delay, units=self.units, measured=len(found.due), seconds=seconds)
        self.history.append(refresh)
        _logger.debug("step %d: %d weights measured, imbalance %.3f", steps, refresh.measured, refresh.imbalance)
        self._ranks.run_on_all_ranks(lambda: self._report(refresh), _name(steps), RefreshError)
        return refresh

    def _report(self, refresh: Refresh) -> None:
        for call in self._on_refresh if self._ranks.rank == 0 else ():
            call(refresh)


def _name(steps: int) -> str:
    return f"the refresh of the multipliers at step {steps}"
