"""Names of tensors, files and tasks as text: they are data, and write neither to a terminal nor to a spreadsheet."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["csv_bytes", "encodable", "one_line", "printable"]

_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet runs a cell that begins so


def printable(text: str) -> str:
    r"""Return a text with control, invisible and unpaired surrogate characters escaped.

    Example:
        >>> printable("\x1b]0;title\x07w")
        '\\x1b]0;title\\x07w'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(text: str) -> str:
    """Return a message of several lines as one printable line."""
    return " ".join(printable(line) for line in map(str.strip, text.splitlines()) if line)


def encodable(text: str) -> str:
    """Return a text that UTF-8 can encode: unpaired surrogates are escaped."""
    return text.encode(errors="backslashreplace").decode()


def csv_bytes(table: pd.DataFrame) -> bytes:
    """Return a table as CSV; a quote is put before a text that a spreadsheet would run as a formula."""
    quoted = table.map(lambda cell: f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell)
    content: str = quoted.to_csv(index=False)
    return content.encode(errors="backslashreplace")
