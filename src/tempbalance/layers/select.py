"""Selection by glob on the qualified name, and the options that decide what becomes a row."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from tempbalance.errors import SelectionError

__all__ = ["EMBEDDING_OFF", "Select"]

EMBEDDING_OFF = (
    "embedding (off by default: its rows are tokens or positions, not neurons); select it with embeddings=True"
)
_SHOWN = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Select:
    """Which weights to analyse, and how fused ones are cut.

    Patterns are shell globs, case-sensitive, matched against the row's name (``h.0.attn.c_attn.weight:q``) and the
    parameter's (``h.0.attn.c_attn.weight``); ``*`` crosses dots.

    Attributes:
        include: Patterns of which at least one must match.
        exclude: Patterns of which none may match.
        embeddings: Whether token and position embeddings are analysed.
        split: Whether fused parameters (``q``, ``k``, ``v``; gates of an LSTM) get a row per part, where the module
            says how they are fused. Stacked experts always get a row per expert.
        lora: ``"merged"`` analyses ``W + (alpha / r) B A``, ``"update"`` the update ``(alpha / r) B A`` alone.

    Raises:
        SelectionError: ``lora`` is neither of the two, or there is no pattern to include.

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
        """Check the options.

        Raises:
            SelectionError: An option has a value that does not exist.
        """
        if self.lora not in {"merged", "update"}:
            raise SelectionError(f"lora must be 'merged' or 'update', got {self.lora!r}")
        if not self.include:
            raise SelectionError("include is empty: nothing would be analysed; the default is ('*',)")

    @classmethod
    def parse(cls, patterns: str | Sequence[str] | Select | None = None) -> Select:
        """Make a selection out of what a user may write.

        Args:
            patterns: A pattern, several, a ready ``Select``, or None for everything.

        Returns:
            The selection; all else than the patterns at its default.
        """
        if isinstance(patterns, Select):
            return patterns
        if patterns is None:
            return cls()
        return cls(include=(patterns,) if isinstance(patterns, str) else tuple(patterns))

    def admits(self, name: str) -> bool:
        """Whether a row or a skipped weight of this name belongs to the selection."""
        return any(_matches(name, p) for p in self.include) and not any(_matches(name, p) for p in self.exclude)

    def check(self, names: Sequence[str]) -> None:
        """Make sure that every pattern matches something.

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
    """Help for a pattern that matches nothing: close names, else the first ones."""
    if not names:
        return "the model has no weight matrix at all"
    bare = pattern.strip("*")
    close = [name for name in names if bare and bare.lower() in name.lower()]
    close = close or difflib.get_close_matches(pattern, names, n=_SHOWN, cutoff=0.5)
    listed = ", ".join((close or list(names))[:_SHOWN])
    rest = len(close or names) - _SHOWN
    return f"{'similar' if close else 'known'} names: {listed}" + (f", and {rest} more" if rest > 0 else "")
