"""Methods by name: ``plain``, a recipe of ``tempbalance.recipes``, a control of one, and what a task adds."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

from torch import nn

from tempbalance.balance import Balancer, Every, Recipe, recipes
from tempbalance.balance.assign import AlphaChange, Damped
from tempbalance.errors import StudyError
from tempbalance.spectra.windows import Windows
from tempbalance.study.controls import CONTROLS, random_weights
from tempbalance.study.method_names import Part, read_parts, read_value
from tempbalance.tail import KS, AveragedHill, Hill, Peak, TailEstimator

__all__ = ["PLAIN", "Makers", "Method", "known", "read_method"]

PLAIN = "plain"
# of a Recipe, so that every recipe has them
_OPTIONS = ("unit", "estimator", "windows", "every", "spectrum_of", "kinds")
_ESTIMATORS: dict[str, type[TailEstimator]] = {"hill": Hill, "peak": Peak, "ks": KS, "averaged_hill": AveragedHill}
_AROUND = {"damped": Damped, "change": AlphaChange}  # what can be put around its assignment

Makers: TypeAlias = Mapping[str, Callable[..., object]]  # what a task adds: called with the parameters of the name


class Method:
    """One way of training, as a task gets it: ``method.balance(optimizer, model)`` is all that it has to call.

    A name is ``plain``, which changes nothing; or a recipe of ``tempbalance.recipes`` with its own parameters and
    ``unit``, ``estimator`` (``hill``, ``peak``, ``ks``, ``averaged_hill``), ``windows``, ``every``, ``spectrum_of`` and
    ``kinds``, as in ``model_balancing:strength=0.5,unit=layer``, and with ``damped=true`` or ``change=true``
    (``Damped`` or ``AlphaChange`` around its assignment); or, with ``control=``, what that recipe has to beat:

    - ``inverted``: the same multipliers in the opposite order, more to heavy-tailed layers;
    - ``shuffled``: the same multipliers dealt out to the units at random;
    - ``uniform``: for every unit the mean of these multipliers;
    - ``untrained``: the alphas of random matrices of the same shapes, measured once.

    The first three keep the mean multiplier of the recipe. ``windows=farms`` measures with ``FARMS()``, ``every=100``
    every 100 steps (a number beyond the end: once).

    What a task adds of its own (``METHODS``) is found in ``own``, to do with it what the task likes; ``+`` joins it
    with others of its kind and with a recipe: ``lora:rank=8+model_balancing``.

    Attributes:
        name: The name.
        own: What the task's own methods have made, in their order.
        balancers: What ``balance`` has made.
        called: Whether the task has called it.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64))
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> Method("model_balancing:strength=0.5,unit=layer").balance(optimizer, model, steps_per_epoch=10)
        Balancer(model_balancing, 2 layers, every 1 steps)
    """

    def __init__(self, name: str, seed: int = 0, makers: Makers | None = None) -> None:
        """Find a method by its name.

        Args:
            name: The name.
            seed: Of what a control draws at random.
            makers: The task's own methods.

        Raises:
            StudyError: There is no such method, or it has no such parameter.
        """
        makers = makers or {}
        self.name = name
        self.balancers: list[Balancer] = []
        self.called = False
        self._seed = seed
        self._control: str | None = None
        self._recipe: Recipe | None = None
        own: list[object] = []
        for part in read_method(name, makers):
            values = _values(name, part)
            if part.name in makers:
                own.append(_made(name, makers[part.name], values))
            elif part.name != PLAIN:
                self._control = values.pop("control", None)
                self._recipe = _recipe(name, part.name, values)
        self.own = tuple(own)
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


def known(makers: Makers) -> str:
    """Which methods there are, for a message."""
    return f"the methods are {', '.join([PLAIN, *recipes.__all__, *makers])}"


def read_method(name: str, makers: Makers) -> list[Part]:
    """Read the name of a method, and make sure that there is such a one.

    Args:
        name: The name; a list is a choice to be tuned.
        makers: The task's own methods.

    Returns:
        Its parts.

    Raises:
        StudyError: There is no such method, it has no such parameter, or two cannot be joined.
    """
    parts = read_parts(name)
    for part in parts:
        if part.name not in (PLAIN, *recipes.__all__, *makers):
            raise StudyError(f"there is no method {part.name!r}; {known(makers)}")
        allowed = _parameters(part.name, makers)
        for key in part.choices:
            if key not in allowed:
                raise StudyError(f"{part.name} has no parameter {key}; it has {', '.join(dict.fromkeys(allowed))}")
        if part.name not in makers:
            _check_control(name, part)
    names = [part.name for part in parts]
    if len(set(names)) < len(names):
        raise StudyError(f"{name}: the same is joined with itself")
    if len(names) > 1 and (PLAIN in names or sum(each not in makers for each in names) > 1):
        raise StudyError(f"{name}: at most one recipe can be joined with the task's own methods, and plain with none")
    return parts


def _parameters(name: str, makers: Makers) -> list[str]:
    if name == PLAIN:
        return ["lr"]
    own = [*inspect.signature(makers[name] if name in makers else getattr(recipes, name)).parameters]
    return [*own, "lr"] if name in makers else [*own, *_OPTIONS, *_AROUND, "control", "lr"]


def _check_control(name: str, part: Part) -> None:
    nodes = part.choices.get("control")
    if nodes is not None and (len(nodes) > 1 or read_value(name, nodes[0]) not in CONTROLS):
        raise StudyError(f"{name}: control must be one of {', '.join(CONTROLS)}; compare them as separate methods")


def _values(name: str, part: Part) -> dict[str, Any]:
    """The value of every parameter, but for the learning rate."""
    several = [key for key, nodes in part.choices.items() if len(nodes) > 1]
    if several:
        raise StudyError(f"{name}: a method has one {several[0]}; a list is for what is tuned, by the arena")
    return {key: read_value(name, *nodes) for key, nodes in part.choices.items() if key != "lr"}


def _made(name: str, maker: Callable[..., object], values: Mapping[str, Any]) -> object:
    try:
        return maker(**values)
    except (TypeError, ValueError) as error:
        raise StudyError(f"{name}: {error}") from error


def _estimator(word: Any, recipe: Recipe) -> TailEstimator:
    """The estimator of that name, which fits as few eigenvalues as the recipe's own does."""
    if word not in _ESTIMATORS:
        raise ValueError(f"estimator must be one of {', '.join(_ESTIMATORS)}, got {word}")
    return _ESTIMATORS[word](min_eigenvalues=recipe.estimator.min_eigenvalues)


def _recipe(name: str, recipe: str, values: Mapping[str, Any]) -> Recipe:
    maker = getattr(recipes, recipe)
    own = {key: value for key, value in values.items() if key in inspect.signature(maker).parameters}
    try:
        made: Recipe = maker(**own)
        changes = {key: value for key, value in values.items() if key not in own}
        if "every" in changes:
            changes["every"] = Every(steps=changes["every"])
        if "estimator" in changes:
            changes["estimator"] = _estimator(changes["estimator"], made)
        around = [_AROUND[key] for key in _AROUND if changes.pop(key, False)]
        made = replace(made, **changes)
        for wrapper in around:
            made = replace(made, assignment=wrapper(made.assignment))
    except (TypeError, ValueError) as error:
        raise StudyError(f"{name}: {error}") from error
    if not isinstance(made.windows, Windows | None):
        raise StudyError(f"{name}: windows must be farms or none, got {made.windows}")
    return made
