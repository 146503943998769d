"""Options of parameter groups that are multiplied for the length of one step."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

__all__ = ["Applied"]


class _Change(NamedTuple):
    """An option of a group: what it was, and what it is for now."""

    group: dict[str, Any]
    key: str
    original: Any
    applied: Any


class Applied:
    """What is multiplied at the moment, and how to put it back.

    Example:
        >>> group, applied = {"lr": 0.1}, Applied()
        >>> applied.multiply(group, "lr", 2.0)
        >>> group["lr"]
        0.2
        >>> applied.put_back()
        >>> group["lr"]
        0.1
    """

    def __init__(self) -> None:
        self._changes: list[_Change] = []

    def multiply(self, group: dict[str, Any], key: str, multiplier: float) -> None:
        """Multiply an option, a number or a tensor.

        Args:
            group: The parameter group.
            key: Name of the option.
            multiplier: The factor.
        """
        value = group[key]
        if isinstance(value, Tensor):  # in place: a compiled or captured step reads this very tensor
            original = value.clone()
            value.mul_(multiplier)
        else:
            original = value
            group[key] = value * multiplier
        self._changes.append(_Change(group, key, original, group[key]))

    def put_back(self) -> None:
        """Give all options the values that they had."""
        for group, key, original, applied in self._changes:
            if isinstance(original, Tensor):
                group[key].copy_(original)
            elif group[key] == applied:  # else somebody has set it since a step that raised
                group[key] = original
        self._changes.clear()
