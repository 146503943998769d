"""The settings of an adapter, ``adapter_config.json``: they come from a file and are checked before they are used."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tempbalance.errors import CorruptFileError

__all__ = ["by_pattern", "check_settings"]

_QUANTIFIED = re.compile(r"(?<!\\)\)[*+{]")  # a group that is repeated may take exponential time
_UNBOUNDED = re.compile(r"(?<!\\)[*+]|\{\d*,\}")
_MOST_UNBOUNDED = 5  # with so many, a pattern takes polynomial time; those of training tools have fewer
_LONGEST = 2000


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_rank(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0  # OFT has 0: its blocks have a size


def _are_strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _are_patterns(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_number(v) and v > 0 and _is_pattern(k) for k, v in value.items())


def _is_pattern(value: Any) -> bool:
    """Return whether a regular expression is valid, and fast on any name."""
    if not isinstance(value, str) or len(value) > _LONGEST or _QUANTIFIED.search(value):
        return False
    try:
        re.compile(value)
    except (re.error, RecursionError, OverflowError):
        return False
    return len(_UNBOUNDED.findall(value)) <= _MOST_UNBOUNDED


def _are_names(value: Any) -> bool:
    return _is_pattern(value) or _are_strings(value)


_CHECKS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "peft_type": (lambda value: isinstance(value, str), "a string"),
    "r": (_is_rank, "an integer from 0"),
    "lora_alpha": (_is_number, "a number"),
    "alpha": (_is_number, "a number"),
    "rank_pattern": (_are_patterns, "an object from patterns of names to numbers"),
    "alpha_pattern": (_are_patterns, "an object from patterns of names to numbers"),
    "target_modules": (_are_names, "names, or a pattern of names without repeated groups"),
    "exclude_modules": (_are_names, "names, or a pattern of names without repeated groups"),
    "layers_pattern": (_are_names, "names, or a pattern of names without repeated groups"),
    "target_parameters": (_are_strings, "a list of names"),
    "modules_to_save": (_are_strings, "a list of names"),
    "auto_mapping": (lambda value: isinstance(value, dict), "an object"),
}


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise a CorruptFileError if a setting of an adapter has a wrong type, or if a pattern may take very long."""
    for key, (check, expected) in _CHECKS.items():
        value = settings.get(key)
        if value is not None and not check(value):
            raise CorruptFileError(f"adapter_config.json: {key} must be {expected}, got {repr(value)[:100]}")


def by_pattern(patterns: Mapping[str, Any] | None, name: str, default: Any) -> Any:
    """Return the value of the first pattern that is the end of a name, as PEFT does; ``default`` if there is none.

    Example:
        >>> by_pattern({"mlp.up_proj": 4}, "layers.0.mlp.up_proj", 8)
        4
    """
    found: Iterable[Any] = (v for key, v in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", name))
    return next(iter(found), default)
