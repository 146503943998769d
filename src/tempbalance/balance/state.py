"""The state of each parameter group, and its place in the state dict of the optimizer: one JSON text per group.

A text is a single leaf for code that saves, flattens, gathers or broadcasts a state dict; torch.distributed.checkpoint
drops empty containers and any entry that a container did not have before the first step.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch.optim import Optimizer

from tempbalance.errors import BalanceError
from tempbalance.types import Status

__all__ = ["KEY", "CachedFit", "new_state", "pack", "read", "unpack"]

KEY = "tempbalance"  # key of the state in a parameter group


class CachedFit(NamedTuple):
    """The last fit of one weight.

    Attributes:
        alpha: Exponent; NaN without a fit.
        stderr: Standard error of alpha; NaN without a fit.
        radius: Frobenius norm of a change of the weight up to which alpha stays within the tolerance.
        status: ``OK``; ``RANDOM`` if the weight has a fit, but its spectrum is that of a random matrix; else the
            reason for no fit. None if measuring raised an error, or if a version that did not keep the status saved it.
    """

    alpha: float
    stderr: float
    radius: float
    status: Status | None = None


def new_state(unit: str | None, names: Sequence[str | None]) -> dict[str, Any]:
    """Return the state of a parameter group before the first refresh; all its keys are here.

    Args:
        unit: Name of the unit; None for parameters in no unit.
        names: Names of the parameters; None for a parameter that is not of the model.

    Returns:
        ``unit`` and ``names`` as given; ``alpha`` of the unit, its ``first`` alpha, and its ``status``; ``weights``,
        the fits by name of weight; the ``multiplier``, the one before it (``from``), and the step at which it took
        effect (``refreshed``); the ``next`` multiplier with its step; the number of ``steps`` taken.
    """
    return {
        **{"unit": unit, "names": list(names)},
        **{"alpha": math.nan, "first": math.nan, "status": None, "weights": dict[str, CachedFit]()},
        **{"multiplier": 1.0, "from": 1.0, "refreshed": None, "next": None, "steps": 0},
    }


def pack(_optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
    """Post-hook of ``Optimizer.state_dict``: convert the state of each group to a text."""
    for group in state_dict["param_groups"]:
        if KEY in group:
            group[KEY] = _to_text(group[KEY])


def read(group: dict[str, Any]) -> None:
    """Read the text of a group that was loaded without ``unpack`` (by ZeroRedundancyOptimizer)."""
    if isinstance(group.get(KEY), str):
        group[KEY] = _from_text(group[KEY])


def unpack(optimizer: Optimizer, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Pre-hook of ``Optimizer.load_state_dict``: read the texts, and check that the groups match the saved ones."""
    groups = [{**group, KEY: _from_text(group[KEY])} if KEY in group else group for group in state_dict["param_groups"]]
    _check(optimizer.param_groups, groups)
    return {**state_dict, "param_groups": groups}


def _to_text(state: Mapping[str, Any]) -> str:
    weights = {
        name: (_or_null(fit.alpha), _or_null(fit.stderr), fit.radius, fit.status)
        for name, fit in state["weights"].items()
    }
    saved = {**state, "alpha": _or_null(state["alpha"]), "first": _or_null(state["first"]), "weights": weights}
    return json.dumps(saved)


def _from_text(text: str) -> dict[str, Any]:
    saved: dict[str, Any] = json.loads(text)
    state = new_state(saved["unit"], saved["names"]) | saved
    return state | {
        "alpha": _or_nan(state["alpha"]),
        "first": _or_nan(state["first"]),
        "status": None if state["status"] is None else Status(state["status"]),
        "weights": {name: _read_fit(*fit) for name, fit in state["weights"].items()},
    }


def _read_fit(alpha: float | None, stderr: float | None, radius: float, status: str | None = None) -> CachedFit:
    if status is None and alpha is not None:  # saved by a version without statuses
        status = Status.OK
    return CachedFit(_or_nan(alpha), _or_nan(stderr), radius, None if status is None else Status(status))


def _or_null(value: float) -> float | None:
    return None if math.isnan(value) else value


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _check(own_groups: Sequence[Mapping[str, Any]], saved_groups: Sequence[Mapping[str, Any]]) -> None:
    own, saved = (
        [group[KEY]["names"] if KEY in group else None for group in groups] for groups in (own_groups, saved_groups)
    )
    if own == saved:
        return
    if all(names is None for names in saved):
        raise BalanceError(
            "this optimizer state was saved without tempbalance: load it before the Balancer is built, which keeps it"
        )
    place = next((i for i, (a, b) in enumerate(zip(own, saved, strict=False)) if a != b), min(len(own), len(saved)))
    here, there = ((names[place] or ["?"])[0] if place < len(names) else "none" for names in (own, saved))
    raise BalanceError(
        f"this optimizer state was saved with other parameter groups ({len(saved)}, here {len(own)}): group {place} "
        f"started with {there}, here with {here}; use the same model, optimizer groups and recipe as in the saved run"
    )
