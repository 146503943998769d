"""Methods by name: ``plain``, a recipe, a control of a recipe, and the methods that a task adds."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

from torch import nn

from tempbalance import released
from tempbalance.balance import Balancer, Every, Recipe, recipes
from tempbalance.balance.assign import AlphaChange, Damped
from tempbalance.errors import ArgumentError, StudyError
from tempbalance.spectra.windows import Windows
from tempbalance.study.controls import CONTROLS, random_weights
from tempbalance.study.method_names import Part, read_parts, read_value
from tempbalance.tail import find_estimator

__all__ = ["PLAIN", "CustomMethods", "Method", "find_recipe", "list_methods", "read_method", "read_recipe"]

PLAIN = "plain"
_AS_RELEASED = tuple(name for name in released.__all__ if name.endswith("_as_released"))
_OPTIONS = ("unit", "estimator", "windows", "every", "spectrum_of", "kinds")  # fields that every recipe has
_WRAPPERS = {"damped": Damped, "change": AlphaChange}  # around the recipe's assignment

CustomMethods: TypeAlias = Mapping[str, Callable[..., object]]  # called with the parameters in the name


class Method:
    """A training method, built from its name. A task calls only ``method.balance(optimizer, model)``.

    A name is ``plain``, which changes nothing; or a recipe with its own parameters and ``unit``, ``estimator``
    (``hill``, ``peak``, ``ks``, ``averaged_hill``), ``windows``, ``every``, ``spectrum_of`` and ``kinds``, as in
    ``model_balancing:strength=0.5,unit=layer``, and with ``damped=true`` or ``change=true`` (``Damped`` or
    ``AlphaChange`` around its assignment); or, with ``control=``, a negative control of that recipe:

    - ``inverted``: the same multipliers in the opposite order, larger for heavier tails;
    - ``shuffled``: the same multipliers in random order;
    - ``uniform``: the mean of the multipliers for every unit;
    - ``untrained``: multipliers by the alphas of random matrices of the same shapes, measured once.

    The first three keep the mean multiplier of the recipe. ``windows=farms`` measures with ``FARMS()``, ``every=100``
    every 100 steps (only once if the training is shorter).

    Methods that a task adds (``METHODS``) are built and passed to it in ``custom``; ``+`` joins them with each other
    and with a recipe: ``lora:rank=8+model_balancing``.

    Attributes:
        name: The name.
        custom: Objects built by the task's own methods, in the order of the name.
        balancers: Balancers that ``balance`` has built.
        called: Whether the task has called ``balance``.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64))
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> Method("model_balancing:strength=0.5,unit=layer").balance(optimizer, model, steps_per_epoch=10)
        Balancer(model_balancing, 2 layers, every 1 steps)
    """

    def __init__(self, name: str, seed: int = 0, custom: CustomMethods | None = None) -> None:
        """Build a method by its name.

        Args:
            name: The name.
            seed: Seed of a random control.
            custom: Methods that the task adds, by name.

        Raises:
            StudyError: The method does not exist, or has no such parameter.
        """
        custom = custom or {}
        self.name = name
        self.balancers: list[Balancer] = []
        self.called = False
        self._seed = seed
        self._control: str | None = None
        self._recipe: Recipe | None = None
        built: list[object] = []
        for part in read_method(name, custom):
            values = _values(name, part)
            with _errors_of(name):
                if part.name in custom:
                    built.append(custom[part.name](**values))
                elif part.name != PLAIN:
                    self._control = values.pop("control", None)
                    self._recipe = _build_recipe(part.name, values)
        self.custom = tuple(built)
        if self._recipe is not None and self._control is not None:
            self._recipe = CONTROLS[self._control](self._recipe, seed)

    def balance(self, optimizer: Any, model: nn.Module, **options: Any) -> Balancer | None:
        """Attach a balancer if this method has one. Call it after the optimizer is built and before the scheduler.

        Args:
            optimizer: The optimizer.
            model: The model that it trains.
            **options: Options of :class:`~tempbalance.Balancer`, such as ``steps_per_epoch``.

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


