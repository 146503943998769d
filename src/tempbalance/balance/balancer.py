"""The balancer: multiplies learning rates or weight decays inside ``optimizer.step``.

Between steps the optimizer has exactly the groups that its user made, with the values that the scheduler set. Only
inside a step are they split by unit and multiplied. The state of the balancer is saved with that of the optimizer.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer

from tempbalance._files import RENDERERS
from tempbalance.analysis.distributed import ProcessGroup
from tempbalance.balance.history import Refresh, UnitState
from tempbalance.balance.preparation import BALANCED, prepare
from tempbalance.balance.recipe import Recipe
from tempbalance.balance.refreshing import Refresher
from tempbalance.balance.saved_state import SavedState
from tempbalance.balance.split_groups import SplitGroups
from tempbalance.balance.state import BalanceState
from tempbalance.balance.step_guard import StepGuard
from tempbalance.balance.unfreezing import Unfreezing
from tempbalance.balance.validation import check_recipe
from tempbalance.errors import BalanceError
from tempbalance.float32 import find_dtype
from tempbalance.layers import local_tensor, parameter_names
from tempbalance.metrics import imbalance
from tempbalance.types import Finding, Skipped

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["Balancer"]


class Balancer:
    """Balances training: lower learning rate (or weight decay) for heavy-tailed units, higher for light-tailed ones.

    Create it after the optimizer; nothing else in the training loop changes. Inside ``optimizer.step()`` the parameter
    groups are split by unit, and the learning rate of each is the multiplier of its unit times the scheduled rate.
    Before and after the step, also if it raises, ``optimizer.param_groups`` are the groups that you made: any scheduler
    works, built before or after, and so does code that addresses groups by number. Hooks that run after a step see your
    groups, too; only a step pre-hook that is registered after the balancer sees the split ones.

    Alphas, multipliers and counters are in ``optimizer.state_dict()``, under one key of its first group; a run resumed
    from it is bit-identical to an uninterrupted one. An optimizer without a balancer loads that state too, and a
    balanced one loads a state without that key and starts balancing afresh. With every multiplier 1 a run is
    bit-identical to one without tempbalance. In distributed training (DDP, FSDP2) all processes must train the same
    model; they share the measurements.

    A copy of a balanced optimizer (``copy.deepcopy``, pickle) is not balanced, and a warning says so.

    Attributes:
        optimizer: The optimizer whose steps are balanced: the one inside wrappers (Accelerate, SAM, Lookahead).
        recipe: The balancing method.
    """

    def __init__(  # noqa: PLR0913  all but the first three are options by keyword
        self,
        optimizer: Optimizer,
        model: nn.Module,
        recipe: Recipe,
        *,
        steps_per_epoch: Any = None,
        exact: bool = False,
        delay: int = 0,
        dtype: torch.dtype | str | None = None,
        on_refresh: Iterable[Callable[[Refresh], object]] = (),
        process_group: Any = None,
    ) -> None:
        """Balance an optimizer.

        Args:
            optimizer: Any optimizer derived from ``torch.optim.Optimizer``, or a wrapper around one.
            model: The model it trains, wrapped (``torch.compile``, DDP, PEFT) or not.
            recipe: The method; see ``tempbalance.recipes``.
            steps_per_epoch: Optimizer steps per epoch, ``len(loader) // accumulation``; or a loader; or a function that
                returns one of these. A loader or function is asked at the first refresh. Required by recipes that
                count in epochs.
            exact: Whether to measure every weight at every refresh, even if the recipe has a tolerance. This saves the
                memory of one copy of the measured weights.
            delay: Optimizer steps from a refresh to its effect. With 0, training waits for the measurement. With more,
                copies of the weights are measured asynchronously in one thread (on a GPU on a separate stream), and the
                result takes effect exactly ``delay`` steps later. For a single process only.
            dtype: ``"float32"`` measures in float32, as for ``analyze``; not for recipes with windows.
            on_refresh: Functions called with each ``Refresh`` on rank 0, such as the loggers in
                ``tempbalance.integrations``.
            process_group: The processes that train this model together; by default all.

        Raises:
            BalanceError: Optimizer, model and recipe do not fit together; the message contains the fix. The optimizer
                is then unchanged.

        Example:
            >>> import tempbalance as tb
            >>> from tempbalance.testing import matrix_with_spectrum, pareto_quantiles
            >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
            >>> for layer, alpha in ((model[0], 2.0), (model[2], 6.0)):
            ...     trained = matrix_with_spectrum(pareto_quantiles(64, alpha), (64, 64))
            ...     layer.weight = nn.Parameter(trained.float())
            >>> optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
            >>> recipe = tb.Recipe(name="mine", assignment=tb.assign.Linear(0.5, 1.5))
            >>> balancer = Balancer(optimizer, model, recipe)
            >>> model(torch.randn(8, 64)).sum().backward()
            >>> optimizer.step()
            >>> [unit.multiplier for unit in balancer.units], optimizer.param_groups[0]["lr"]
            ([0.5, 1.5], 0.001)
        """
        check_recipe(recipe)
        ranks = ProcessGroup(process_group)
        effective = replace(recipe, tolerance=0.0) if exact else recipe
        work = find_dtype(dtype, recipe.windows)
        ready = prepare(optimizer, model, effective, ranks, steps_per_epoch=steps_per_epoch, delay=delay)
        ready = ready._replace(dtype=work)
        self.recipe = recipe
        self.optimizer = ready.levels[-1]
        self._levels = ready.levels
        self._ranks = ranks
        self._running = ""  # the kind of step that is running: "step", "idle" or none
        self._nested = 0
        parameters = parameter_names(model)
        parts = [[parameters[name] for name in group] for group in ready.plan.depth_groups if recipe.unfreeze]
        self._groups = SplitGroups(self.optimizer, recipe.keys)
        self._refresher = Refresher(
            ready, self._groups, list(itertools.chain(*parts)), delay=delay, on_refresh=on_refresh
        )
        self._multipliers = self._refresher.multipliers
        self._saved = SavedState(
            ready,
            self._multipliers,
            self._groups,
            replan=self._refresher.replan,
            measure_soon=self._refresher.measure_soon,
        )
        self._saved.adopt()  # the last that may raise: model and optimizer are unchanged until here
        self._unfreezing = Unfreezing(model, parts, ready.schedule.unfreezing)
        self._guard = StepGuard(self.optimizer, self._end_step)
        # The optimizer refers to its hooks, and they to the balancer. Hooks are not compiled by torch.compile.
        before, after = (torch.compiler.disable(hook) for hook in (self._before, self._after))  # type: ignore[no-untyped-call]
        self._handles = [
            self.optimizer.register_step_pre_hook(before),
            self.optimizer.register_step_post_hook(after),
            *self._saved.register(before_save=self._refresher.finish, after_load=self._loaded),
        ]
        self.optimizer._optimizer_step_post_hooks.move_to_end(self._handles[1].id, last=False)  # type: ignore[attr-defined]
        BALANCED.add(self.optimizer)

    def __repr__(self) -> str:
        units = f"{len(self._multipliers.plan.units)} {self.recipe.unit}s"
        when = self._refresher.schedule if self._handles else "removed, or a copy"
        return f"Balancer({self.recipe.name}, {units}, {when})"

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy keeps: the results, without the hooks. A copy does not balance."""
        self._multipliers.state = self.state
        return {"recipe": self.recipe, "_multipliers": self._multipliers, "_past": self.history, "_handles": []}

    @property
    def history(self) -> list[Refresh]:
        """One entry per refresh in this process."""
        return self._refresher.history if self._handles else self._past

    @property
    def units(self) -> list[UnitState]:
        """Every unit with its alpha and multiplier, in the order of the model."""
        return self._multipliers.units()

    @property
    def state(self) -> BalanceState:
        """Everything that is saved with the optimizer's state, except for copies of weights."""
        is_copy = "_saved" not in vars(self)
        return self._multipliers.state if is_copy else self._saved.state(self._levels[0])

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Weights without an alpha, with the reason; they keep the base value, or get the multiplier of their unit."""
        return self._multipliers.skipped()

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What is wrong with the latest refresh (no effect, noise, alphas that did not come closer), or empty."""
        return self.history[-1].findings if self.history else ()

    @property
    def imbalance(self) -> float:
        """Standard deviation of alpha over the units with an alpha; NaN before the first refresh."""
        return imbalance(unit.alpha for unit in self.units)

    def plot(self) -> Figure:
        """Draw the alpha and the multiplier of each unit over the steps, from ``history``.

        Returns:
            A plotly figure.

        Raises:
            BalanceError: There was no refresh yet.
            MissingExtraError: plotly is not installed.
        """
        if not self.history:
            raise BalanceError("there was no refresh in this process: nothing can be drawn")
        return RENDERERS["plot"]("history_figure", self.history)

    def refresh(self) -> Refresh:
        """Measure and set the multipliers now. In distributed training a collective.

        Training waits for it; an asynchronous measurement in progress is discarded.

        Returns:
            The result.

        Raises:
            BalanceError: The balancer was removed, or is a copy.
            RefreshError: It failed on one of several processes; the same message on all. (A single process raises the
                original error.)
        """
        if not self._handles:
            raise BalanceError(
                "this balancer was removed from its optimizer, or is a copy: build a new Balancer to measure again"
            )
        self._saved.adopt()
        refresh = self._refresher.refresh()
        self._multipliers.settle()
        return refresh

    def remove(self) -> None:
        """Remove the hooks, and all tensors of the balancer from the state of the optimizer."""
        if not self._handles:
            return
        self._past = self.history
        self._refresher.discard()
        self._groups.leave()
        self._guard.remove()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._refresher.snapshot.remove()
        self._refresher.initial.remove()
        self._unfreezing.end()
        BALANCED.discard(self.optimizer)

    # Hooks of every step

    def _before(self, _optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        if self._groups.inside and self._guard.active:  # the step of a base class, called by an overridden step
            self._nested += 1
            return None
        self._end_step()  # of a step that raised, if other code has put its own step in the place of the guarded one
        self._saved.adopt()
        self._saved.catch_up()
        if self._multipliers.state.steps == 0:  # so that every checkpoint has the same tensors
            self._refresher.tracker.keep()
        self._refresher.copy_initial()
        if self._is_idle():
            self._running = "idle"
            return None
        self._refresher.before_step()
        if not self._handles:  # a function of the user has removed the balancer
            return None
        self._running = "step"
        self._groups.enter(self._multipliers.current())
        return self._with_closure(args, kwargs)

    def _after(self, _optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        if self._nested:
            self._nested -= 1
            return
        running = self._running
        self._end_step()
        if not running or not self._handles:  # the step of a base class without the guard; or the balancer is removed
            return
        self._refresher.snapshot.store()
        self._refresher.initial.store()
        if running == "step":
            self._multipliers.state.steps += 1
            self._unfreezing.at(self._multipliers.state.steps)
        else:
            self._saved.put_into_groups()

    def _end_step(self) -> None:
        """Put the user's groups back, also after a step that raised."""
        self._groups.leave()
        self._running, self._nested = "", 0

    def _with_closure(self, args: Any, kwargs: Any) -> Any:
        """Return the arguments of a step with a closure that runs with the user's groups; None without a closure."""
        if len(args) > 1 and callable(args[1]):
            return (args[0], self._outside(args[1]), *args[2:]), kwargs
        if callable(kwargs.get("closure")):
            return args, {**kwargs, "closure": self._outside(kwargs["closure"])}
        return None

    def _outside(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        def outside() -> Any:
            """Call the closure of the user with the user's groups; if it raises, they stay."""
            self._groups.leave()
            result = closure()
            if self._handles:  # else the closure has removed the balancer
                self._groups.enter(self._multipliers.current())
            return result

        return outside

    def _is_idle(self) -> bool:
        """Return whether a step cannot change any parameter. Such a step is not counted."""
        # torch.distributed.checkpoint initialises a state by a step with all learning rates and gradients zero.
        groups = self.optimizer.param_groups
        if self.optimizer.state or any(group.get("lr", 1.0) != 0 for group in groups):
            return False
        idle = not any(bool(local_tensor(p.grad).any()) for g in groups for p in g["params"] if p.grad is not None)
        return all(self._ranks.all_gather(idle)) if self._refresher.tracker.sharded else idle  # a shard may be empty

    def _loaded(self) -> None:
        self._refresher.discard()
        self._refresher.initial.loaded()
        self._unfreezing.at(self._multipliers.state.steps)
