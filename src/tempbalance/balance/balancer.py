"""The balancer: multiplies learning rates or weight decays inside ``optimizer.step``, and nowhere else.

Between steps every parameter group holds exactly what the scheduler put there, so any scheduler, logger or trainer goes
on as if nothing were there. All that the balancer remembers lies in the optimizer's own groups and state, so that
whatever saves the optimizer saves the balancer.
"""

from __future__ import annotations

import logging
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from tempbalance.analysis.distributed import ProcessGroup
from tempbalance.balance.async_measurement import AsyncMeasurement
from tempbalance.balance.groups import Groups, unmeasured
from tempbalance.balance.history import Refresh, UnitState
from tempbalance.balance.initial_weights import InitialWeights
from tempbalance.balance.measuring import Measurement, Measurer, TrackedWeight
from tempbalance.balance.param_groups import KEY, split_groups
from tempbalance.balance.plan import make_plan
from tempbalance.balance.recipe import Every, Recipe
from tempbalance.balance.scaled_options import Applied
from tempbalance.balance.snapshot import Snapshot
from tempbalance.balance.state import pack, unpack
from tempbalance.balance.unfreezing import Unfreezing, check_unfreezing
from tempbalance.balance.validation import (
    Agreement,
    check_alike,
    check_delay,
    check_model,
    check_optimizer,
    check_recipe,
    extend_schedulers,
    unwrap,
)
from tempbalance.errors import BalanceError, NumericsWarning, RefreshError
from tempbalance.layers import local, mesh_ranks, parameter_names, reshard
from tempbalance.metrics import imbalance
from tempbalance.types import Skipped

__all__ = ["Balancer"]

_logger = logging.getLogger("tempbalance")
_balancers: weakref.WeakKeyDictionary[Optimizer, weakref.ref[Balancer]] = weakref.WeakKeyDictionary()


