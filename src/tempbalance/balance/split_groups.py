"""Parameter groups that are split by unit for the length of one optimizer step.

The optimizer keeps the groups that its user made. For a step they are replaced, in the same list, by one group per
unit (a *part*) with multiplied options; after the step the user's groups are put back. The parts are kept from step to
step, because some optimizers keep counters in their groups.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["SplitGroups"]

_MEMBERS = ("params", "param_names")  # the keys of a group that are not options
_SAVED = (bool, int, float, str)


class SplitGroups:
    """The groups of an optimizer, split by unit between ``enter`` and ``leave``.

    An option that the user (a scheduler) changes in a group is copied to its parts. An option that the optimizer
    changes in a part is copied to the group; if the parts then differ, the group gets the value of the first one, and
    each part keeps its own.

    Attributes:
        inside: Whether the groups are split now.

    Example:
        >>> weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
        >>> optimizer = torch.optim.SGD(weights, lr=0.1)
        >>> groups = SplitGroups(optimizer, ("lr",))
        >>> groups.set_units({"0": "stem", "1": "head"}, lambda: {"0": weights[0], "1": weights[1]})
        >>> groups.enter({"head": 2.0})
        >>> [group["lr"] for group in optimizer.param_groups]
        [0.1, 0.2]
        >>> groups.leave()
        >>> [group["lr"] for group in optimizer.param_groups]
        [0.1]
    """

    def __init__(self, optimizer: Optimizer, keys: Sequence[str]) -> None:
        """Prepare to multiply the options ``keys`` of the groups of an optimizer."""
        self.inside = False
        self._optimizer = optimizer
        self._keys = keys
        self._unit_of: Mapping[str, str] = {}
        self._named: Callable[[], Mapping[str, Tensor]] = dict
        self._name_of: Mapping[int, str] = {}
        self._groups: list[_Group] = []
        self._parts: list[dict[str, Any]] = []
        self._loaded: dict[str, dict[str, Any]] = {}

    def set_units(self, unit_of: Mapping[str, str], named: Callable[[], Mapping[str, Tensor]]) -> None:
        """Set the unit of each parameter by name; parameters without a unit are in a part of theirs.

        ``named`` returns the parameters by name. It is called whenever the groups are split anew: code of the user may
        have replaced a parameter.
        """
        own = self.own_options()
        self._unit_of, self._named = unit_of, named
        self.load(own)

    def load(self, options: Mapping[str, Mapping[str, Any]]) -> None:
        """Start anew from the groups of the optimizer, with a result of ``own_options``."""
        self._groups = []
        self._loaded = {name: dict(own) for name, own in options.items()}

    def enter(self, multipliers: Mapping[str, float]) -> None:
        """Put the parts in the place of the user's groups, with their options multiplied by those of their units."""
        groups = self._optimizer.param_groups
        if not self._is_current(groups):
            self._build(groups)
        for group in self._groups:
            group.push()
            group.scale(multipliers)
        self._list = groups
        self.inside = True  # before the next line: if that is interrupted, ``leave`` puts the groups back
        groups[:] = self._parts  # in place: a wrapper may share the list

    def leave(self) -> None:
        """Put the user's groups back, with what the optimizer has changed in their parts.

        If it is interrupted, another call does the rest.
        """
        if not self.inside:
            return
        if self._list and self._list[0] is self._parts[0]:
            added = self._list[len(self._parts) :]  # by the optimizer, during the step
            self._list[:] = [*(group.options for group in self._groups), *added]
        self.inside = False
        for group in self._groups:
            group.pull()

    def own_options(self) -> dict[str, dict[str, Any]]:
        """Return the options in which a part differs from its group, by the name of the part's first parameter."""
        named = {key: part.own(group.seen, self._keys) for key, group, part in self._keyed_parts(self._groups)}
        return {**self._loaded, **{name: own for name, own in named.items() if own}}

    def _is_current(self, groups: Sequence[dict[str, Any]]) -> bool:
        """Return whether the parts belong to these groups and their parameters."""
        return len(groups) == len(self._groups) and all(
            group.options is options and _same(group.params, options["params"])
            for group, options in zip(self._groups, groups, strict=True)
        )

    def _build(self, groups: Sequence[dict[str, Any]]) -> None:
        own = self.own_options()
        self._name_of = {id(parameter): name for name, parameter in self._named().items()}
        before = {id(group.options): group.seen for group in self._groups}
        new = [_Group(options, self._members(options), self._keys, before.get(id(options))) for options in groups]
        for key, group, part in self._keyed_parts(new):
            part.group.update(_like(group.seen, own.get(key, {})))
        # Last, and the one that tells that it is done at the end: an interrupt before leads to another build.
        self._parts = [part.group for group in new for part in group.parts]
        self._groups = new
        self._loaded = {}

    def _members(self, options: Mapping[str, Any]) -> dict[str | None, list[int]]:
        """Return the places of the parameters of each unit in a group."""
        members: dict[str | None, list[int]] = {}
        for place, parameter in enumerate(options["params"]):
            members.setdefault(self._unit_of.get(self._name_of.get(id(parameter), "")), []).append(place)
        return members or {None: []}

    def _keyed_parts(self, groups: Sequence[_Group]) -> Iterator[tuple[str, _Group, _Part]]:
        """Yield every part with its key in a saved state: the name of its first parameter."""
        for i, group in enumerate(groups):
            for part in group.parts:
                first = part.group["params"][0] if part.group["params"] else None
                yield self._name_of.get(id(first), f"of no model, in group {i}"), group, part


