"""Methods by name: ``plain``, or a recipe of ``tempbalance.recipes`` with its parameters, or a control of one."""

from __future__ import annotations

import ast
import inspect
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import nn

from tempbalance import recipes
from tempbalance.arena.controls import CONTROLS, random_weights
from tempbalance.assign import AlphaChange, Damped
from tempbalance.errors import ArenaError
from tempbalance.optim import Balancer, Every, Recipe
from tempbalance.windows import FARMS, Windows

__all__ = ["PLAIN", "Contender", "Method", "Trial", "read_contenders"]

PLAIN = "plain"
_OPTIONS = ("unit", "windows", "every", "spectrum_of")  # of a Recipe, so that every recipe has them
_AROUND = {"damped": Damped, "change": AlphaChange}  # what can be put around its assignment
_WORDS = {"true": True, "false": False, "none": None, "farms": FARMS()}


class Method:
    """One way of training, as a task gets it: ``method.balance(optimizer, model)`` is all that it has to call.

    A name is ``plain``, which changes nothing; or a recipe of ``tempbalance.recipes`` with its own parameters and
    ``unit``, ``windows``, ``every`` and ``spectrum_of``, as in ``model_balancing:strength=0.5,unit=layer``, and with
    ``damped=true`` or ``change=true`` (``Damped`` or ``AlphaChange`` around its assignment); or, with ``control=``,
    what that recipe has to be better than:

    - ``inverted``: the same multipliers in the opposite order, more to heavy-tailed layers;
    - ``shuffled``: the same multipliers dealt out to the units at random;
    - ``uniform``: for every unit the mean of these multipliers;
    - ``untrained``: the alphas of random matrices of the same shapes, measured once.

    The first three keep the mean multiplier of the recipe. ``windows=farms`` measures with ``FARMS()``, ``every=100``
    every 100 steps (a number beyond the end: once).

    Attributes:
        name: The name.
        balancers: What ``balance`` has made.
        called: Whether the task has called it.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64))
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> Method("model_balancing:strength=0.5,unit=layer").balance(optimizer, model, steps_per_epoch=10)
        Balancer(model_balancing, 2 layers, every 1 steps)
    """

    def __init__(self, name: str, seed: int = 0) -> None:
        """Find a method by its name.

        Args:
            name: The name.
            seed: Of what a control draws at random.

        Raises:
            ArenaError: There is no such method, or it has no such parameter.
        """
        self.name = name
        self.balancers: list[Balancer] = []
        self.called = False
        self._seed = seed
        recipe, choices = _read(name)
        several = [key for key, values in choices.items() if len(values) > 1]
        if several:
            raise ArenaError(f"{name}: a method has one {several[0]}; a list is for what is tuned, by the arena")
        values = {key: _value(name, *nodes) for key, nodes in choices.items()}
        self._control = values.pop("control", None)
        self._recipe = None if recipe == PLAIN else _recipe(name, recipe, values)
        if self._recipe is not None and self._control is not None:
            self._recipe = CONTROLS[self._control](self._recipe, seed)

    def balance(self, optimizer: Any, model: nn.Module, **options: Any) -> Balancer | None:
        """Balance, if this method does: to be called after the optimizer is built and before the scheduler.

        Args:
            optimizer: The optimizer.
            model: The model that it trains.
            **options: Those of :class:`~tempbalance.Balancer`; above all ``steps_per_epoch``.

        Returns:
            The balancer, or None.
        """
        self.called = True
        if self._recipe is None:
            return None
        balancer = Balancer(optimizer, model, self._recipe, **options)
        if self._control == "untrained":
            with random_weights(model, self._seed):
                balancer.refresh()
        self.balancers.append(balancer)
        return balancer


class Trial(NamedTuple):
    """A method with every choice made.

    Attributes:
        method: Its name.
        lr: The learning rate, None to leave it to the task.
    """

    method: str
    lr: float | None

    def __str__(self) -> str:
        """The name and the rate."""
        return self.method if self.lr is None else f"{self.method} lr={self.lr:g}"


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A method as it was asked for, where a list is a choice to be tuned.

    Attributes:
        name: As it was asked for.
        trials: Every choice.
        of: Its name without ``control`` and ``lr``: by that the controls of a method are found.
        is_control: Whether it is one.
    """

    name: str
    trials: tuple[Trial, ...]
    of: str
    is_control: bool

    def is_called(self, name: str) -> bool:
        """Whether a name is this method's, with or without its learning rates."""
        return name == self.name or (name == self.of and not self.is_control)