def read_recipe(name: str) -> Recipe:
    """Build a recipe by its name.

    Args:
        name: As in ``Method``, but a recipe only: without a control, a learning rate or a method of a task.

    Returns:
        The recipe.

    Raises:
        StudyError: There is no such recipe, or it has no such parameter.

    Example:
        >>> read_recipe("model_balancing:strength=0.5,every=100").every
        Every(steps=100, epochs=None)
    """
    (part,) = read_method(name, {})  # two recipes cannot be joined
    if part.name == PLAIN or part.choices.keys() & {"control", "lr"}:
        raise StudyError(f"{name}: expected a recipe and its parameters, such as model_balancing:strength=1.0")
    with _errors_of(name):
        return _build_recipe(part.name, _values(name, part))


def find_recipe(name: str) -> Callable[..., Recipe] | None:
    """Return the function that builds the recipe of that name; None if there is none."""
    if name in recipes.__all__:
        return getattr(recipes, name)  # type: ignore[no-any-return]
    return getattr(released, name) if name in _AS_RELEASED else None


def list_methods(custom: CustomMethods) -> str:
    """List the names of all methods, for an error message."""
    return f"the methods are {', '.join([PLAIN, *recipes.__all__, *_AS_RELEASED, *custom])}"


def read_method(name: str, custom: CustomMethods) -> list[Part]:
    """Parse the name of a method, and check that its parts and parameters exist and can be joined."""
    parts = read_parts(name)
    for part in parts:
        allowed = _parameters(part.name, custom)
        for key in part.choices:
            if key not in allowed:
                raise StudyError(f"{part.name} has no parameter {key}; it has {', '.join(dict.fromkeys(allowed))}")
        nodes = part.choices.get("control")
        if part.name in custom or nodes is None:
            continue
        if len(nodes) > 1 or read_value(name, nodes[0]) not in CONTROLS:
            raise StudyError(f"{name}: control must be one of {', '.join(CONTROLS)}; compare them as separate methods")
    names = [part.name for part in parts]
    if len(set(names)) < len(names):
        raise StudyError(f"{name}: a method is joined with itself")
    if len(names) > 1 and (PLAIN in names or sum(each not in custom for each in names) > 1):
        raise StudyError(f"{name}: only the task's own methods and at most one recipe can be joined, and plain cannot")
    return parts


def _parameters(name: str, custom: CustomMethods) -> list[str]:
    if name == PLAIN:
        return ["lr"]
    build = custom.get(name) or find_recipe(name)
    if build is None:
        raise StudyError(f"there is no method {name!r}; {list_methods(custom)}")
    options = [] if name in custom else [*_OPTIONS, *_WRAPPERS, "control"]
    return [*inspect.signature(build).parameters, *options, "lr"]


def _values(name: str, part: Part) -> dict[str, Any]:
    """Return the value of every parameter except the learning rate."""
    for key, nodes in part.choices.items():
        if len(nodes) > 1:
            raise StudyError(f"{name}: {key} must be one value; a list is a choice for a study to tune")
    return {key: read_value(name, *nodes) for key, nodes in part.choices.items() if key != "lr"}


@contextlib.contextmanager
def _errors_of(name: str) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError) as error:
        raise StudyError(f"{name}: {error}") from error


def _build_recipe(name: str, values: Mapping[str, Any]) -> Recipe:
    build = find_recipe(name)
    assert build is not None
    if not isinstance(windows := values.get("windows"), Windows | None):
        raise ArgumentError(f"windows must be farms or none, got {windows}")
    arguments = {key: value for key, value in values.items() if key in inspect.signature(build).parameters}
    recipe = build(**arguments)
    changes = {key: value for key, value in values.items() if key not in arguments}
    if "every" in changes:
        changes["every"] = Every(steps=changes["every"])
    if "estimator" in changes:  # keeps the recipe's minimum number of eigenvalues
        name = str(changes["estimator"])
        changes["estimator"] = find_estimator(name, min_eigenvalues=find_estimator(recipe.estimator).min_eigenvalues)
    wrappers = [wrapper for key, wrapper in _WRAPPERS.items() if changes.pop(key, False)]
    recipe = replace(recipe, **changes)
    for wrapper in wrappers:
        recipe = replace(recipe, assignment=wrapper(recipe.assignment))
    return recipe
