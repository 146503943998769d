"""Parameter groups by unit: split from those of an optimizer, or built for a new optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from tempbalance.balance.plan import make_plan
from tempbalance.balance.recipe import Recipe
from tempbalance.balance.state import KEY, new_state
from tempbalance.errors import BalanceError
from tempbalance.layers import Unit, parameter_names

__all__ = ["param_groups", "split_groups"]


def param_groups(
    model: nn.Module, recipe: Recipe, options: Callable[[str, Tensor], Mapping[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """Build parameter groups by unit for an optimizer that a ``Balancer`` will balance.

    ``Balancer`` splits the groups of any optimizer in the same way. Use this function where groups cannot be split
    later (ZeroRedundancyOptimizer).

    Args:
        model: A live model; parameters that require no gradient are left out.
        recipe: The recipe of the balancer.
        options: Function from a parameter's name and the parameter to its options, such as ``{"weight_decay": 0.0}``;
            parameters of one unit with equal options share a group.

    Returns:
        Groups with ``params``, a ``name``, and their options; no group is empty.

    Raises:
        BalanceError: There is nothing to balance.

    Example:
        >>> from tempbalance.balance.assign import Linear
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
        >>> recipe = Recipe(name="mine", assignment=Linear())
        >>> groups = param_groups(net, recipe, lambda _, p: {"weight_decay": 0.1 if p.ndim > 1 else 0.0})
        >>> [(group["name"], group["weight_decay"]) for group in groups]
        [('0', 0.1), ('0 (2)', 0.0), ('1', 0.1), ('1 (2)', 0.0)]
    """
    parameters = {name: p for name, p in parameter_names(model).items() if p.requires_grad}
    units = make_plan(model, recipe).units
    chosen = {name: dict(options(name, p)) if options else {} for name, p in parameters.items()}
    originals: list[dict[str, Any]] = []
    for name, parameter in parameters.items():
        group = next((g for g in originals if {k: v for k, v in g.items() if k != "params"} == chosen[name]), None)
        if group is None:
            originals.append(group := {**chosen[name], "params": []})
        group["params"].append(parameter)
    groups, _ = split_groups(originals, units, parameters)
    order = {id(parameter): place for place, parameter in enumerate(parameters.values())}
    for group in groups:
        del group[KEY]
    return sorted(groups, key=lambda group: order[id(group["params"][0])])


def split_groups(
    groups: Iterable[Mapping[str, Any]], units: Iterable[Unit], parameters: Mapping[str, Tensor]
) -> tuple[list[dict[str, Any]], list[int]]:
    """Split groups so that each contains parameters of one unit at most.

    Args:
        groups: Groups of an optimizer; they are not changed.
        units: The units.
        parameters: All parameters of the model by name.

    Returns:
        The new groups in the order of the old ones, with the same options and a new state under ``KEY``; and for each
        new group the index of the group that it was split from.

    Raises:
        BalanceError: The name of a group is not a string.
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    unit_of = {name: unit.name for unit in units for name in unit.parameters}
    result: list[dict[str, Any]] = []
    origins: list[int] = []
    taken: set[str] = set()
    for origin, group in enumerate(groups):
        parts: dict[str | None, list[int]] = {}
        for place, parameter in enumerate(group["params"]):
            parts.setdefault(unit_of.get(names.get(id(parameter), "")), []).append(place)
        given = group.get("name")
        if given is not None and not isinstance(given, str):
            raise BalanceError(f"the name of a parameter group must be a string, got {given!r}")
        for unit, places in parts.items():
            members = [group["params"][place] for place in places]
            new = {key: value.clone() if isinstance(value, Tensor) else value for key, value in group.items()}
            new["params"] = members
            if "param_names" in group:
                new["param_names"] = [group["param_names"][place] for place in places]
            label = given if len(parts) == 1 and given else " ".join(filter(None, [given, unit or "rest"]))
            new["name"] = _unique(label, taken)
            new[KEY] = new_state(unit, [names.get(id(parameter)) for parameter in members])
            result.append(new)
            origins.append(origin)
    return result, origins


def _unique(label: str, taken: set[str]) -> str:
    """Return a name that no other group has: loggers identify groups by name."""
    name, number = label, 1
    while name in taken:
        number += 1
        name = f"{label} ({number})"
    taken.add(name)
    return name
