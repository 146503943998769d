"""Select weights by patterns on their qualified names, and by options."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from tempbalance.errors import ArgumentTypeError, SelectionError, check_type

__all__ = ["EMBEDDING_OFF", "Select"]

EMBEDDING_OFF = (
    "embedding (off by default: its rows are tokens or positions, not neurons); select it with embeddings=True"
)
_SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class Select:
    """Selection of the weights to analyse, and options for fused, embedding and LoRA weights.

    Patterns are case-sensitive shell globs, which match the name of the row (``h.0.attn.c_attn.weight:q``) or that of
    the parameter (``h.0.attn.c_attn.weight``); ``*`` also matches dots.

    Attributes:
        include: At least one of these patterns must match.
        exclude: None of these patterns may match.
        embeddings: Whether token and position embeddings are analysed.
        split: Whether fused parameters (``q``, ``k``, ``v``; gates of an LSTM) get one row per part, if their layout is
            known. Stacked experts always get one row per expert.
        lora: ``"merged"`` analyses weights with adapters merged (LoRA: ``W + (alpha / r) B A``), ``"update"`` what
            the adapters add (``(alpha / r) B A``).

    Raises:
        SelectionError: ``lora`` has another value, or ``include`` is empty.
        ArgumentTypeError: An option has the wrong type.

    Example:
        >>> Select.parse("encoder.*").include
        ('encoder.*',)
    """

    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    embeddings: bool = False
    split: bool = True
    lora: Literal["merged", "update"] = "merged"

    def __post_init__(self) -> None:
        for name in ("include", "exclude"):
            patterns = getattr(self, name)
            if isinstance(patterns, str) or not isinstance(patterns, Sequence):
                raise ArgumentTypeError(f"{name} must be a tuple of patterns, got {patterns!r:.80}")
            for pattern in patterns:
                check_type(f"a pattern of {name}", pattern, str)
        check_type("lora", self.lora, str)
        if self.lora not in ("merged", "update"):
            raise SelectionError(f"lora must be 'merged' or 'update', got {self.lora!r}")
        if not self.include:
            raise SelectionError("include is empty: nothing would be analysed; the default is ('*',)")

    @classmethod
    def parse(cls, patterns: str | Sequence[str] | Select | None = None) -> Select:
        """Build a selection from patterns.

        Args:
            patterns: A pattern, several patterns, a ``Select``, or None for everything.

        Returns:
            The selection, with all other options at their defaults.
        """
        if isinstance(patterns, Select):
            return patterns
        if patterns is None:
            return cls()
        if isinstance(patterns, str):
            return cls(include=(patterns,))
        return cls(include=tuple(patterns) if isinstance(patterns, Iterable) else patterns)

    def admits(self, name: str) -> bool:
        """Return whether a row or a skipped weight of this name is selected."""
        return any(_matches(name, p) for p in self.include) and not any(_matches(name, p) for p in self.exclude)

    def check(self, names: Sequence[str]) -> None:
        """Check that every pattern matches a weight.

        Args:
            names: Names of all weights of the model.

        Raises:
            SelectionError: A pattern matches none of them; the message lists similar names.
        """
        for pattern in (*self.include, *self.exclude):
            if pattern != "*" and not any(_matches(name, pattern) for name in names):
                raise SelectionError(f"no weight matches the pattern {pattern!r}; {_known(pattern, names)}")


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name.partition(":")[0], pattern)


def _known(pattern: str, names: Sequence[str]) -> str:
    """List similar names for a pattern that matches nothing, or the first names."""
    if not names:
        return "the model has no weight matrix at all"
    bare = pattern.strip("*")
    close = [name for name in names if bare and bare.lower() in name.lower()]
    close = close or difflib.get_close_matches(pattern, names, n=_SHOWN, cutoff=0.5)
    listed = ", ".join((close or list(names))[:_SHOWN])
    rest = len(close or names) - _SHOWN
    return f"{'similar' if close else 'known'} names: {listed}" + (f", and {rest} more" if rest > 0 else "")
