"""The HTML report of a tracked run."""

from __future__ import annotations

from pathlib import PurePath

from tempbalance.analysis import Track
from tempbalance.report.figures import track_figure
from tempbalance.report.page import (
    MISSING,
    Html,
    findings_html,
    number,
    render_page,
    table_html,
)

__all__ = ["render_track"]


def render_track(tracked: Track) -> str:
    """Render a tracked run as one HTML page.

    Args:
        tracked: The run.

    Returns:
        HTML with its style, script, plotly.js and data; the page loads no other file.
    """
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
                number(value, ".4g")
                for value in (checkpoint.median_alpha, checkpoint.imbalance, checkpoint.median_stable_rank, drift)
            ),
            ", ".join(dict.fromkeys(finding.kind for finding in checkpoint.findings)),
        )
        for checkpoint, drift in zip(tracked.checkpoints, tracked.drift, strict=True)
    )
    return table_html(columns, rows, text=("checkpoint", "findings"))
