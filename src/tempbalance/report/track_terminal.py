"""Print a tracked run: the findings, and one row per checkpoint."""

from __future__ import annotations

from rich.console import Console

from tempbalance.analysis import Track
from tempbalance.report.findings_text import print_findings
from tempbalance.report.terminal_tables import count, number, plain_table, plain_text

__all__ = ["print_track"]


def print_track(console: Console, tracked: Track) -> None:
    """Print the findings, then alpha, stable rank and drift at each checkpoint."""
    first, last = tracked.checkpoints[0].name, tracked.checkpoints[-1].name
    title = f"{count(len(tracked), 'checkpoint', 'checkpoints')}, {first} to {last}"
    console.print(plain_text(title, "bold"), soft_wrap=True)
    print_findings(console, tracked.findings)
    columns = ("step", "median alpha", "imbalance", "median stable rank", "drift")
    table = plain_table("checkpoint", *columns)
    table.add_column("findings")
    for checkpoint, drift in zip(tracked.checkpoints, tracked.drift, strict=True):
        table.add_row(
            plain_text(checkpoint.name),
            "-" if checkpoint.step is None else str(checkpoint.step),
            number(checkpoint.median_alpha, ".3f"),
            number(checkpoint.imbalance, ".3f"),
            number(checkpoint.median_stable_rank, ".2f"),
            number(drift, ".3%"),
            ", ".join(dict.fromkeys(finding.kind for finding in checkpoint.findings)),
        )
    console.print(table)
    console.print(
        "drift: ||W - W0|| / ||W0|| over all weights, from the first checkpoint", style="dim", highlight=False
    )
