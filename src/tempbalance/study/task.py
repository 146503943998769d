"""The user's training function: found in a file, called with a seed and a method, its result made plain."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import math
import random
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np
import torch

from tempbalance.balance import recipes
from tempbalance.errors import StudyError
from tempbalance.study.candidates import Trial
from tempbalance.study.methods import PLAIN, Makers, Method

__all__ = ["Run", "Task", "load_task"]

_FUNCTION, _METHODS = "train", "METHODS"
_SHOWN = 12  # characters of a hash


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training.

    Attributes:
        method: Name of the method, every choice made.
        lr: The learning rate that the task was given, None if none was.
        seed: The seed.
        status: ``ok``; ``diverged`` if its validation or test metric is NaN or infinite; ``failed`` if the task raised.
        metrics: What the task returned; NaN where a metric is not finite, empty if it failed.
        seconds: Wall time.
        balance: What the balancer did: ``refreshes``, ``mean_multiplier`` over units and refreshes, ``first_imbalance``
            and ``last_imbalance``; empty without one.
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


@dataclass(frozen=True, kw_only=True)
class Task:
    """A training function with its settings.

    Attributes:
        name: Name of its file.
        digest: Hash of its file.
        function: ``train(seed, method, ...)``.
        parameters: What else it is called with, besides ``lr``.
        makers: Methods of its own.
    """

    name: str
    digest: str
    function: Callable[..., object]
    parameters: Mapping[str, Any]
    makers: Makers = field(default_factory=dict[str, Callable[..., object]])

    def check(self, trial: Trial) -> None:
        """Make sure that the function can be called.

        Args:
            trial: One of the trials.

        Raises:
            StudyError: It has no such parameter, or needs one more.
        """
        signature = inspect.signature(self.function)
        try:
            signature.bind(**self._arguments(trial, Method(trial.method, makers=self.makers), seed=0))
        except TypeError as error:
            raise StudyError(
                f"{_FUNCTION}{signature} of {self.name} cannot be called: {error}. It gets seed and method, lr where a "
                "learning rate is given, and the parameters that are set"
            ) from error

    def run(self, trial: Trial, seed: int) -> Run:
        """Train once. Global random generators start from the seed, and are put back afterwards.

        Args:
            trial: The method.
            seed: The seed.

        Returns:
            What came of it, whatever that is.
        """
        method = Method(trial.method, seed, self.makers)
        began = time.perf_counter()
        metrics: dict[str, float] = {}
        error = ""
        try:
            with _seeded(seed):
                metrics = _metrics(self.function(**self._arguments(trial, method, seed)))
            _check_called(method)
        except (Exception, SystemExit):
            metrics, error = {}, traceback.format_exc()
        finite = all(math.isfinite(metrics.get(name, 0.0)) for name in ("validation", "test"))
        return Run(
            method=trial.method,
            lr=trial.lr,
            seed=seed,
            status="failed" if error else "ok" if finite else "diverged",
            metrics=metrics,
            seconds=time.perf_counter() - began,
            balance=_balance(method),
            error=error,
        )

    def _arguments(self, trial: Trial, method: Method, seed: int) -> dict[str, Any]:
        rate = {} if trial.lr is None else {"lr": trial.lr}
        return {**self.parameters, **rate, "seed": seed, "method": method}


def load_task(path: Path, parameters: Mapping[str, Any] | None = None) -> Task:
    """Import a file with a function ``train(seed, method, ...)``; its folder goes on ``sys.path``, as by ``python``.

    Args:
        path: A Python file.
        parameters: What the function shall be called with besides ``seed``, ``method`` and ``lr``.

    Returns:
        The task.

    Raises:
        StudyError: There is no such file, it cannot be imported, has no such function, or its ``METHODS`` are not
            functions or classes by new names.
    """
    if not path.is_file():
        raise StudyError(f"there is no task file {path}")
    module_name = f"tempbalance_task_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise StudyError(f"{path} is no Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # as pickling its classes, in the workers of a loader, needs
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise StudyError(f"cannot import {path}: {''.join(traceback.format_exception_only(error)).strip()}") from error
    function = getattr(module, _FUNCTION, None)
    if not callable(function):
        raise StudyError(f"{path} has no function {_FUNCTION}(seed, method, ...)")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:_SHOWN]
    return Task(
        name=path.name,
        digest=digest,
        function=function,
        parameters=dict(parameters or {}),
        makers=_makers(path, module),
    )


def _makers(path: Path, module: object) -> Makers:
    """The methods that a file adds."""
    makers = getattr(module, _METHODS, {})
    if not isinstance(makers, Mapping) or not all(map(callable, makers.values())):
        raise StudyError(f"{_METHODS} of {path} must give a class or function by name, as in {{'lora': Lora}}")
    for name in makers:
        if not str(name).isidentifier() or name in (PLAIN, *recipes.__all__):
            raise StudyError(f"{_METHODS} of {path}: {name!r} is no name for a method, or another has it")
    return makers


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _check_called(method: Method) -> None:
    if not method.called:
        raise StudyError(f"{_FUNCTION} did not call method.balance(optimizer, model), so all methods are the same")


def _metrics(returned: object) -> dict[str, float]:
    """What a task returned, as numbers by name."""
    try:
        metrics: dict[Any, Any] = dict(returned) if isinstance(returned, Mapping) else {"test": returned}
        numbers = {
            str(name): float(value.item() if isinstance(value, torch.Tensor) else value)
            for name, value in metrics.items()
        }
    except (TypeError, ValueError, RuntimeError):  # of a tensor with several elements
        numbers = {}
    if "test" not in numbers:
        raise StudyError(
            f"{_FUNCTION} must return a number, or numbers by name with 'test' among them and, where the arena tunes, "
            f"'validation'; it returned {returned!r}"
        )
    return {name: number if math.isfinite(number) else math.nan for name, number in numbers.items()}


def _balance(method: Method) -> dict[str, float]:
    history = [refresh for balancer in method.balancers for refresh in balancer.history]
    if not history:
        return {}
    return {
        "refreshes": len(history),
        "mean_multiplier": fmean(unit.multiplier for refresh in history for unit in refresh.units),
        "first_imbalance": history[0].imbalance,
        "last_imbalance": history[-1].imbalance,
    }
