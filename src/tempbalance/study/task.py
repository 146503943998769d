"""A user's training function: load it, call it with a seed and a method, and check its result."""

from __future__ import annotations

import functools
import gc
import hashlib
import importlib.util
import inspect
import math
import os
import random
import re
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np
import torch

from tempbalance.errors import StudyError
from tempbalance.study.candidates import Configuration
from tempbalance.study.method import CustomMethods, Method, is_taken
from tempbalance.study.methods.hooks import FACTS, HOOKS

__all__ = ["Task", "Trial", "load_task"]

_FUNCTION, _METHODS, _SUPPORTS = "train", "METHODS", "SUPPORTS"
_DIGITS = 12  # of a hash
_CONSTANTS = (int, float, complex, str, bytes, tuple, frozenset)  # a list may grow while it is trained
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")  # in the repr of an object; another one in the next process
_LONG = 1.0  # seconds of a trial whose model is not kept in memory


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training run.

    Attributes:
        method: Name of the method, with the value of every choice.
        lr: Learning rate passed to the task, None if none was.
        seed: The seed.
        status: ``ok``; ``diverged`` if its validation or test metric is NaN or infinite; ``failed`` if the task raised.
        metrics: Metrics returned by the task; NaN where a metric is not finite, empty if it failed.
        seconds: Wall time.
        balance: From the balancer: ``refreshes``, ``mean_multiplier`` over units and refreshes, ``first_imbalance`` and
            ``last_imbalance``, the means over balancers if there are several; empty without a balancer.
        error: The traceback, if it failed.
    """

    method: str
    lr: float | None
    seed: int
    status: Literal["ok", "diverged", "failed"]
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    seconds: float
    balance: Mapping[str, float] = field(default_factory=dict[str, float])
    error: str = ""

    @property
    def reason(self) -> str:
        """The last line of the traceback, with the line of the task that raised; empty if it did not fail."""
        last = self.error.rpartition("Traceback (most recent call last):")[2].strip()
        place = re.search(r'File "([^"]+)", line (\d+)', last)
        return last.rpartition("\n")[2] + (f" ({Path(place[1]).name}, line {place[2]})" if place else "")


@dataclass(frozen=True, kw_only=True)
class Task:
    """A training function with its settings.

    Attributes:
        name: Name of its file, or of the function.
        digest: Hash of its file; or of the source of the function, with the constants, defaults and other values from
            around it that it uses.
        function: ``train(seed, method, ...)``.
        parameters: Further arguments, besides ``lr``.
        custom_methods: Methods that the task adds, by name.
        supports: The hooks that it calls, and what else it has that a training method may need.
    """

    name: str
    digest: str
    function: Callable[..., object]
    parameters: Mapping[str, Any]
    custom_methods: CustomMethods = field(default_factory=dict[str, Callable[..., object]])
    supports: frozenset[str] = frozenset()

    def check(self, configuration: Configuration) -> None:
        """Check that the function accepts the arguments of a configuration, and has what its method needs."""
        signature = inspect.signature(self.function)
        method = Method(configuration.method, custom=self.custom_methods)
        try:
            signature.bind(**self._arguments(configuration, method, seed=0))
        except TypeError as error:
            raise StudyError(
                f"{_FUNCTION}{signature} of {self.name} cannot be called: {error}. It is called with seed, method, the "
                "parameters of the study, and lr if there are learning rates"
            ) from error
        if lacking := method.requirements() - self.supports:
            hooks = [hook for hook in HOOKS if hook in lacking]
            parts = [f"the {'hooks' if len(hooks) > 1 else 'hook'} {', '.join(hooks)}"] if hooks else []
            parts += [f"{fact} ({text})" for fact, text in FACTS.items() if fact in lacking]
            raise StudyError(
                f"{configuration.method} needs {' and '.join(parts)}, which {self.name} does not support. If it does, "
                f"add to {_SUPPORTS} of its file; how a task calls the hooks is in the docstring of "
                "tempbalance.study.TrainingMethod"
            )

    def run(self, configuration: Configuration, seed: int) -> Trial:
        """Train once. Global random generators are seeded, and restored afterwards; so is the working folder.

        Args:
            configuration: The method and the learning rate.
            seed: The seed.

        Returns:
            The trial, even if it diverged or failed.

        Raises:
            StudyError: The function ended without calling ``method.balance``, so every trial would fail.
        """
        method = Method(configuration.method, seed, self.custom_methods)
        began = time.perf_counter()
        metrics: dict[str, float] = {}
        error = ""
        try:
            metrics = _read_metrics(self.call(configuration, method, seed))
            _check_called(method)
        except (Exception, SystemExit) as raised:
            metrics, error = {}, _format(raised)
        if not error and not method.called:
            raise StudyError(
                f"{_FUNCTION} of {self.name} did not call method.balance(optimizer, model): all methods are the same"
            )
        finite = all(math.isfinite(metrics.get(name, 0.0)) for name in ("validation", "test"))
        seconds, balance = time.perf_counter() - began, _balance(method)
        del method
        if seconds > _LONG:  # a model in a cycle would keep its memory, also that of a GPU; collecting takes 0.1 s
            gc.collect()
        return Trial(
            method=configuration.method,
            lr=configuration.lr,
            seed=seed,
            status="failed" if error else "ok" if finite else "diverged",
            metrics=metrics,
            seconds=seconds,
            balance=balance,
            error=error,
        )

    def call(self, configuration: Configuration, method: Method, seed: int) -> object:
        """Call the function with a method, and return what it returns."""
        with _isolated(seed):
            return self.function(**self._arguments(configuration, method, seed))

    def _arguments(self, configuration: Configuration, method: Method, seed: int) -> dict[str, Any]:
        rate = {} if configuration.lr is None else {"lr": configuration.lr}
        return {**self.parameters, **rate, "seed": seed, "method": method}


def _format(raised: BaseException) -> str:
    """Return the traceback, from the first line of the task on."""
    frames = raised.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(raised), raised, frames))


def load_task(
    task: str | os.PathLike[str] | Callable[..., object], parameters: Mapping[str, Any] | None = None
) -> Task:
    """Load a training function ``train(seed, method, ...)``.

    Args:
        task: A Python file with a function ``train``, whose folder is added to ``sys.path`` as by ``python FILE``; or
            a function. ``METHODS`` in the same module adds methods: classes or functions by name. ``SUPPORTS`` names
            the hooks that the function calls, see :class:`TrainingMethod`.
        parameters: Further arguments of the function, besides ``seed``, ``method`` and ``lr``.

    Returns:
        The task.

    Raises:
        StudyError: The file does not exist, cannot be imported or has no such function, or its ``METHODS`` are not
            functions or classes by new names, or ``SUPPORTS`` has an unknown word.
    """
    given = dict(parameters or {})
    if callable(task):
        inner = task.func if isinstance(task, functools.partial) else task
        names = getattr(inspect.unwrap(inner), "__globals__", {})
        return Task(
            name=getattr(inner, "__name__", _FUNCTION),
            digest=_hash(_source(task).encode()),
            function=task,
            parameters=given,
            custom_methods=_custom_methods("the task", names),
            supports=_supports("the task", names),
        )
    path = Path(task)
    module = _import(path)
    function = module.get(_FUNCTION)
    if not callable(function):
        raise StudyError(f"{path} has no function {_FUNCTION}(seed, method, ...)")
    return Task(
        name=path.name,
        digest=_hash(path.read_bytes()),
        function=function,
        parameters=given,
        custom_methods=_custom_methods(str(path), module),
        supports=_supports(str(path), module),
    )


def _source(task: object) -> str:
    """Return the text that identifies a function: its source, and the values that it has from elsewhere."""
    if isinstance(task, functools.partial):
        return _source(task.func) + _ADDRESS.sub("", f"{task.args}{task.keywords}")
    try:
        function: Any = inspect.unwrap(task)  # type: ignore[arg-type]  # the next lines raise if it is none
        source, used = inspect.getsource(function), inspect.getclosurevars(function)
    except (OSError, TypeError, ValueError):  # typed at a prompt, or not a function
        return repr(task)
    constants = {name: value for name, value in used.globals.items() if isinstance(value, _CONSTANTS)}
    values = [each for each in (used.nonlocals, constants, function.__defaults__, function.__kwdefaults__) if each]
    return source + (_ADDRESS.sub("", repr(values)) if values else "")


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:_DIGITS]


def _import(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise StudyError(f"there is no task file {path}")
    known = sys.modules.get(path.stem)
    own = known is None or getattr(known, "__file__", None) == str(path.resolve())
    # processes that unpickle its classes, such as workers of a loader, import it by this name
    module_name = path.stem if own else f"tempbalance_task_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path.resolve())
    if spec is None or spec.loader is None:
        raise StudyError(f"{path} is not a Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    if sys.path[0] != (folder := str(path.parent.resolve())):
        sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise StudyError(f"cannot import {path}: {''.join(traceback.format_exception_only(error)).strip()}") from error
    return vars(module)


def _custom_methods(owner: str, module: Mapping[str, Any]) -> CustomMethods:
    methods = module.get(_METHODS, {})
    if not isinstance(methods, Mapping) or not all(map(callable, methods.values())):
        raise StudyError(f"{_METHODS} of {owner} must give a class or function by name, as in {{'lora': Lora}}")
    for name in methods:
        if not str(name).isidentifier() or is_taken(name):
            raise StudyError(f"{_METHODS} of {owner}: {name!r} is taken, or is not a valid name for a method")
    return methods


def _supports(owner: str, module: Mapping[str, Any]) -> frozenset[str]:
    found = module.get(_SUPPORTS, ())
    known = (*HOOKS, *FACTS)
    if isinstance(found, str) or not isinstance(found, Collection) or not all(word in known for word in found):
        raise StudyError(f"{_SUPPORTS} of {owner} must be a tuple of some of {', '.join(known)}; got {found!r}")
    return frozenset(found)


@contextmanager
def _isolated(seed: int) -> Iterator[None]:
    """Seed the global generators; restore them and the working folder afterwards."""
    python, numpy, folder = random.getstate(), np.random.get_state(), os.getcwd()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        os.chdir(folder)  # paths of the next trial, and of the study, may be relative


def _check_called(method: Method) -> None:
    if uncalled := (method.requirements() & {*HOOKS}) - method.called_hooks:
        raise StudyError(f"{_FUNCTION} did not call {', '.join(sorted(uncalled))} of method, which {method.name} needs")


def _read_metrics(returned: object) -> dict[str, float]:
    metrics: dict[Any, Any] = dict(returned) if isinstance(returned, Mapping) else {"test": returned}
    numbers: dict[str, float] = {}
    for name, value in metrics.items():
        try:
            numbers[str(name)] = float(value.item() if isinstance(value, torch.Tensor) else value)
        except (TypeError, ValueError, RuntimeError):  # of a tensor with several elements
            raise StudyError(f"{_FUNCTION} must return numbers; it returned {value!r:.80} for {name}") from None
    if "test" not in numbers:
        raise StudyError(
            f"{_FUNCTION} must return a number, or a mapping of numbers with 'test' and, for tuning, 'validation'; "
            f"it returned {returned!r}"
        )
    return {name: number if math.isfinite(number) else math.nan for name, number in numbers.items()}


def _balance(method: Method) -> dict[str, float]:
    histories = [balancer.history for balancer in method.balancers if balancer.history]
    if not histories:
        return {}
    refreshes = [refresh for history in histories for refresh in history]
    return {
        "refreshes": len(refreshes),
        "mean_multiplier": fmean(unit.multiplier for refresh in refreshes for unit in refresh.units),
        "first_imbalance": fmean(history[0].imbalance for history in histories),
        "last_imbalance": fmean(history[-1].imbalance for history in histories),
    }
