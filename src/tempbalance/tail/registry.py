"""Registry of estimators by name, for Python, recipes, the command line and studies."""

from __future__ import annotations

import importlib
from dataclasses import fields, replace
from typing import Any

from tempbalance.errors import SelectionError
from tempbalance.tail.averaged import AveragedHill
from tempbalance.tail.estimator import TailEstimator
from tempbalance.tail.hill import Hill
from tempbalance.tail.ks import KS
from tempbalance.tail.peak import Peak

__all__ = ["find_estimator", "register_estimator"]

_ESTIMATORS: dict[str, type[TailEstimator]] = {"hill": Hill, "peak": Peak, "ks": KS, "averaged_hill": AveragedHill}


def find_estimator(estimator: str | TailEstimator | None, **parameters: Any) -> TailEstimator:
    """Return an estimator, given its name.

    Args:
        estimator: A name (``"hill"``, ``"peak"``, ``"ks"``, ``"averaged_hill"``; ``-`` and ``_`` are the same), the
            path of a class as ``"package.module:Class"``, or an estimator. None is ``"hill"``.
        **parameters: Fields of the estimator that differ from its defaults.

    Returns:
        The estimator.

    Raises:
        SelectionError: There is no estimator of this name, or it has no such parameter.

    Example:
        >>> find_estimator("averaged-hill", low=0.2)
        AveragedHill(min_eigenvalues=10, low=0.2, high=0.5)
        >>> find_estimator("tempbalance.released:HillAsReleased").xmin_position
        2.0
    """
    found = (
        estimator if isinstance(estimator, TailEstimator) else _class_of("hill" if estimator is None else estimator)()
    )
    unknown = set(parameters) - {field.name for field in fields(found)}
    if unknown:
        names = ", ".join(field.name for field in fields(found))
        raise SelectionError(f"{type(found).__name__} has no parameter {min(unknown)!r}; it has {names}")
    return replace(found, **parameters) if parameters else found


def register_estimator(name: str, estimator: type[TailEstimator]) -> None:
    """Add a name (lower case, words joined by ``_``) of a class that needs no arguments."""
    _ESTIMATORS[name] = estimator


def _class_of(name: str) -> type[TailEstimator]:
    if not isinstance(name, str):
        raise SelectionError(f"expected an estimator or its name, got {type(name).__name__} {name!r}")
    found: Any = _ESTIMATORS.get(name.lower().replace("-", "_"))
    module, _, attribute = name.partition(":")
    if found is None and attribute:
        try:
            found = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            raise SelectionError(f"cannot load the estimator {name!r}: {error}") from error
    if found is None:
        raise SelectionError(
            f"unknown estimator {name!r}: expected one of {', '.join(_ESTIMATORS)}, or 'package.module:Class' "
            "(released code: 'tempbalance.released:HillAsReleased')"
        )
    if not (isinstance(found, type) and issubclass(found, TailEstimator)):
        raise SelectionError(f"{name!r} is not a subclass of TailEstimator")
    return found
