"""The balancer: multiplies learning rates or weight decays inside ``optimizer.step``, and nowhere else.

Between steps every parameter group holds exactly what the scheduler put there, so any scheduler, logger or trainer goes
on as if nothing were there. All that the balancer remembers lies in the optimizer's own groups and state, so that
whatever saves the optimizer saves the balancer.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tempbalance.distributed import Ranks, share
from tempbalance.errors import BalanceError, NonFiniteError, NumericsWarning, RefreshError, TempBalanceError
from tempbalance.fitting import Fitted, fit_weights
from tempbalance.layers import Unit, Weight, find_weights, is_sharded, parameter_names, sources_of
from tempbalance.matrices import matrix_shape
from tempbalance.optim.checks import (
    check_loaded,
    check_model,
    check_optimizer,
    check_recipe,
    extend_schedulers,
    unwrap,
)
from tempbalance.optim.history import Refresh, UnitState
from tempbalance.optim.motion import References
from tempbalance.optim.param_groups import KEY, split_groups
from tempbalance.optim.plan import make_plan
from tempbalance.optim.recipe import Recipe
from tempbalance.pooling import WindowedFit
from tempbalance.types import Skipped, Status

__all__ = ["Balancer"]

_logger = logging.getLogger("tempbalance")
_balancers: weakref.WeakKeyDictionary[Optimizer, weakref.ref[Balancer]] = weakref.WeakKeyDictionary()


class _Measured(NamedTuple):
    """What is known of one weight: alpha (None where there is no fit), and how far it may move before that changes."""

    alpha: float | None
    radius: float


class _Applied(NamedTuple):
    """An option of a group that is multiplied for the length of one step, and what to put back."""

    group: dict[str, Any]
    key: str
    original: Any
    applied: Any


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
            schedulers: Schedulers that exist already; better build them after the balancer.
            on_refresh: Called with each ``Refresh`` on rank 0, such as the loggers in ``tempbalance.integrations``.
            process_group: The processes that train this model together; by default all.

        Raises:
            BalanceError: Optimizer, model and recipe do not fit together; the message says what to do.

        Example:
            >>> import tempbalance as tb
            >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
            >>> optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
            >>> recipe = tb.Recipe(name="mine", assignment=tb.Linear(0.5, 1.5))
            >>> balancer = Balancer(optimizer, model, recipe)
            >>> model(torch.randn(8, 64)).sum().backward()
            >>> optimizer.step()
            >>> sorted(unit.multiplier for unit in balancer.units), optimizer.param_groups[0]["lr"]
            ([0.5, 1.5], 0.001)
        """
        check_recipe(recipe)
        optimizer = unwrap(optimizer)
        check_optimizer(optimizer, recipe.keys)
        other = _balancers.get(optimizer)
        if other is not None and other() is not None:
            raise BalanceError("this optimizer has a balancer already: call its remove() first")
        self._ranks = Ranks(process_group)
        check_model(model)
        self._interval = recipe.every.interval(steps_per_epoch)
        if self._interval is None:
            raise BalanceError(
                f"{recipe.name} counts in epochs: pass steps_per_epoch, the number of optimizer steps in an epoch "
                "(len(loader) // gradient accumulation)"
            )
        parameters = parameter_names(model)
        ours = {id(p) for group in optimizer.param_groups for p in group["params"]}
        trained = {name for name, p in parameters.items() if id(p) in ours}
        if not trained:
            raise BalanceError(
                "the optimizer has no parameter of this model: build it from model.parameters() of the same model "
                "(after any call that replaces them, such as fully_shard or model.to(...) of some devices)"
            )
        movable = {name for name in trained if parameters[name].requires_grad}
        plan = make_plan(model, recipe, movable)
        groups = split_groups(optimizer.param_groups, plan.units, parameters)
        layouts = self._ranks.exchange([group[KEY]["names"] for group in groups])
        if any(layout != layouts[0] for layout in layouts):
            raise BalanceError(
                "the processes train different models or parameters, so their alphas cannot be shared: pass the "
                "process_group of those that train this one"
            )
        extend_schedulers(optimizer, [group[KEY].pop("origin") for group in groups], schedulers)
        self.optimizer = optimizer
        self.recipe = recipe
        self.skipped: tuple[Skipped, ...] = plan.skipped
        self.history: list[Refresh] = []
        self._model = model
        self._units: dict[str, Unit] = {unit.name: unit for unit in plan.units}
        self._lightest = plan.lightest
        self._tolerance = 0.0 if exact else recipe.tolerance
        self._references = References(optimizer)
        self._on_refresh = list(on_refresh)
        self._applied: list[_Applied] = []
        self._warned: set[str] = set()
        for group in groups:
            group[KEY] |= {"alpha": None, "multiplier": 1.0, "from": 1.0, "refreshed": None, "steps": 0, "weights": {}}
        optimizer.param_groups[:] = groups
        # The hooks hold the balancer; the optimizer holds the hooks. Under torch.compile they stay Python.
        before, after = (torch.compiler.disable(hook) for hook in (self._before, self._after))  # type: ignore[no-untyped-call]
        self._handles = [
            optimizer.register_step_pre_hook(before),
            optimizer.register_step_post_hook(after),
            optimizer.register_load_state_dict_pre_hook(check_loaded),
        ]
        _balancers[optimizer] = weakref.ref(self)

    def __repr__(self) -> str:
        """The recipe and how many units it balances."""
        return f"Balancer({self.recipe.name}, {len(self._units)} {self.recipe.unit}s, every {self._interval} steps)"

    @property
    def units(self) -> list[UnitState]:
        """Every unit with its alpha and multiplier as of now, in the order of the model."""
        states = {group[KEY]["unit"]: group[KEY] for group in self._groups()}
        return [_unit_state(name, states[name]) for name in self._units if name in states]

    @property
    def imbalance(self) -> float:
        """Standard deviation of alpha over the judged units; NaN before the first refresh."""
        return Refresh(step=self._steps, units=self.units, measured=0, seconds=0.0).imbalance

    def refresh(self) -> Refresh:
        """Measure now and set the multipliers, besides the recipe's own times. In distributed training a collective.

        Returns:
            What was found.

        Raises:
            RefreshError: It failed, on this or on another process.
        """
        found = self._refresh(self._steps)
        self._settle(self._steps)
        return found

    def remove(self) -> None:
        """Take the balancer off: its hooks, and what it wrote into groups and state. The groups stay split."""
        self._restore()
        for handle in self._handles:
            handle.remove()
        for group in self._groups():
            del group[KEY]
        self._references.remove()
        _balancers.pop(self.optimizer, None)

    # What happens at every step

    def _before(self, _optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        self._restore()  # of a step that raised
        steps = self._steps
        if self._is_due(steps):
            self._refresh(steps)
            if not self.recipe.delay:
                self._settle(steps)
        for group in self.optimizer.param_groups:
            if KEY not in group:
                self._warn_late(group)
                continue
            multiplier = self._multiplier(group[KEY], steps)
            if multiplier != 1.0:
                self._applied += [_multiply(group, key, multiplier) for key in self.recipe.keys]

    def _after(self, _optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        self._restore()
        self._settle(self._steps + 1)
        self._references.store()
        for group in self._groups():
            group[KEY]["steps"] += 1

    def _groups(self) -> Iterator[dict[str, Any]]:
        return (group for group in self.optimizer.param_groups if KEY in group)

    @property
    def _steps(self) -> int:
        return int(next(self._groups())[KEY]["steps"])

    def _restore(self) -> None:
        for group, key, original, applied in self._applied:
            if isinstance(original, Tensor):
                group[key].copy_(original)
            elif group[key] == applied:  # else somebody has set it since a step that raised
                group[key] = original
        self._applied.clear()

    def _is_due(self, steps: int) -> bool:
        assert self._interval is not None
        since = steps - self.recipe.start
        return since == 0 or (since > 0 and (since + self.recipe.every.early) % self._interval == 0)

    def _multiplier(self, state: Mapping[str, Any], steps: int) -> float:
        """The multiplier of a group at a step, on its way from the old to the new one."""
        target: float = state["multiplier"]
        refreshed: int | None = state["refreshed"]
        if refreshed is None or steps - refreshed + 1 >= self.recipe.ramp:
            return target
        old: float = state["from"]
        return old + (target - old) * (steps - refreshed + 1) / self.recipe.ramp

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
    def _refresh(self, steps: int) -> Refresh:
        began = time.perf_counter()
        weights: dict[str, Weight] = {}
        due: list[str] = []
        found: dict[str, _Measured] = {}
        failure = None
        try:
            with _full_precision():
                weights = self._weights()
                due = self._due(weights)
                found = self._measure([weights[name] for name in due])
        except NonFiniteError as error:
            failure = _Failure(str(error), fatal=False)
        except Exception as error:
            if self._ranks.size == 1:
                raise
            failure = _Failure(f"rank {self._ranks.rank}: {type(error).__name__}: {error}", fatal=True)
        outcomes = self._ranks.exchange((failure, found))
        failures = [failure for failure, _ in outcomes if failure is not None]
        fatal = [failure.message for failure in failures if failure.fatal]
        if fatal:
            raise RefreshError(f"the refresh of the multipliers at step {steps} failed: {'; '.join(fatal)}")
        if failures:
            self._warn_non_finite(steps, failures[0].message)
        else:
            self._assign({name: known for _, part in outcomes for name, known in part.items()}, weights)
            if self._tolerance:
                parameters = parameter_names(self._model)
                for name in due:
                    self._references.keep(self._sources(weights[name], parameters).values())
        refresh = Refresh(step=steps, units=self.units, measured=len(due), seconds=time.perf_counter() - began)
        self.history.append(refresh)
        _logger.debug("step %d: %d weights measured, imbalance %.3f", steps, len(due), refresh.imbalance)
        if self._ranks.rank == 0:
            for call in self._on_refresh:
                call(refresh)
        return refresh

    def _weights(self) -> dict[str, Weight]:
        """The weights that are measured, by name: found anew, because parameters may have been replaced or frozen."""
        wanted = {n for unit in self._units.values() if unit.name not in self._lightest for n in unit.weights}
        found, _ = find_weights(self._model, replace(self.recipe.select, embeddings=True), sharded=True)
        parameters = parameter_names(self._model)
        return {w.name: w for w in found if w.name in wanted and self._sources(w, parameters)}

    def _sources(self, weight: Weight, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        names = sources_of(weight, parameters)
        return {name: parameters[name] for name in names if parameters[name].requires_grad}

    def _due(self, weights: Mapping[str, Weight]) -> list[str]:
        """Names of the weights whose alpha can have moved by more than the tolerance."""
        if not self._tolerance:
            return list(weights)
        parameters = parameter_names(self._model)
        known = {name: _Measured(*pair) for group in self._groups() for name, pair in group[KEY]["weights"].items()}
        squares: dict[str, float] = {}
        shared: dict[tuple[str, ...], float] = {}  # parts of one parameter have one distance
        for name, weight in weights.items():
            sources = self._sources(weight, parameters)
            key = (name.partition(":")[0], *sources)
            if key not in shared:
                shared[key] = self._references.squared_distance(weight, sources)
            squares[name] = shared[key]
        everywhere = self._ranks.exchange(squares)
        combine = sum if self._is_sharded() else max
        moved = {name: math.sqrt(combine(part[name] for part in everywhere)) for name in weights}
        return [name for name in weights if name not in known or moved[name] > known[name].radius]

    def _measure(self, weights: Sequence[Weight]) -> dict[str, _Measured]:
        """This process's share of the weights."""
        owners = share([_cost(weight) for weight in weights], self._ranks.size)
        mine = [weight for weight, owner in zip(weights, owners, strict=True) if owner == self._ranks.rank]
        found = {}
        for weight, fit in self._fit_together(weights, mine) if self._is_sharded() else self._fit(mine):
            if isinstance(fit, NonFiniteError):
                raise NonFiniteError(f"{weight.name}: {fit}") from fit
            found[weight.name] = self._known(weight.name, fit)
        return found

    def _is_sharded(self) -> bool:
        return any(is_sharded(parameter) for parameter in self._model.parameters())

    def _fit(self, weights: Sequence[Weight]) -> list[Fitted]:
        estimator, windows = self.recipe.estimator, self.recipe.windows
        return [pair for batch in fit_weights(weights, estimator=estimator, windows=windows) for pair in batch]

    def _fit_together(self, weights: Sequence[Weight], mine: Sequence[Weight]) -> list[Fitted]:
        """Make sharded weights whole, one at a time: all processes take part, and one of them keeps the result."""
        names = {weight.name for weight in mine}
        found: list[Fitted] = []
        failure: Exception | None = None
        for weight in weights:
            tensor = weight.load()  # a collective: in this order on every process, even on one that has failed
            if weight.name in names and failure is None:
                try:
                    found += self._fit([replace(weight, load=functools.partial(_same, tensor))])
                except Exception as error:  # raised below
                    failure = error
        if failure is not None:
            raise failure
        return found

    def _known(self, name: str, fit: WindowedFit | TempBalanceError) -> _Measured:
        if isinstance(fit, TempBalanceError) or fit.fit.status is not Status.OK:
            reason = fit if isinstance(fit, TempBalanceError) else fit.fit.status.message
            if name not in self._warned:
                self._warned.add(name)
                _logger.info("%s is not judged: %s", name, reason)
            return _Measured(None, math.inf if self._is_too_small(fit) else 0.0)
        radius = self.recipe.estimator.radius(fit.spectrum, self._tolerance) if self._tolerance else 0.0
        return _Measured(fit.fit.alpha, radius / math.sqrt(fit.num_windows))  # windows may overlap: each moves as much

    def _is_too_small(self, fit: WindowedFit | TempBalanceError) -> bool:
        """Whether a weight will never have enough eigenvalues, however it moves."""
        enough = self.recipe.estimator.min_eigenvalues
        return isinstance(fit, WindowedFit) and len(fit.spectrum.eigenvalues) < enough

    def _assign(self, found: Mapping[str, _Measured], weights: Mapping[str, Weight]) -> None:
        """Set the next multipliers of all groups."""
        states = {group[KEY]["unit"]: group[KEY] for group in self._groups()}
        known = {
            unit.name: {
                name: found[name] if name in found else _Measured(*states[unit.name]["weights"][name])
                for name in unit.weights
                if name in weights
            }
            for unit in self._units.values()
        }
        alphas = {}
        for name, measured in known.items():
            values = [each.alpha for each in measured.values() if each.alpha is not None]
            alphas[name] = fmean(values) if values else math.nan
        judged = [alpha for alpha in alphas.values() if math.isfinite(alpha)]
        alphas |= dict.fromkeys(self._lightest, max(judged, default=math.nan))
        multipliers = dict(zip(alphas, self.recipe.assignment(list(alphas.values())), strict=True))
        for group in self._groups():
            unit = group[KEY]["unit"]
            if unit is not None:
                alpha = alphas[unit]
                group[KEY]["alpha"] = alpha if math.isfinite(alpha) else None
                group[KEY]["weights"] = {name: tuple(measured) for name, measured in known[unit].items()}
                group[KEY]["next"] = multipliers[unit]

    def _settle(self, steps: int) -> None:
        """Let the next multipliers take effect from a step on."""
        for group in self._groups():
            state = group[KEY]
            if "next" in state:
                state["from"] = self._multiplier(state, steps - 1)
                state["multiplier"] = state.pop("next")
                state["refreshed"] = steps

    def _warn_non_finite(self, steps: int, message: str) -> None:
        if "non-finite" not in self._warned:
            self._warned.add("non-finite")
            warnings.warn(
                f"step {steps}: {message}; the multipliers stay as they are until all weights are finite again",
                NumericsWarning,
                stacklevel=2,
            )


class _Failure(NamedTuple):
    """Why a refresh did not come about on one process."""

    message: str
    fatal: bool


def _unit_state(name: str, state: Mapping[str, Any]) -> UnitState:
    alpha = math.nan if state["alpha"] is None else state["alpha"]
    return UnitState(name=name, alpha=alpha, multiplier=state.get("next", state["multiplier"]))


def _multiply(group: dict[str, Any], key: str, multiplier: float) -> _Applied:
    value = group[key]
    if isinstance(value, Tensor):  # in place: a compiled or captured step reads this very tensor
        original = value.clone()
        value.mul_(multiplier)
    else:
        original = value
        group[key] = value * multiplier
    return _Applied(group, key, original, group[key])


def _cost(weight: Weight) -> float:
    """Operations for the eigenvalues of a weight, roughly."""
    rows, columns = matrix_shape(weight.shape, weight.layout)
    short = min(rows, columns)
    return torch.Size(weight.shape).numel() * short * (1 + 4 * short / max(rows, columns))


def _same(tensor: Tensor) -> Tensor:
    return tensor


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """Mixed precision is for training; spectra are computed in what they need."""
    with contextlib.ExitStack() as stack:
        for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
            stack.enter_context(torch.autocast(device, enabled=False))
        yield
