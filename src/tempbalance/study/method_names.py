"""Names of methods as text: ``name:parameter=value,...``, joined by ``+``."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from tempbalance.errors import StudyError
from tempbalance.spectra.windows import FARMS

__all__ = ["Part", "join", "read_parts", "read_value"]

_PLUS = re.compile(r"\+(?=[A-Za-z_])")  # not that of 1e+4
_WORDS = {"true": True, "false": False, "none": None, "farms": FARMS()}


class Part(NamedTuple):
    """What stands between two ``+``.

    Attributes:
        name: Its name.
        choices: The values for each parameter, unread; more than one if it was a list.
    """

    name: str
    choices: dict[str, list[ast.expr]]

    @property
    def texts(self) -> dict[str, list[str]]:
        """``parameter=value`` for every choice."""
        return {key: [f"{key}={ast.unparse(node)}" for node in nodes] for key, nodes in self.choices.items()}


def read_parts(text: str) -> list[Part]:
    """Read ``a:x=1+b:y=[2,3]``.

    Args:
        text: The text.

    Returns:
        Its parts.

    Raises:
        StudyError: It cannot be read, or a list is empty.

    Example:
        >>> [(part.name, part.texts) for part in read_parts("a+b:y=[2,3]")]
        [('a', {}), ('b', {'y': ['y=2', 'y=3']})]
    """
    parts = [part.partition(":") for part in _PLUS.split(text)]
    return [Part(name, _choices(text, options)) for name, _, options in parts]


def _choices(text: str, options: str) -> dict[str, list[ast.expr]]:
    try:
        call = ast.parse(f"_({options})", mode="eval").body
    except SyntaxError:
        call = None
    found: dict[str, list[ast.expr]] = {}
    if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and not call.args:
        for keyword in call.keywords:
            value = keyword.value
            found[keyword.arg or "**"] = value.elts if isinstance(value, ast.List) else [value]
        empty = [key for key, nodes in found.items() if not nodes]
        if empty:
            raise StudyError(f"{text}: {empty[0]} is an empty list")
        return found
    raise StudyError(f"cannot read {text!r}: write name:parameter=value,parameter=value")


def read_value(text: str, node: ast.expr) -> Any:
    """Read one value.

    Args:
        text: What it stands in, for the message.
        node: The value.

    Returns:
        A Python literal; or what a word like ``true`` or ``farms`` means, or the word.

    Raises:
        StudyError: It is anything else.
    """
    if isinstance(node, ast.Name):
        return _WORDS.get(node.id.lower(), node.id)
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise StudyError(f"{text}: {ast.unparse(node)} is neither a number nor a word") from None


def join(parts: Iterable[tuple[str, Sequence[str]]]) -> str:
    """Write names with their options, as :func:`read_parts` reads them.

    Args:
        parts: For each part its name and its ``parameter=value``.

    Returns:
        The text, without spaces.
    """
    return "+".join(f"{name}:{','.join(options)}".removesuffix(":") for name, options in parts).replace(" ", "")
