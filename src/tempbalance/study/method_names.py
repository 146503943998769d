"""Names of methods as text: ``name:parameter=value,...``, joined by ``+``."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from tempbalance.errors import StudyError
from tempbalance.spectra.windows import FARMS

__all__ = ["Part", "join", "line_parts", "read_parts", "read_value", "with_option", "without_spaces"]

_PLUS = re.compile(r"\+(?=[A-Za-z_])")  # not the one in 1e+4
_WORDS = {"true": True, "false": False, "none": None, "farms": FARMS()}


class Part(NamedTuple):
    """One of the names joined by ``+``, with its parameters.

    Attributes:
        name: Its name.
        choices: Unparsed values by parameter; several if the value is a list.
    """

    name: str
    choices: dict[str, list[ast.expr]]

    @property
    def texts(self) -> dict[str, list[str]]:
        """``parameter=value`` for every choice."""
        return {key: [f"{key}={ast.unparse(node)}" for node in nodes] for key, nodes in self.choices.items()}


def read_parts(text: str) -> list[Part]:
    """Return the parts of a text such as ``a:x=1+b:y=[2,3]``.

    Raises:
        StudyError: The text cannot be parsed, a list is empty, or a parameter or a value occurs twice.

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
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
        raise StudyError(f"cannot read {text!r}: write name:parameter=value,parameter=value")
    found: dict[str, list[ast.expr]] = {}
    for keyword in call.keywords:
        key = keyword.arg or "**"
        nodes = keyword.value.elts if isinstance(keyword.value, ast.List) else [keyword.value]
        if not nodes:
            raise StudyError(f"{text}: {key} is an empty list")
        if key in found or len({ast.unparse(node) for node in nodes}) < len(nodes):
            raise StudyError(f"{text}: {key} has the same value twice, or occurs twice")
        found[key] = nodes
    return found


def read_value(text: str, node: ast.expr) -> Any:
    """Parse a literal, or a word such as ``true``, ``farms`` or ``ks``; ``text`` is the name, for the error."""
    if isinstance(node, ast.Name):
        return _WORDS.get(node.id.lower(), node.id)
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise StudyError(f"{text}: {ast.unparse(node)} is neither a number nor a word; put a path in quotes") from None


def join(parts: Iterable[tuple[str, Sequence[str]]]) -> str:
    """Write names with their ``parameter=value`` texts in the form that :func:`read_parts` reads, without spaces."""
    return without_spaces("+".join(f"{name}:{','.join(options)}".removesuffix(":") for name, options in parts))


def with_option(text: str, name: str, option: str) -> str:
    """Return the text with ``parameter=value`` added to one of the names joined by ``+``.

    Example:
        >>> with_option("a+b:y=[2,3]", "b", "z=1")
        'a+b:y=[2,3],z=1'
    """
    parts = [(part, part.partition(":")) for part in _PLUS.split(text)]
    added = [f"{part}{',' if colon else ':'}{option}" if own == name else part for part, (own, colon, _) in parts]
    return "+".join(added)


def without_spaces(name: str) -> str:
    """Return the name of a method without spaces, except in quotes."""
    return re.sub(r"('[^']*'|\"[^\"]*\")| ", lambda found: found[1] or "", name)


def line_parts(name: str) -> list[str]:
    """Return the parts of a name that a table may put on lines of their own.

    Example:
        >>> line_parts("fixed:multipliers={'role:v':0.5},control=uniform lr=0.1")
        ['fixed:', "multipliers={'role:v':0.5},", 'control=uniform ', 'lr=0.1']
    """
    return re.split(r"(?<=[, ])|(?<=:)(?=\w+=)", name)