def read_contenders(names: Sequence[str], lrs: Sequence[float] = (), baseline: str = PLAIN) -> list[Contender]:
    """Read the names of methods that shall be compared.

    Args:
        names: Names of methods; ``plain`` is added where it is missing. ``strength=[0.5,1]`` is a choice, and
            ``lr=[1e-4,3e-4]`` goes before ``lrs``.
        lrs: Learning rates to choose from; none leaves the rate to the task.
        baseline: What the others are compared with.

    Returns:
        The baseline, then the others in their order.

    Raises:
        ArenaError: A method does not exist or comes twice, there is none to compare, the baseline is missing, or not
            all methods have as many trials.

    Example:
        >>> [str(trial) for trial in read_contenders(["llr:high=[3,5],lr=0.1"], [0.1, 0.2])[1].trials]
        ['llr:high=3 lr=0.1', 'llr:high=5 lr=0.1']
    """
    baseline, *names = [name.replace(" ", "") for name in (baseline, *names)]
    if PLAIN not in (name.partition(":")[0] for name in names):
        names = [PLAIN, *names]
    contenders = sorted((_contender(name, lrs) for name in names), key=lambda each: not each.is_called(baseline))
    if not contenders[0].is_called(baseline):
        raise ArenaError(f"the baseline {baseline} is none of the methods: {', '.join(names)}")
    if len({each.name for each in contenders}) < len(contenders):
        raise ArenaError(f"a method comes twice: {', '.join(names)}")
    if len(contenders) == 1:
        raise ArenaError(f"there is nothing to compare {baseline} with; {_known()}")
    if len({len(each.trials) for each in contenders}) > 1:
        counts = ", ".join(f"{each.name} {len(each.trials)}" for each in contenders)
        raise ArenaError(
            f"every method needs the same number of trials, or the comparison is not fair; they have: {counts}. "
            "Give the one with fewer more learning rates, as in 'plain:lr=[1e-5,2e-5,5e-5,1e-4]'"
        )
    return contenders


def _contender(name: str, lrs: Sequence[float]) -> Contender:
    recipe, choices = _read(name)
    rates = [_value(name, node) for node in choices["lr"]] if "lr" in choices else [*lrs]
    if not all(isinstance(rate, (int, float)) for rate in rates):
        raise ArenaError(f"{name}: lr must be a number, or a list of numbers")
    own = {key: [f"{key}={ast.unparse(node)}" for node in nodes] for key, nodes in choices.items() if key != "lr"}
    methods = [_join(recipe, made) for made in itertools.product(*own.values())]
    for method in methods:
        Method(method)  # refuses what is wrong with it
    family = {key: nodes for key, nodes in own.items() if key != "control"}
    return Contender(
        name=name,
        trials=tuple(Trial(method, rate) for method in methods for rate in rates or [None]),
        of=_join(recipe, ["/".join(texts) for texts in family.values()]),
        is_control="control" in own,
    )


def _join(recipe: str, options: Sequence[str]) -> str:
    return f"{recipe}:{','.join(options)}".removesuffix(":").replace(" ", "")


def _read(name: str) -> tuple[str, dict[str, list[ast.expr]]]:
    """A name as that of a recipe, and the choices for each of its parameters."""
    recipe, _, options = name.partition(":")
    if recipe != PLAIN and recipe not in recipes.__all__:
        raise ArenaError(f"there is no method {recipe!r}; {_known()}")
    choices = _choices(name, options)
    allowed = ["lr"] if recipe == PLAIN else [*_parameters(recipe), *_OPTIONS, *_AROUND, "control", "lr"]
    for key, nodes in choices.items():
        if key not in allowed:
            raise ArenaError(f"{recipe} has no parameter {key}; it has {', '.join(dict.fromkeys(allowed))}")
        if not nodes:
            raise ArenaError(f"{name}: {key} is an empty list")
        if key == "control" and (len(nodes) > 1 or _value(name, *nodes) not in CONTROLS):
            raise ArenaError(f"{name}: control must be one of {', '.join(CONTROLS)}; compare them as separate methods")
    return recipe, choices


def _choices(name: str, options: str) -> dict[str, list[ast.expr]]:
    """``a=1,b=[2,3]`` as the values of each."""
    try:
        call = ast.parse(f"_({options})", mode="eval").body
    except SyntaxError:
        call = None
    found: dict[str, list[ast.expr]] = {}
    if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and not call.args:
        for keyword in call.keywords:
            value = keyword.value
            found[keyword.arg or "**"] = value.elts if isinstance(value, ast.List) else [value]
        return found
    raise ArenaError(f"cannot read {name!r}: write name:parameter=value,parameter=value")


def _known() -> str:
    return f"the methods are {', '.join([PLAIN, *recipes.__all__])}"


def _parameters(recipe: str) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(getattr(recipes, recipe)).parameters


def _value(name: str, node: ast.expr) -> Any:
    if isinstance(node, ast.Name):  # a word
        return _WORDS.get(node.id.lower(), node.id)
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise ArenaError(f"{name}: {ast.unparse(node)} is neither a number nor a word") from None


def _recipe(name: str, recipe: str, values: Mapping[str, Any]) -> Recipe:
    own = {key: value for key, value in values.items() if key in _parameters(recipe)}
    try:
        made: Recipe = getattr(recipes, recipe)(**own)
        changes = {key: value for key, value in values.items() if key not in own}
        if "every" in changes:
            changes["every"] = Every(steps=changes["every"])
        around = [_AROUND[key] for key in _AROUND if changes.pop(key, False)]
        made = replace(made, **changes)
        for wrapper in around:
            made = replace(made, assignment=wrapper(made.assignment))
    except (TypeError, ValueError) as error:
        raise ArenaError(f"{name}: {error}") from error
    if not isinstance(made.windows, Windows | None):
        raise ArenaError(f"{name}: windows must be farms or none, got {made.windows}")
    return made
