"""Multiply options of parameter groups for the length of one step."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

__all__ = ["ScaledOptions"]


class _Change(NamedTuple):
    """An option of a group with its original and its multiplied value."""

    group: dict[str, Any]
    key: str
    original: Any
    applied: Any


class ScaledOptions:
    """The options that are multiplied now, with their original values.

    Example:
        >>> group, scaled = {"lr": 0.1}, ScaledOptions()
        >>> scaled.multiply(group, "lr", 2.0)
        >>> group["lr"]
        0.2
        >>> scaled.restore()
        >>> group["lr"]
        0.1
    """

    def __init__(self) -> None:
        self._changes: list[_Change] = []

    def multiply(self, group: dict[str, Any], key: str, multiplier: float) -> None:
        """Multiply an option, which is a number or a tensor."""
        value = group[key]
        if isinstance(value, Tensor):  # in place: a compiled or captured step reads this tensor
            original = value.clone()
            value.mul_(multiplier)
        else:
            original = value
            group[key] = value * multiplier
        self._changes.append(_Change(group, key, original, group[key]))

    def restore(self) -> None:
        """Restore the original values of all options."""
        for group, key, original, applied in self._changes:
            if isinstance(original, Tensor):
                group[key].copy_(original)
            elif group[key] == applied:  # else it was set by other code after a step that raised
                group[key] = original
        self._changes.clear()
