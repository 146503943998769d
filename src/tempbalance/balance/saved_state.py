"""Save and load the state of a balancer with the state dict of its optimizer, and say when the optimizer is copied."""

from __future__ import annotations

import hashlib
import itertools
import logging
import re
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from tempbalance.balance.multipliers import Multipliers
from tempbalance.balance.plan import make_plan
from tempbalance.balance.preparation import Preparation, names_by_group
from tempbalance.balance.recipe import Recipe
from tempbalance.balance.split_groups import SplitGroups
from tempbalance.balance.state import AFRESH, KEY, BalanceState, UnitRecord, texts_in
from tempbalance.errors import BalanceError, BalanceWarning
from tempbalance.layers import parameter_names

__all__ = ["SavedState"]

_logger = logging.getLogger("tempbalance")


class SavedState:
    """Puts the state into state dicts, and takes it out of them.

    The key ``KEY`` is in the groups of the optimizer for a moment only, while a state dict with it is loaded.
    """

    def __init__(
        self,
        ready: Preparation,
        multipliers: Multipliers,
        groups: SplitGroups,
        *,
        replan: Callable[[Collection[str]], object],
        measure_soon: Callable[[], object],
    ) -> None:
        self._replan = replan
        self._measure_soon = measure_soon
        self._model, self._recipe, _, self._levels, *_ = ready
        self._multipliers = multipliers
        self._groups = groups
        self._recipe_id = _recipe_id(self._recipe)  # once: the text of an estimator may change while it measures
        self._inside = False
        self._counter: int | None = None

    def register(self, *, before_save: Callable[[], object], after_load: Callable[[], object]) -> list[Any]:
        """Register the hooks of the state dicts of all levels, and return their handles."""

        def packed(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
            state_dict["param_groups"][0][KEY] = self.state(optimizer).to_json()
            if self._inside:
                self._groups.enter(self._multipliers.current())

        def checked(optimizer: Optimizer, state_dict: Mapping[str, Any]) -> None:
            for text in texts_in(state_dict["param_groups"]):
                self._check(BalanceState.from_json(text), optimizer)

        def loaded(_optimizer: Optimizer) -> None:
            if not self.adopt():
                self._set(BalanceState())
                _logger.warning(
                    "this optimizer state was saved without tempbalance: it is loaded, and balancing starts afresh"
                )
            after_load()

        def saving(_optimizer: Optimizer) -> None:
            """Finish what is under way; inside a step, as from a signal handler, put the user's groups back."""
            before_save()
            self._inside = self._groups.inside
            self._groups.leave()

        handles: list[Any] = []
        for level in self._levels:
            if "_optimizer_state_dict_post_hooks" in vars(level):  # else it passes the calls on
                handles += [
                    level.register_state_dict_pre_hook(saving),
                    level.register_state_dict_post_hook(packed),
                    level.register_load_state_dict_pre_hook(checked),
                    level.register_load_state_dict_post_hook(loaded),
                ]
                handles.append(_CopyWarning(level))
        return handles

    def adopt(self) -> bool:
        """Return whether a state dict with a state was loaded; take the state out of the groups of the optimizer.

        Some optimizers load a state dict without calling hooks, and a state may be loaded before the balancer is built.

        Raises:
            BalanceError: It is damaged, or was saved with another model, other groups or units; it stays in the groups.
        """
        found = [(level, text) for level in self._levels for text in texts_in(level.param_groups)]
        if not found:
            return False
        level, text = found[0]
        state = BalanceState.from_json(text)
        self._check(state, level)
        self._set(state)
        for level in self._levels:
            for group in level.param_groups:
                group.pop(KEY, None)
        return True

    def catch_up(self) -> None:
        """Count the steps that an optimizer has taken without tempbalance since the state was saved."""
        # At a step, not when a state is loaded: a wrapper may load the tensors of the optimizer after its groups.
        before, self._counter = self._counter, None
        taken = 0 if before is None else (_counter(self._levels[-1]) or before) - before
        if taken > 0:
            self._multipliers.state.steps += taken
            self._measure_soon()
            _logger.warning(
                "the optimizer has taken %d steps without tempbalance since this state was saved: the weights are "
                "measured at this step",
                taken,
            )

    def put_into_groups(self) -> None:
        """Put the state into the groups, from where the next step or load takes it.

        torch.distributed.checkpoint loads a flattened state dict only into the keys that the groups have. Before it
        loads one into a new optimizer, it makes a step that changes nothing; this is called after that step.
        """
        optimizer = self._levels[-1]
        optimizer.param_groups[0][KEY] = self.state(optimizer).to_json()

    def state(self, optimizer: Optimizer) -> BalanceState:
        """Return the state, with the groups of one level."""
        state = self._multipliers.state
        current = dict.fromkeys(unit.name for unit in self._multipliers.plan.units)
        for name in current:
            state.units.setdefault(name, UnitRecord())
        if state.units.keys() - current.keys():  # of parameters that are frozen now, or that are divided in another way
            known = current.keys() | self._units_of(parameter_names(self._model))
            state.units = {name: record for name, record in state.units.items() if name in known}
        state.groups = names_by_group(optimizer, self._model)
        state.recipe, state.tolerance = self._recipe_id, self._recipe.tolerance
        state.counter = _counter(self._levels[-1])
        state.options = self._groups.own_options()
        planned = self._multipliers.plan.trained
        names = (name for group in names_by_group(self._levels[0], self._model) for name in group)
        state.unplanned = [name for name in names if name is not None and name not in planned]
        return state

    def _set(self, state: BalanceState) -> None:
        self._multipliers.state = state
        self._counter = state.counter if state.steps else None
        if state.tolerance is not None and self._recipe.tolerance < state.tolerance:
            state.fits = {}  # else they stay until the weights have moved too far for the larger tolerance
        if state.recipe and not f"{self._recipe_id} ".startswith(f"{state.recipe} "):  # older ones are shorter
            state.units, state.fits = {}, {}
            self._measure_soon()
            _logger.warning(
                "this optimizer state was saved with another recipe (%s): its multipliers are not used, and the "
                "weights are measured at the next step",
                state.recipe.partition(" ")[0],
            )
        if state.unplanned is not None:
            self._replan(state.unplanned)
        self._groups.load(state.options)

    def _check(self, state: BalanceState, optimizer: Optimizer) -> None:
        """Check that a state was saved with the same model, groups and kind of unit."""
        own = names_by_group(optimizer, self._model)
        if state.groups and state.groups != own:
            place = next(i for i in itertools.count() if state.groups[i : i + 1] != own[i : i + 1])
            there, here = (list(itertools.chain(*groups[place : place + 1])) for groups in (state.groups, own))
            named = itertools.zip_longest(there, here, fillvalue="none")
            first = next((pair for pair in named if pair[0] != pair[1]), ("none", "none"))  # an empty group
            raise BalanceError(
                f"this optimizer state was saved with other parameter groups: group {place} had {len(there)} "
                f"parameters, here {len(here)}; the first that differ are {first[0]} there and {first[1]} here; use "
                f"the same model and optimizer groups as in the saved run, or {AFRESH}"
            )
        plan = make_plan(self._model, self._recipe, set(parameter_names(self._model)))
        weights = {name for unit in plan.units for name in unit.weights}
        planned = {name for group in own for name in group if name is not None}.difference(state.unplanned or ())
        units = {unit.name for unit in (*plan.units, *self._multipliers.plan.units)} | self._units_of(planned)
        unknown = [*(name for name in state.units if name not in units), *(n for n in state.fits if n not in weights)]
        if unknown:
            raise BalanceError(
                f"this optimizer state was saved with other units, such as {unknown[0]!r}, which {self._recipe.name} "
                f"does not have for this model: use the same model and recipe as in the saved run, or {AFRESH}"
            )

    def _units_of(self, trained: Collection[str]) -> set[str]:
        """Return the names of the units if these parameters are trained; empty if none can be balanced."""
        try:
            return {unit.name for unit in make_plan(self._model, self._recipe, set(trained)).units}
        except BalanceError:
            return set()


def _recipe_id(recipe: Recipe) -> str:
    """Return the name of a recipe and two digests: of what it multiplies by what, and of how it measures alpha."""
    measured_by = _digest(recipe.estimator, recipe.windows, recipe.spectrum_of)
    return f"{recipe.name} {_digest(recipe.target, recipe.assignment)} {measured_by}"


def _counter(optimizer: Optimizer) -> int | None:
    """Return the number of steps in the state of the first parameter that has one, as of Adam."""
    states = (optimizer.state.get(parameter) for group in optimizer.param_groups for parameter in group["params"])
    steps = (state.get("step") for state in states if isinstance(state, Mapping))
    numbers = (s for s in steps if isinstance(s, int | float) or (isinstance(s, Tensor) and s.numel() == 1))
    return next((int(number) for number in numbers), None)


def _digest(*options: object) -> str:
    text = re.sub(r" at 0x[0-9a-f]+", "", " ".join(each if isinstance(each, str) else repr(each) for each in options))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class _CopyWarning:
    """Warns when an optimizer is copied or pickled, because its hooks are not."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        vars(optimizer)["__reduce_ex__"] = self._reduce  # looked up on the instance by copy.deepcopy and pickle

    def _reduce(self, protocol: Any) -> Any:
        warnings.warn(
            "the copy of a balanced optimizer is not balanced: build a tempbalance.Balancer for the copy",
            BalanceWarning,
            stacklevel=3,
        )
        return type(self._optimizer).__reduce_ex__(self._optimizer, protocol)

    def remove(self) -> None:
        vars(self._optimizer).pop("__reduce_ex__", None)
