"""The balancer: multiplies learning rates or weight decays inside ``optimizer.step``, and nowhere else.

Between steps every parameter group holds exactly what the scheduler put there, so any scheduler, logger or trainer goes
on as if nothing were there. All that the balancer remembers lies in the optimizer's own groups and state, so that
whatever saves the optimizer saves the balancer.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import math
import time
import warnings
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tempbalance.distributed import Ranks, share
from tempbalance.errors import BalanceError, NonFiniteError, NumericsWarning, RefreshError, TempBalanceError
from tempbalance.fitting import fit_weights
from tempbalance.layers import (
    Unit,
    Weight,
    find_weights,
    holders,
    is_sharded,
    local,
    parameter_names,
    reshard,
    shards,
    sources_of,
)
from tempbalance.matrices import matrix_shape
from tempbalance.optim.checks import (
    Agreement,
    check_alike,
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
from tempbalance.optim.saved import pack, read, unpack
from tempbalance.pooling import WindowedFit
from tempbalance.types import Skipped, Status

__all__ = ["Balancer"]

_logger = logging.getLogger("tempbalance")
_balancers: weakref.WeakKeyDictionary[Optimizer, weakref.ref[Balancer]] = weakref.WeakKeyDictionary()


class _Measured(NamedTuple):
    """What is known of one weight: alpha (None where there is no fit), and how far it may move before that changes."""

    alpha: float | None
    radius: float


_Fitted: TypeAlias = tuple[str, WindowedFit | TempBalanceError]


class _Judged(NamedTuple):
    """A weight, and the parameters that it is made of, by name, as far as they are trained."""

    weight: Weight
    sources: dict[str, Tensor]


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
        self.recipe = recipe
        self.history: list[Refresh] = []
        self._model = model
        self._tolerance = 0.0 if exact else recipe.tolerance
        self._on_refresh = list(on_refresh)
        self._applied: list[_Applied] = []
        self._idle = False
        self._found: tuple[list[tuple[str, int, bool]], dict[str, _Judged]] | None = None
        self._warned: set[str] = set()
        self._ranks = Ranks(process_group)
        what = "setting up the balancer"
        check_alike(self._ranks.together(lambda: self._set_up(optimizer, steps_per_epoch), what))
        origins = [group[KEY].pop("origin") for group in self._new_groups]
        self._ranks.together(lambda: extend_schedulers(self.optimizer, origins, schedulers), what)
        self.optimizer.param_groups[:] = self._new_groups
        del self._new_groups
        self._references = References(self.optimizer)
        # The hooks hold the balancer; the optimizer holds the hooks. Under torch.compile they stay Python.
        before, after = (torch.compiler.disable(hook) for hook in (self._before, self._after))  # type: ignore[no-untyped-call]
        self._handles = [
            self.optimizer.register_step_pre_hook(before),
            self.optimizer.register_step_post_hook(after),
            self.optimizer.register_state_dict_post_hook(pack),
            self.optimizer.register_load_state_dict_pre_hook(unpack),
        ]
        _balancers[self.optimizer] = weakref.ref(self)

    def _set_up(self, optimizer: Any, steps_per_epoch: int | None) -> Agreement:
        """Check and plan everything before the optimizer is touched; what it returns must be alike on all processes."""
        self.optimizer = unwrap(optimizer)
        check_optimizer(self.optimizer, self.recipe.keys)
        other = _balancers.get(self.optimizer)
        if other is not None and other() is not None:
            raise BalanceError("this optimizer has a balancer already: call its remove() first")
        check_model(self._model)
        self._interval = self.recipe.every.interval(steps_per_epoch)
        if self._interval is None:
            raise BalanceError(
                f"{self.recipe.name} counts in epochs: pass steps_per_epoch, the number of optimizer steps in an epoch "
                "(len(loader) // gradient accumulation)"
            )
        reshard(self._model)
        parameters = parameter_names(self._model)
        ours = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        trained = {name: p for name, p in parameters.items() if id(p) in ours}
        if not trained:
            raise BalanceError(
                "the optimizer has no parameter of this model: build it from model.parameters() of the same model "
                "(after any call that replaces them, such as fully_shard or model.to(...) of some devices)"
            )
        if not self._ranks.holds(process for p in trained.values() for process in holders(p)):
            raise BalanceError(
                "the model is sharded over processes outside of the process_group: pass a group of all that hold it"
            )
        plan = make_plan(self._model, self.recipe, {name for name, p in trained.items() if p.requires_grad})
        groups = split_groups(self.optimizer.param_groups, plan.units, parameters)
        for group in groups:
            group[KEY] |= {"alpha": None, "multiplier": 1.0, "from": 1.0, "refreshed": None, "steps": 0, "weights": {}}
        self.skipped: tuple[Skipped, ...] = plan.skipped
        self._units: dict[str, Unit] = {unit.name: unit for unit in plan.units}
        self._lightest = plan.lightest
        self._new_groups = groups
        first, interval, tolerance = self.recipe.start, self._interval, self._tolerance
        return Agreement(
            groups=[
                [(name, tuple(p.shape)) for name, p in zip(g[KEY]["names"], g["params"], strict=True)] for g in groups
            ],
            schedule=f"{self.recipe.name} every {interval} steps from step {first} on, tolerance {tolerance}",
        )

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
            RefreshError: It failed on one of several processes; the same message on all. (A process that is alone
                raises what went wrong.)
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
        if steps == 0 and self._tolerance:  # so that every checkpoint holds the same tensors
            self._references.keep(p for judged in self._weights().values() for p in judged.sources.values())
        self._idle = self._is_idle()
        if self._idle:
            return
        if self._is_due(steps):
            self._refresh(steps)
            if not self.recipe.delay:
                self._settle(steps)
        for group in self._groups():
            multiplier = self._multiplier(group[KEY], steps)
            if multiplier != 1.0:
                self._applied += [_multiply(group, key, multiplier) for key in self.recipe.keys]
        for group in self.optimizer.param_groups:
            if KEY not in group:
                self._warn_late(group)

    def _after(self, _optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        self._restore()
        self._references.store()
        if not self._idle:
            self._settle(self._steps + 1)
            for group in self._groups():
                group[KEY]["steps"] += 1

    def _is_idle(self) -> bool:
        """Whether a step can change nothing; such a step does not count."""
        # torch.distributed.checkpoint sets a state up by a step with all rates and all gradients zero.
        groups = self.optimizer.param_groups
        if self.optimizer.state or any(float(group.get("lr", 1.0)) != 0 for group in groups):
            return False
        idle = not any(bool(local(p.grad).any()) for g in groups for p in g["params"] if p.grad is not None)
        return all(self._ranks.exchange(idle)) if self._is_sharded() else idle  # a shard may be empty

    def _groups(self) -> Iterator[dict[str, Any]]:
        for group in self.optimizer.param_groups:
            read(group)
            if KEY in group:
                yield group

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
        what = f"the refresh of the multipliers at step {steps}"
        weights: dict[str, _Judged] = {}

        def look() -> dict[str, float]:
            reshard(self._model)
            weights.update(self._weights())
            return self._squared_distances(weights)

        with _full_precision():
            distances = self._ranks.together(look, what, RefreshError)
            if any(list(part) != list(weights) for part in distances):
                raise RefreshError(
                    f"{what} failed: the processes do not train the same weights any more; freeze them on all"
                )
            due = self._due(weights, distances)
            parts = self._ranks.together(
                lambda: self._measure([weights[name].weight for name in due]), what, RefreshError
            )
        non_finite = next((message for _, message in parts if message), None)
        if non_finite is not None:
            self._warn_non_finite(steps, non_finite)
        else:
            self._assign({name: known for found, _ in parts for name, known in found.items()}, weights)
            if self._tolerance:
                self._references.keep(p for name in due for p in weights[name].sources.values())
        refresh = Refresh(step=steps, units=self.units, measured=len(due), seconds=time.perf_counter() - began)
        self.history.append(refresh)
        _logger.debug("step %d: %d weights measured, imbalance %.3f", steps, len(due), refresh.imbalance)
        self._ranks.together(lambda: self._report(refresh), what, RefreshError)
        return refresh

    def _report(self, refresh: Refresh) -> None:
        if self._ranks.rank == 0:
            for call in self._on_refresh:
                call(refresh)

    def _weights(self) -> dict[str, _Judged]:
        """The weights that are measured, by name: found anew where parameters were replaced, frozen or freed."""
        parameters = parameter_names(self._model)
        key = [(name, id(parameter), parameter.requires_grad) for name, parameter in parameters.items()]
        if self._found is not None and self._found[0] == key:
            return self._found[1]
        wanted = {n for unit in self._units.values() if unit.name not in self._lightest for n in unit.weights}
        found, _ = find_weights(self._model, replace(self.recipe.select, embeddings=True), sharded=True)
        judged = {}
        for weight in found:
            if weight.name in wanted:
                sources = {name: parameters[name] for name in sources_of(weight, parameters)}
                judged[weight.name] = _Judged(weight, {name: p for name, p in sources.items() if p.requires_grad})
        judged = {name: each for name, each in judged.items() if each.sources}
        # What is computed from several parameters, or made whole, is read in a way that may change (LoRA merged, ...).
        plain = all(name.partition(":")[0] in parameters for name in judged) and not self._is_sharded()
        self._found = (key, judged) if plain else None
        return judged

    def _squared_distances(self, weights: Mapping[str, _Judged]) -> dict[str, float]:
        """How far weights have moved since they were measured, squared: the part that this process adds to the sum."""
        if not self._tolerance:
            return dict.fromkeys(weights, math.inf)
        shared: dict[tuple[str, ...], float] = {}  # parts of one parameter have one distance
        squares = {}
        for name, (weight, sources) in weights.items():
            key = (name.partition(":")[0], *sources)
            if key not in shared:
                copies = self._ranks.size / max(shards(source) for source in sources.values())
                shared[key] = self._references.squared_distance(weight, sources) / copies
            squares[name] = shared[key]
        return squares

    def _due(self, weights: Mapping[str, _Judged], squares: Sequence[Mapping[str, float]]) -> list[str]:
        """Names of the weights whose alpha can have moved by more than the tolerance."""
        if not self._tolerance:
            return list(weights)
        known = {name: _Measured(*pair) for group in self._groups() for name, pair in group[KEY]["weights"].items()}
        moved = {name: math.sqrt(sum(part[name] for part in squares)) for name in weights}
        return [name for name in weights if name not in known or not moved[name] <= known[name].radius]  # NaN is due

    def _measure(self, weights: Sequence[Weight]) -> tuple[dict[str, _Measured], str]:
        """This process's share of the weights, and what is said of one that is not finite."""
        found, non_finite = {}, ""
        for name, fit in self._fit_sharded(weights) if self._is_sharded() else self._fit_whole(weights):
            if isinstance(fit, NonFiniteError):
                non_finite = non_finite or f"{name}: {fit}"
            else:
                found[name] = self._known(name, fit)
        return found, non_finite

    def _is_sharded(self) -> bool:
        return any(is_sharded(parameter) for parameter in self._model.parameters())

    def _fit(self, weights: Sequence[Weight]) -> list[_Fitted]:
        batches = fit_weights(weights, estimator=self.recipe.estimator, windows=self.recipe.windows)
        return [(weight.name, fit) for batch in batches for weight, fit in batch]

    def _fit_whole(self, weights: Sequence[Weight]) -> list[_Fitted]:
        owners = share([_cost(weight) for weight in weights], self._ranks.size)
        return self._fit([weight for weight, rank in zip(weights, owners, strict=True) if rank == self._ranks.rank])

    def _fit_sharded(self, weights: Sequence[Weight]) -> list[_Fitted]:
        """Make sharded parameters whole, one after the other and one per process; then each fits its own; and again."""
        # So a process holds two whole parameters at most, its own and the one that passes by, and all fit at a time.
        parameters: dict[str, list[Weight]] = {}
        for weight in weights:
            parameters.setdefault(weight.name.partition(":")[0], []).append(weight)
        costs = {name: sum(map(_cost, parts)) for name, parts in parameters.items()}
        owners = dict(zip(costs, share(list(costs.values()), self._ranks.size), strict=True))
        costly_first = sorted(costs, key=lambda name: -costs[name])
        queues = [[name for name in costly_first if owners[name] == rank] for rank in range(self._ranks.size)]
        found: list[_Fitted] = []
        failure: Exception | None = None
        for names in itertools.zip_longest(*queues, fillvalue=""):
            mine = []
            for rank, name in enumerate(names):
                for weight in parameters.get(name, ()):
                    tensor = weight.load()  # a collective: in this order on every process, even on one that has failed
                    if rank == self._ranks.rank:
                        mine.append(replace(weight, cut=functools.partial(_same, tensor)))
                    del tensor
            try:
                found += self._fit(mine)
            except Exception as error:
                failure = failure or error
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

    def _assign(self, found: Mapping[str, _Measured], weights: Collection[str]) -> None:
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


def _same(tensor: Tensor, _: object) -> Tensor:
    return tensor


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """Mixed precision is for training; spectra are computed in what they need."""
    with contextlib.ExitStack() as stack:
        for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
            stack.enter_context(torch.autocast(device, enabled=False))
        yield