class _Part:
    """The parameters of one unit in one group of the user, as a group of its own.

    Attributes:
        unit: Name of the unit, which is empty for the model itself; None for parameters in no unit.
        group: What the optimizer gets.
        given: The options as the optimizer got them in the current step.
        multiplier: The factor in the current step.
    """

    __slots__ = ("given", "group", "multiplier", "unit", "versions")

    def __init__(self, unit: str | None, options: Mapping[str, Any]) -> None:
        self.unit = unit
        self.group = {key: _cloned(value) for key, value in options.items()}
        self.given: dict[str, Any] = {}
        self.versions: dict[str, int] = {}
        self.multiplier = 1.0

    def is_unchanged(self) -> bool:
        """Return whether the optimizer has changed no option; quick, and almost always true without tensors."""
        try:
            return not self.versions and self.group == self.given
        except (RuntimeError, ValueError):  # arrays have no single truth value
            return False

    def changes(self) -> dict[str, Any]:
        """Return the options that the optimizer has changed or added in the step."""
        versions = _versions(self.group)
        return {
            key: value
            for key, value in self.group.items()
            if versions.get(key) != self.versions.get(key) or key not in self.given or _differ(value, self.given[key])
        }

    def own(self, options: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
        """Return the options that can be saved and differ from those of the group."""
        named = {key: value for key, value in _options(self.group).items() if key not in keys}
        saved = {key: _saved(value) for key, value in named.items()}
        return {key: own for key, own in saved.items() if own is not None and own != _saved(options.get(key))}


class _Group:
    """A group of the user and its parts.

    Attributes:
        options: The group itself.
        params: Its parameters when it was split.
        seen: Its options after the last exchange with the parts.
        parts: The parts.
    """

    def __init__(
        self,
        options: dict[str, Any],
        members: Mapping[str | None, list[int]],
        keys: Sequence[str],
        seen: dict[str, Any] | None,
    ) -> None:
        self.options = options
        self.params = list(options["params"])
        self.seen = _options(options) if seen is None else seen
        self._num_members = sum(key in options for key in _MEMBERS)
        self._keys = keys
        self._versions = _versions(self.seen)
        self._scaled: tuple[Any, ...] = ()  # the multipliers and values that the parts have
        self.parts = []
        for unit, places in members.items():
            lists = {key: [options[key][place] for place in places] for key in _MEMBERS if key in options}
            self.parts.append(_Part(unit, {**self.seen, **lists}))

    def push(self) -> None:
        """Copy the options that the user has changed to the parts; numbers that are multiplied are set by ``scale``."""
        if not self._versions and not any(isinstance(self.options[key], Tensor) for key in self._keys):
            self.seen.update({key: self.options[key] for key in self._keys})
            if self._is_unchanged():
                return
        options = _options(self.options)
        versions = _versions(options)
        for part in self.parts:
            for key in self.seen.keys() - options.keys():
                part.group.pop(key, None)
        for key, value in options.items():
            known = key in self.seen and versions.get(key) == self._versions.get(key)
            if not known or _differ(value, self.seen[key]):
                for part in self.parts:
                    _set(part.group, key, value)
        self.seen, self._versions = options, versions
        self._scaled = ()

    def _is_unchanged(self) -> bool:
        """Return whether the options are those that were seen; quick, for groups without tensors."""
        if len(self.options) != len(self.seen) + self._num_members:
            return False
        return all(not _differ(self.options.get(key, self), value) for key, value in self.seen.items())

    def scale(self, multipliers: Mapping[str, float]) -> None:
        """Set the multiplied options of the parts, and note all options as the optimizer gets them."""
        values = [self.options[key] for key in self._keys]
        if any(isinstance(value, Tensor) for value in values):
            self._scaled = ()  # its value may have changed in place
        elif self._scaled and self._scaled[0] is multipliers and self._scaled[1:] == (*values,):
            return
        for part in self.parts:
            part.multiplier = multiplier = 1.0 if part.unit is None else multipliers.get(part.unit, 1.0)
            group = part.group
            for key, value in zip(self._keys, values, strict=True):
                if isinstance(value, Tensor):  # in place: a compiled or captured step reads this tensor
                    group[key].copy_(value.detach()).mul_(multiplier)
                else:
                    group[key] = value if multiplier == 1.0 else value * multiplier
                    part.given[key] = group[key]
            if not self._scaled:
                part.given = dict(group)
                part.versions = _versions(group)
        self._scaled = (multipliers, *values)

    def pull(self) -> None:
        """Copy the options that the optimizer has changed in a part to the group; the first part counts."""
        changed: dict[str, Any] = {}
        removed: set[str] = set()
        for part in self.parts:
            if part.is_unchanged():
                continue
            removed |= part.given.keys() - part.group.keys()
            for key, value in part.changes().items():
                if key in self._keys and part.multiplier:
                    changed.setdefault(key, value if part.multiplier == 1.0 else value / part.multiplier)
                elif key not in self._keys and key not in _MEMBERS:
                    changed.setdefault(key, value)
                self._scaled = ()
        for key, value in changed.items():
            _set(self.options, key, value)
        for key in removed:
            self.options.pop(key, None)
        if changed or removed:
            self.seen = _options(self.options)
            self._versions = _versions(self.seen)


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key not in _MEMBERS}


