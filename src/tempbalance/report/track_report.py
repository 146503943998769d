"""A tracked run as a table on the terminal and as one HTML page."""

from __future__ import annotations

from pathlib import PurePath

from rich.console import Console

from tempbalance.analysis import Track
from tempbalance.report.figures import track_figure
from tempbalance.report.page import MISSING, Html, findings_html, render_page, table_html
from tempbalance.report.page import number as cell
from tempbalance.report.terminal import count, number, plain_table, plain_text, print_findings, print_table

__all__ = ["print_track", "render_track"]


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
    print_table(console, table)
    console.print(
        "drift: ||W - W0|| / ||W0|| over all weights, from the first checkpoint", style="dim", highlight=False
    )


def render_track(tracked: Track) -> str:
    """Return a tracked run as one HTML page, with its style, script, plotly.js and data; it loads no other file."""
    first, last = tracked.checkpoints[0].name, tracked.checkpoints[-1].name
    parents = {PurePath(checkpoint.source).parent.name for checkpoint in tracked.checkpoints}
    run = f"{parents.pop()}: " if len(parents) == 1 and "" not in parents else ""
    title = f"{run}{first} to {last}"
    return render_page(
        "track",
        kicker="The weight matrices over the checkpoints of a training run",
        title=title,
        source=title,
        figures={"lines": track_figure(tracked)},
        findings=findings_html(tracked.findings),
        table=_table(tracked),
        settings=tracked.settings,
    )


def _table(tracked: Track) -> Html:
    columns = ("checkpoint", "step", "median alpha", "imbalance", "median stable rank", "drift", "findings")
    rows = (
        (
            checkpoint.name,
            MISSING if checkpoint.step is None else str(checkpoint.step),
            *(
                cell(value, ".4g")
                for value in (checkpoint.median_alpha, checkpoint.imbalance, checkpoint.median_stable_rank, drift)
            ),
            ", ".join(dict.fromkeys(finding.kind for finding in checkpoint.findings)),
        )
        for checkpoint, drift in zip(tracked.checkpoints, tracked.drift, strict=True)
    )
    return table_html(columns, rows, text=("checkpoint", "findings"))