class Balancer:
    """Balances training: less learning rate (or weight decay) to heavy-tailed units, more to light-tailed ones.

    One line, after the optimizer is built and before the scheduler; nothing else in the loop changes. The parameter
    groups are split so that each unit has its own, with every option and all state kept. Before each optimizer step the
    learning rate of each group is multiplied by its unit's multiplier, and put back after it: the rate that applies is
    exactly multiplier times scheduled rate, whatever the scheduler.

    Alphas, multipliers and counters travel in ``optimizer.state_dict()``; a run that is resumed from it goes on bit for
    bit. With every multiplier 1 a run is bit for bit one without tempbalance. Where ``torch.distributed`` is set up,
    all its processes must train the same model (DDP, FSDP2); they share the work.

    Attributes:
        optimizer: The optimizer, with its groups split.
        recipe: What is measured, how it is mapped, what is multiplied.
        skipped: Weights that are not judged, and why; they keep the base value.
        history: One entry per refresh of this process.
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
        """Put a balancer on an optimizer.

        Args:
            optimizer: Any optimizer of ``torch.optim`` or derived from its base class; a wrapper with an ``optimizer``
                inside (Accelerate) is looked through.
            model: The model it trains, wrapped (``torch.compile``, DDP, PEFT) or not.
            recipe: What to do; see ``tempbalance.recipes``.
            steps_per_epoch: Optimizer steps per epoch, ``len(loader) // accumulation``; recipes that count in
                epochs need it.
            exact: Whether to measure every weight at every refresh, even where the recipe has a tolerance. Saves the
                memory of one copy of the judged weights.
            delay: Optimizer steps from a refresh to its effect. 0 measures at once, while training waits. More measures
                copies of the weights in a thread beside training (on a GPU on a stream of its own), and takes what is
                found exactly so many steps later, whenever it was ready. For one process; see the guide.
            schedulers: Schedulers that exist already; better build them after the balancer.
            on_refresh: Called with each ``Refresh`` on rank 0, such as the loggers in ``tempbalance.integrations``.
            process_group: The processes that train this model together; by default all.

        Raises:
            BalanceError: Optimizer, model and recipe do not fit together; the message says what to do.

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
        self._tolerance = 0.0 if exact else recipe.tolerance
        self._delay = delay
        self._pending: AsyncMeasurement[Measurement] | None = None
        self._on_refresh = list(on_refresh)
        self._applied = Applied()
        self._idle = False
        self._warned: set[str] = set()
        self._ranks = ProcessGroup(process_group)
        what = "setting up the balancer"
        check_alike(self._ranks.run_on_all_ranks(lambda: self._set_up(optimizer, model, steps_per_epoch), what))
        origins = [group[KEY].pop("origin") for group in self._new_groups]
        self._ranks.run_on_all_ranks(lambda: extend_schedulers(self.optimizer, origins, schedulers), what)
        self.optimizer.param_groups[:] = self._new_groups
        del self._new_groups
        self._groups = Groups(self.optimizer, self._plan, recipe)
        self._references = Snapshot(self.optimizer)
        self._start = InitialWeights(self.optimizer)
        self._measurer = Measurer(
            model,
            replace(recipe, tolerance=self._tolerance),
            self._plan.measured,
            references=self._references,
            start=self._start,
            ranks=self._ranks,
        )
        if recipe.spectrum_of == "update":
            self._start.watch(self._measurer.sources())
        parameters = parameter_names(model)
        parts = [
            [parameters[name] for name in depth_group] for depth_group in self._plan.depth_groups if recipe.unfreeze
        ]
        self._unfreezing = Unfreezing(model, parts, self._freed_every)
        # The hooks hold the balancer; the optimizer holds the hooks. Under torch.compile they stay Python.
        before, after = (torch.compiler.disable(hook) for hook in (self._before, self._after))  # type: ignore[no-untyped-call]
        self._handles = [
            self.optimizer.register_step_pre_hook(before),
            self.optimizer.register_step_post_hook(after),
            self.optimizer.register_state_dict_pre_hook(lambda _: self._finish()),
            self.optimizer.register_state_dict_post_hook(pack),
            self.optimizer.register_load_state_dict_pre_hook(unpack),
            self.optimizer.register_load_state_dict_post_hook(self._loaded),
        ]
        _balancers[self.optimizer] = weakref.ref(self)

    def _set_up(self, optimizer: Any, model: nn.Module, steps_per_epoch: int | None) -> Agreement:
        """Check and plan everything before the optimizer is touched; what it returns must be alike on all processes."""
        self.optimizer = unwrap(optimizer)
        check_optimizer(self.optimizer, self.recipe)
        other = _balancers.get(self.optimizer)
        if other is not None and other() is not None:
            raise BalanceError("this optimizer has a balancer already: call its remove() first")
        check_model(model)
        self._interval = self._steps_in(self.recipe.every, steps_per_epoch)
        check_delay(self._delay, self._interval - self.recipe.every.early % self._interval, self._ranks.size)
        reshard(model)
        parameters = parameter_names(model)
        ours = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        trained = {name: p for name, p in parameters.items() if id(p) in ours}
        if not trained:
            raise BalanceError(
                "the optimizer has no parameter of this model: build it from model.parameters() of the same model "
                "(after any call that replaces them, such as fully_shard or model.to(...) of some devices)"
            )
        if not self._ranks.contains(process for p in trained.values() for process in mesh_ranks(p)):
            raise BalanceError(
                "the model is sharded over processes outside of the process_group: pass a group of all that hold it"
            )
        self._plan = make_plan(model, self.recipe, {name for name, p in trained.items() if p.requires_grad})
        unfreeze = self.recipe.unfreeze
        if unfreeze is not None:
            check_unfreezing(model, self._ranks.size)
        self._freed_every = 1 if unfreeze is None else self._steps_in(unfreeze, steps_per_epoch)
        groups = split_groups(self.optimizer.param_groups, self._plan.units, parameters)
        for group in groups:
            group[KEY] |= unmeasured()
        self.skipped: tuple[Skipped, ...] = self._plan.skipped
        self._new_groups = groups
        first, interval, tolerance = self.recipe.start, self._interval, self._tolerance
        return Agreement(
            groups=[
                [(name, tuple(p.shape)) for name, p in zip(g[KEY]["names"], g["params"], strict=True)] for g in groups
            ],
            schedule=f"{self.recipe.name} every {interval} steps from step {first} on, tolerance {tolerance}",
        )

    def _steps_in(self, every: Every, steps_per_epoch: int | None) -> int:
        interval = every.interval(steps_per_epoch)
        if interval is None:
            raise BalanceError(
                f"{self.recipe.name} counts in epochs: pass steps_per_epoch, the number of optimizer steps in an epoch "
                "(len(loader) // gradient accumulation)"
            )
        return interval

    def __repr__(self) -> str:
        """The recipe and how many units it balances."""
        return (
            f"Balancer({self.recipe.name}, {len(self._plan.units)} {self.recipe.unit}s, every {self._interval} steps)"
        )

    @property
    def units(self) -> list[UnitState]:
        """Every unit with its alpha and multiplier as of now, in the order of the model."""
        return self._groups.units()

    @property
    def imbalance(self) -> float:
        """Standard deviation of alpha over the judged units; NaN before the first refresh."""
        return imbalance(unit.alpha for unit in self.units)

    def refresh(self) -> Refresh:
        """Measure now and set the multipliers, besides the recipe's own times. In distributed training a collective.

        Training waits for it, and what is still being measured beside training is given up.

        Returns:
            What was found.

        Raises:
            RefreshError: It failed on one of several processes; the same message on all. (A process that is alone
                raises what went wrong.)
        """
        self._pending = None
        found = self._refresh(delay=0)
        self._groups.settle()
        return found

    def remove(self) -> None:
        """Take the balancer off: its hooks, and what it wrote into groups and state. The groups stay split."""
        self._applied.put_back()
        self._pending = None
        for handle in self._handles:
            handle.remove()
        for group in self._groups:
            del group[KEY]
        self._references.remove()
        self._start.remove()
        self._unfreezing.end()
        _balancers.pop(self.optimizer, None)

    # What happens at every step

    def _before(self, _optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        self._applied.put_back()  # of a step that raised
        steps = self._groups.steps
        if steps == 0 and self._tolerance:  # so that every checkpoint holds the same tensors
            self._references.keep(self._measurer.sources())
        self._start.begin()
        self._idle = self._is_idle()
        if self._idle:
            return
        if self._pending is not None and steps >= self._pending.step + self._delay:
            self._finish()
        self._groups.settle()
        if self._is_due(steps) and self._delay:
            self._begin()
        elif self._is_due(steps):
            self._refresh(delay=int(self.recipe.delay))
            self._groups.settle()
        for group in self._groups:
            multiplier = self._groups.multiplier(group, steps)
            if multiplier != 1.0:
                for key in self.recipe.keys:
                    self._applied.multiply(group, key, multiplier)
        for group in self.optimizer.param_groups:
            if KEY not in group:
                self._warn_late(group)

    def _after(self, _optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        self._applied.put_back()
        self._references.store()
        self._start.store()
        if not self._idle:
            self._groups.count_step()
            self._unfreezing.at(self._groups.steps)

    def _loaded(self, _optimizer: Optimizer) -> None:
        self._pending = None
        self._start.loaded()
        self._unfreezing.at(self._groups.steps)

    def _is_idle(self) -> bool:
        """Whether a step can change nothing; such a step does not count."""
        # torch.distributed.checkpoint sets a state up by a step with all rates and all gradients zero.
        groups = self.optimizer.param_groups
        if self.optimizer.state or any(float(group.get("lr", 1.0)) != 0 for group in groups):
            return False
        idle = not any(bool(local(p.grad).any()) for g in groups for p in g["params"] if p.grad is not None)
        return all(self._ranks.all_gather(idle)) if self._measurer.sharded else idle  # a shard may be empty

    def _is_due(self, steps: int) -> bool:
        since = steps - self.recipe.start
        return since == 0 or (since > 0 and (since + self.recipe.every.early) % self._interval == 0)

    def _warn_late(self, group: Mapping[str, Any]) -> None:
        if "late" not in self._warned:
            self._warned.add("late")
            _logger.warning(
                "a parameter group (%d parameters) was added after the balancer: it keeps its own rate; to balance it, "
                "call balancer.remove() and build a new Balancer",
                len(group["params"]),
            )

    # What happens at a refresh

    @torch.no_grad()
    def _refresh(self, *, delay: int) -> Refresh:
        """Measure, while training waits, what takes effect so many steps later."""
        began, steps = time.perf_counter(), self._groups.steps
        found = self._measurer.measure(self._groups.known(), _name(steps))
        if self._tolerance and not found.non_finite:
            self._keep(found.due)
        return self._take(found, steps, delay, began)

    @torch.no_grad()
    def _begin(self) -> None:
        """Measure beside training; until that is done, nothing is known of what is being measured."""
        began, steps = time.perf_counter(), self._groups.steps
        begun = self._measurer.begin(self._groups.known(), _name(steps))
        if self._tolerance:
            self._keep(begun.due)
        self._groups.forget({judged.weight.name for judged in begun.due})
        self._pending = AsyncMeasurement(begun.finish, begun.copies, step=steps)
        self._waited = time.perf_counter() - began

    def _finish(self) -> None:
        """Take what was measured beside training, if anything; its multipliers wait for their step."""
        if self._pending is None:
            return
        began, pending = time.perf_counter() - self._waited, self._pending
        try:
            found = pending.result()
        except RefreshError:
            self._pending = None
            raise
        self._pending = None
        self._take(found, pending.step, self._delay, began)

    def _keep(self, measured: Iterable[TrackedWeight]) -> None:
        self._references.keep(parameter for judged in measured for parameter in judged.sources.values())

    def _take(self, found: Measurement, steps: int, delay: int, began: float) -> Refresh:
        """Set the next multipliers by what was found at a step, and tell."""
        if found.non_finite:
            self._warn_non_finite(steps, found.non_finite)
        else:
            self._groups.assign(found.known, steps + delay)
        seconds = time.perf_counter() - began
        refresh = Refresh(step=steps, delay=delay, units=self.units, measured=len(found.due), seconds=seconds)
        self.history.append(refresh)
        _logger.debug("step %d: %d weights measured, imbalance %.3f", steps, refresh.measured, refresh.imbalance)
        self._ranks.run_on_all_ranks(lambda: self._report(refresh), _name(steps), RefreshError)
        return refresh

    def _report(self, refresh: Refresh) -> None:
        if self._ranks.rank == 0:
            for call in self._on_refresh:
                call(refresh)

    def _warn_non_finite(self, steps: int, message: str) -> None:
        if "non-finite" not in self._warned:
            self._warned.add("non-finite")
            warnings.warn(
                f"step {steps}: {message}; the multipliers stay as they are until all weights are finite again",
                NumericsWarning,
                stacklevel=2,
            )


def _name(steps: int) -> str:
    return f"the refresh of the multipliers at step {steps}"