def _same(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return len(a) == len(b) and all(map(operator.is_, a, b))


def _versions(options: Mapping[str, Any]) -> dict[str, int]:
    """Return the number of changes in place of each tensor among the options."""
    return {key: value._version for key, value in options.items() if isinstance(value, Tensor)}


def _differ(a: Any, b: Any) -> bool:
    """Return whether two options differ; tensors differ if they are different objects."""
    if a is b:
        return False
    if isinstance(a, Tensor) or type(a) is not type(b):
        return True
    try:
        return bool(a != b)
    except (RuntimeError, ValueError):  # arrays have no single truth value
        return True


def _cloned(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _set(group: dict[str, Any], key: str, value: Any) -> None:
    """Set an option; a tensor is copied into the group's own tensor if that has the same layout."""
    own = group.get(key)
    if isinstance(value, Tensor) and isinstance(own, Tensor) and _layout(own) == _layout(value):
        own.detach().copy_(value.detach())
    else:
        group[key] = _cloned(value)


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.dtype, tensor.device


def _saved(value: Any) -> Any:
    """Return an option as it is saved: a number, text or list of them; None for anything else, and for NaN."""
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return None if any(_saved(item) is None for item in value) else list(value)
    is_number = not isinstance(value, float) or math.isfinite(value)  # JSON has no others
    return value if isinstance(value, _SAVED) and is_number else None


def _like(options: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return saved options with the types that they have in a group."""
    result: dict[str, Any] = {}
    for key, value in saved.items():
        old = options.get(key)
        if isinstance(old, Tensor):
            result[key] = torch.tensor(value, dtype=old.dtype, device=old.device)
        else:
            result[key] = tuple(value) if isinstance(old, tuple) else value
    return result
