"""Findings on the terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.text import Text

from tempbalance.report.terminal_tables import plain_text
from tempbalance.types import Finding, Severity

__all__ = ["print_findings"]

_STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.NOTE: "dim"}
_WIDTH = len("warning") + 2


def print_findings(console: Console, findings: Iterable[Finding]) -> None:
    """Print one paragraph per finding: its severity, what it is, and the next step."""
    for finding in findings:
        line = Text(finding.severity.value.ljust(_WIDTH), style=_STYLES[finding.severity])
        step = plain_text(f" Next: {finding.next_step}." if finding.next_step else "", "dim")
        line.append(plain_text(f"{finding.message}.", "")).append(step)
        console.print(line, soft_wrap=not console.is_terminal)
