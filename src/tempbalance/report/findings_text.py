"""Findings on the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.text import Text

from tempbalance.report.terminal_tables import count, plain_text
from tempbalance.types import Finding, Severity

__all__ = ["findings_title", "print_findings"]

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
    for kind, number in of_kind.items():
        if number > _OF_A_KIND:
            console.print(plain_text(f"{number - _OF_A_KIND} more of kind {kind}; --out saves all", "dim"))
