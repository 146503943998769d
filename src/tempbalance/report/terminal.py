"""What all tables on the terminal share, and findings on it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tempbalance._text import printable
from tempbalance.types import Finding, Severity

__all__ = [
    "bar",
    "count",
    "findings_title",
    "number",
    "output_console",
    "plain_table",
    "plain_text",
    "print_findings",
    "print_names",
    "print_table",
    "sparkline",
]

_BARS = "▁▂▃▄▅▆▇█"
_NAMES_SHOWN = 3
_BAR = 20  # characters
_WIDE, _TABLE = 10_000, 80  # characters


def output_console() -> Console:
    """Return a console on standard output; in a pipe or file, lines and names are never broken or cut."""
    console = Console()
    return console if console.is_terminal else Console(width=_WIDE)


def plain_table(name: str, *columns: str, title: str | None = None) -> Table:
    """Return an empty table without lines: a column of names, then right-aligned columns."""
    heading = None if title is None else plain_text(title, "table.title")
    table = Table(title=heading, title_justify="left", box=None, padding=(0, 1), pad_edge=False)
    table.add_column(name, overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def print_table(console: Console, table: Table) -> None:
    """Print a table below its title. A terminal that is too narrow breaks the lines; names and numbers are not cut."""
    if table.title:
        console.print(table.title, highlight=False)
        table.title = None
    width = console.width
    console.width = max(width, _TABLE)
    console.print(table, highlight=False)
    console.width = width


def number(value: float | None, form: str = ".2f") -> str:
    """Format a number; a hyphen if it is missing or not finite."""
    return format(value, form) if value is not None and math.isfinite(value) else "-"


def count(items: int, one: str, many: str) -> str:
    """Return a number with its noun, as in ``"1 layer"`` or ``"2 layers"``."""
    return f"{items} {one if items == 1 else many}"


def plain_text(text: str, style: str = "") -> Text:
    """Return a text to print as it is, with names from files in it: no markup, no control characters."""
    return Text(printable(text), style=style)


def print_names(console: Console, label: str, names: Sequence[str]) -> None:
    """Print a label, the number of names and the first of them; nothing without names."""
    if names:
        shown = ", ".join(names[:_NAMES_SHOWN]) + (", ..." if len(names) > _NAMES_SHOWN else "")
        console.print(plain_text(f"{label} ({len(names)}): {shown}", "dim"))


def bar(share: float) -> str:
    """Return a bar for a number from 0 to 1."""
    return _BARS[-1] * round(_BAR * share)


def sparkline(values: Sequence[float], error: float = 0.0) -> str:
    """Return a bar chart of finite numbers in one line; a step of a bar is at least three errors, so noise is flat."""
    low, high = min(values), max(values)
    step = max((high - low) / (len(_BARS) - 1), 3 * error) or 1.0
    return "".join(_BARS[int((value - low) / step + 1e-9)] for value in values)


_STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.NOTE: "dim"}
_WIDTH = len("warning") + 2
_OF_A_KIND = 5


def findings_title(findings: Sequence[Finding]) -> str:
    """Return the number of findings by severity, such as ``"Findings: 2 warnings, 1 note"``; or that there are none."""
    counts = Counter(finding.severity for finding in findings)
    named = [count(counts[each], each.value, f"{each.value}s") for each in Severity if counts[each]]
    return f"Findings: {', '.join(named)}" if named else "No findings"


def print_findings(console: Console, findings: Iterable[Finding]) -> None:
    """Print one paragraph per finding: its severity, what it is, the next step and its kind; at most five of a kind."""
    of_kind: Counter[str] = Counter()
    for finding in findings:
        of_kind[finding.kind] += 1
        if of_kind[finding.kind] > _OF_A_KIND:
            continue
        line = Text(finding.severity.value.ljust(_WIDTH), style=_STYLES[finding.severity])
        step = f" Next: {finding.next_step}." if finding.next_step else ""
        line.append(plain_text(f"{finding.message}.", "")).append(plain_text(f"{step} [{finding.kind}]", "dim"))
        console.print(line)
    for kind, found in of_kind.items():
        if found > _OF_A_KIND:
            console.print(plain_text(f"{found - _OF_A_KIND} more of kind {kind}; --out saves all", "dim"))
