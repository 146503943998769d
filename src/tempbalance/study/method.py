"""Methods by name: ``plain``, a recipe, a control of a recipe, a training method, and the methods that a task adds."""

from __future__ import annotations

import contextlib
import difflib
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
from tempbalance.study.methods import TRAINING_METHODS
from tempbalance.study.methods.hooks import Joined, TrainingMethod
from tempbalance.tail import find_estimator

__all__ = [
    "PLAIN",
    "CustomMethods",
    "Method",
    "describe_methods",
    "is_taken",
    "list_methods",
    "read_method",
    "read_recipe",
]

PLAIN = "plain"
_AS_RELEASED = tuple(name for name in released.__all__ if name.endswith("_as_released"))
_OPTIONS = ("unit", "estimator", "windows", "every", "spectrum_of", "kinds")  # fields that every recipe has
_WRAPPERS = {"damped": Damped, "change": AlphaChange}  # around the recipe's assignment

CustomMethods: TypeAlias = Mapping[str, Callable[..., object]]  # called with the parameters in the name


class Method(Joined):
    """A training method, built from its name. A task calls ``method.balance(optimizer, model)``.

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

    A name may also be a training method that is not a recipe (``tempbalance.study.methods``), such as ``lora:rank=8``,
    or one that the task adds (``METHODS``); ``+`` joins them with each other and with a recipe:
    ``lora:rank=8+model_balancing``. For these a task calls the hooks as well, such as ``method.prepare``: see
    :class:`TrainingMethod`.

    Attributes:
        name: The name.
        custom: The objects of these methods, in the order of the name; empty for plain and a recipe.
        balancers: Balancers that ``balance`` has built.
        called: Whether the task has called ``balance``.
        called_hooks: The hooks that the task has called.

    Raises:
        StudyError: The method does not exist, or has no such parameter.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64))
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> Method("model_balancing:strength=0.5,unit=layer").balance(optimizer, model, steps_per_epoch=10)
        Balancer(model_balancing, 2 layers, every 1 steps)
    """

    def __init__(self, name: str, seed: int = 0, custom: CustomMethods | None = None) -> None:
        """Build a method by its name, with the seed of a random control and the methods that the task adds, by name."""
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
                if build := _find_custom(part.name, custom):
                    built.append(build(**values))
                elif part.name != PLAIN:
                    self._control = values.pop("control", None)
                    self._recipe = _build_recipe(part.name, values)
        self.custom = tuple(built)
        super().__init__(name, [each for each in built if isinstance(each, TrainingMethod)])
        if self._recipe is not None and "optimizers" in self.requirements():
            raise StudyError(f"{name}: a recipe cannot balance the optimizers of another method: leave one out")
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
    part, *more = read_method(name, {})
    if more or _find_recipe(part.name) is None or part.choices.keys() & {"control", "lr"}:
        raise StudyError(f"{name}: expected a recipe and its parameters, such as model_balancing:strength=1.0")
    with _errors_of(name):
        return _build_recipe(part.name, _values(name, part))


def _find_custom(name: str, custom: CustomMethods) -> Callable[..., object] | None:
    """Return what builds a method that is not a recipe: of the task, or of ``TRAINING_METHODS``; None if none does."""
    return custom.get(name) or TRAINING_METHODS.get(name)


def is_taken(name: str) -> bool:
    """Return whether a task cannot add a method of that name."""
    return name == PLAIN or name in TRAINING_METHODS or _find_recipe(name) is not None


def has_controls(name: str, custom: CustomMethods) -> bool:
    """Return whether a method has controls: only recipes have."""
    return name != PLAIN and _find_custom(name, custom) is None


def _find_recipe(name: str) -> Callable[..., Recipe] | None:
    """Return the function that builds the recipe of that name; None if there is none."""
    if name in recipes.__all__:
        return getattr(recipes, name)  # type: ignore[no-any-return]
    return getattr(released, name) if name in _AS_RELEASED else None


def list_methods(custom: CustomMethods) -> str:
    """List the names of all methods, for an error message."""
    return f"the methods are {', '.join(_names(custom))}"


def _names(custom: CustomMethods) -> list[str]:
    return [PLAIN, *recipes.__all__, *_AS_RELEASED, *TRAINING_METHODS, *custom]


def describe_methods() -> list[tuple[str, str, str]]:
    """Describe all methods that need no task: the name, one line, and the source.

    Returns:
        Plain, recipes, recipes as released, and training methods.

    Example:
        >>> [line for name, line, source in describe_methods() if name == "snr"]
        ['Add strength / 2 times the squared spectral norms of all weights to the loss.']
    """
    built = {name: _find_recipe(name) for name in (*recipes.__all__, *_AS_RELEASED)}
    sources = {name: _source(build) for name, build in built.items() if build}
    sources |= {name: method.source for name, method in TRAINING_METHODS.items()}
    lines = {name: inspect.getdoc(each) or "" for name, each in {**built, **TRAINING_METHODS}.items()}
    found = [(name, lines[name].partition("\n")[0].replace("`", ""), source) for name, source in sources.items()]
    return [(PLAIN, "Training as the task does it.", ""), *found]


def _source(build: Callable[..., Recipe]) -> str:
    return "" if _required(build) else build().source  # multipliers by hand have no source


def _required(build: Callable[..., object]) -> list[str]:
    parameters = inspect.signature(build).parameters.values()
    named = [each for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
    return [each.name for each in named if each.default is each.empty]


def read_method(name: str, custom: CustomMethods) -> list[Part]:
    """Parse the name of a method, and check that its parts and parameters exist and can be joined."""
    parts = read_parts(name)
    for part in parts:
        allowed = _parameters(part.name, custom)
        for key in part.choices:
            if key not in allowed:
                raise StudyError(f"{part.name} has no parameter {key}; it has {', '.join(dict.fromkeys(allowed))}")
        if missing := _missing(part, custom):
            raise StudyError(f'{part.name} needs {", ".join(missing)}: write "{part.name}:{missing[0]}=..."')
        nodes = part.choices.get("control")
        if _find_custom(part.name, custom) or nodes is None:
            continue
        if len(nodes) > 1 or read_value(name, nodes[0]) not in CONTROLS:
            raise StudyError(f"{name}: control must be one of {', '.join(CONTROLS)}; compare them as separate methods")
    names = [part.name for part in parts]
    if len(set(names)) < len(names):
        raise StudyError(f"{name}: a method is joined with itself")
    if len(names) > 1 and (PLAIN in names or sum(not _find_custom(each, custom) for each in names) > 1):
        raise StudyError(f"{name}: only training methods and at most one recipe can be joined, and plain cannot")
    return parts


def _parameters(name: str, custom: CustomMethods) -> list[str]:
    if name == PLAIN:
        return ["lr"]
    own = _find_custom(name, custom)
    build = own or _find_recipe(name)
    if build is None:
        close = difflib.get_close_matches(name, _names(custom), n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else list_methods(custom)
        raise StudyError(f"there is no method {name!r}; {hint}")
    options = [] if own else [*_OPTIONS, *_WRAPPERS, "control"]
    return [*inspect.signature(build).parameters, *options, "lr"]


def _missing(part: Part, custom: CustomMethods) -> list[str]:
    build = None if part.name == PLAIN else _find_custom(part.name, custom) or _find_recipe(part.name)
    return [name for name in _required(build) if name not in part.choices] if build else []


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
    build = _find_recipe(name)
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
