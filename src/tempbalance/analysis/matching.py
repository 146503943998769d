"""Match the layers of two models by name: equal names, names under a common prefix or suffix, and renamed ones."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from tempbalance.errors import SelectionError

__all__ = ["Affix", "Matching", "common_affix", "match_layers", "renamed"]

Shapes = Mapping[str, tuple[int, ...]]
_SAME = 0.5  # share of the names under an affix that another affix may have, too


class Affix(NamedTuple):
    """A prefix or suffix that the names of one model have, and those of another have not.

    Attributes:
        text: The affix, with its dot: ``"bert."``.
        is_prefix: Whether it is a prefix.
        of_after: Whether the names of the second model have it.
    """

    text: str
    is_prefix: bool
    of_after: bool

    def __str__(self) -> str:
        """Return it as in ``prefix 'bert.'``."""
        return f"{'prefix' if self.is_prefix else 'suffix'} {self.text!r}"


class Matching(NamedTuple):
    """Pairs of layers.

    Attributes:
        pairs: For each layer of the second model that has a partner, the name of that in the first.
        affix: The prefix or suffix that one of the models has; None if it was not needed.
    """

    pairs: dict[str, str]
    affix: Affix | None


def renamed(names: Iterable[str], rules: Mapping[str, str]) -> dict[str, str]:
    """Return the new name of every name, by the first of the rules ``{old: new}`` that fits it.

    An ``old`` without ``*`` is the beginning of names; one with ``*`` must fit the whole name, and each ``*`` of
    ``new`` is what the ``*`` of the same number in ``old`` stands for.

    Raises:
        SelectionError: A rule fits no name or has more ``*`` in ``new``, or two names become one.

    Example:
        >>> renamed(["h.0.fc.weight", "wte.weight"], {"h.*": "model.layers.*"})
        {'h.0.fc.weight': 'model.layers.0.fc.weight', 'wte.weight': 'wte.weight'}
    """
    names = list(names)
    result: dict[str, str] = {name: name for name in names}
    used: dict[str, str] = {}
    for old, new in reversed([*rules.items()]):
        if new.count("*") > old.count("*"):
            raise SelectionError(f"the rule {old!r} -> {new!r} has more * on the right than on the left")
        found = {name: _replaced(name, old, new) for name in names}
        if all(value is None for value in found.values()):
            raise SelectionError(f"no layer fits {old!r} of rename; the first names are {', '.join(names[:4])}")
        result |= {name: value for name, value in found.items() if value is not None}
    for name, value in result.items():
        other = used.setdefault(value, name)
        if other != name:
            raise SelectionError(f"rename gives two layers the name {value!r}: {other!r} and {name!r}")
    return result


def _replaced(name: str, old: str, new: str) -> str | None:
    if "*" not in old:
        return f"{new}{name.removeprefix(old)}" if name.startswith(old) else None
    match = re.fullmatch(re.escape(old).replace(r"\*", "(.*?)"), name)
    if match is None:
        return None
    parts = iter(match.groups())
    return "".join(next(parts) if character == "*" else character for character in new)


def match_layers(before: Shapes, after: Shapes, rules: Mapping[str, str] | None = None) -> Matching:
    """Return the pairs of layers of two models, given their names and shapes; ``rules`` are those of ``renamed``.

    Layers of equal names are pairs. If more are equal without a prefix or suffix that one of the models has
    (``bert.``), and no other prefix or suffix fits as many, these are pairs, too.

    Example:
        >>> match_layers({"encoder.0.weight": (4, 4)}, {"bert.encoder.0.weight": (4, 4), "head.weight": (2, 4)}).pairs
        {'bert.encoder.0.weight': 'encoder.0.weight'}
    """
    original = {new: old for old, new in renamed(before, rules or {}).items()}
    shapes = {new: before[old] for new, old in original.items()}
    partners = {name: name for name in after if name in original}
    rest_before = {name: shape for name, shape in shapes.items() if name not in partners}
    rest_after = {name: shape for name, shape in after.items() if name not in partners}
    affix, more = common_affix(rest_before, rest_after)
    if affix is not None and len(more) > len(partners):
        partners |= more
    else:
        affix = None
    return Matching({name: original[partners[name]] for name in after if name in partners}, affix)


def common_affix(before: Shapes, after: Shapes) -> tuple[Affix | None, dict[str, str]]:
    """Return the affix under which most names match, and the pairs, after to before.

    The affix is None if there is none, or if another one fits about as well.
    """
    found: dict[Affix, dict[str, str]] = {}  # without the affix -> with it
    for of_after, shorter, longer in ((True, before, after), (False, after, before)):
        for name in longer:
            for affix, rest in _cuts(name, of_after):
                if rest in shorter:
                    found.setdefault(affix, {})[rest] = name
    votes = {affix: _votes(affix, pairs, before, after) for affix, pairs in found.items()}
    best = max(votes, key=lambda affix: votes[affix], default=None)
    if best is None or not votes[best]:
        return None, {}
    rivals = [affix for affix in votes if affix != best and votes[affix] > _SAME * votes[best]]
    if any(found[affix].keys() & found[best].keys() or affix.of_after != best.of_after for affix in rivals):
        return None, {}
    pairs = found[best]
    return best, {name: rest for rest, name in pairs.items()} if best.of_after else pairs


def _cuts(name: str, of_after: bool) -> Iterator[tuple[Affix, str]]:
    """Yield each prefix and suffix of a name that ends at a dot, and the name without it."""
    parameter, colon, part = name.partition(":")
    for place in [match.start() for match in re.finditer(r"\.", parameter)]:
        yield Affix(name[: place + 1], True, of_after), name[place + 1 :]
        yield Affix(parameter[place:], False, of_after), f"{parameter[:place]}{colon}{part}"


def _votes(affix: Affix, pairs: Mapping[str, str], before: Shapes, after: Shapes) -> int:
    """Count the pairs of one shape."""
    shorter, longer = (before, after) if affix.of_after else (after, before)
    return sum(shorter[rest] == longer[name] for rest, name in pairs.items())
