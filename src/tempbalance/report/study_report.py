"""A study as a table on the terminal and as one HTML page."""

from __future__ import annotations

import math
from collections.abc import Callable

from rich.console import Console
from rich.text import Text

from tempbalance.report.figures import study_figure
from tempbalance.report.page import Cell, Html, escaped, model_name, render_page, table_html
from tempbalance.report.page import number as cell
from tempbalance.report.terminal import number, plain_table, plain_text, print_table
from tempbalance.study.method_names import line_parts
from tempbalance.study.summary import Row, Summary

__all__ = ["print_study", "render_study"]


def print_study(console: Console, summary: Summary) -> None:
    """Print one row per method, the recommendation, and notes on the numbers."""
    direction = "lower" if summary.lower_is_better else "higher"
    title = f"{summary.seeds} paired seeds; {direction} is better; a positive gain over {summary.baseline} is good"
    counted = [name for name in ("diverged", "failed") if any(getattr(row, name) for row in summary.rows)]
    table = plain_table("method", "mean", "gain", "95 % interval", "won", "p", *counted, title=title)
    for row in summary.rows:
        name = Text("\n  ").join(plain_text(part) for part in line_parts(row.label))
        table.add_row(
            name, number(row.mean, ".4g"), *_gain(row, number), *(str(getattr(row, count)) for count in counted)
        )
    print_table(console, table)
    console.print(plain_text(summary.recommendation, "bold"))
    for note in summary.notes:
        console.print(plain_text(note))


def _gain(row: Row, form: Callable[[float, str], str]) -> tuple[str, str, str, str]:
    """Return the mean gain, its interval, the seeds that were won, and p; empty for the baseline."""
    if row.gain is None:
        return ("", "", "", "")
    low, high = (form(end, "+.2g") for end in (row.gain.low, row.gain.high))
    interval = f"{low} to {high}" if math.isfinite(row.gain.low) else low
    won = f"{row.gain.won} of {row.gain.seeds}"
    return (form(row.gain.mean, "+.3g"), interval, won, f"{row.p_value:.2g}")


def render_study(summary: Summary) -> str:
    """Render the summary of a study as one HTML page."""
    columns = ("method", "mean", "gain", "95 % interval", "won", "tied", "p", "diverged", "failed")
    task = str(summary.settings.get("task", "")).rpartition(" (")[0]
    return render_page(
        "study",
        kicker="Which training method helps on this task? All methods use the same seeds.",
        title=model_name(task),
        source=task,
        figures={"gains": study_figure(summary)},
        recommendation=summary.recommendation,
        notes=Html("".join(f"<li>{escaped(note)}</li>" for note in summary.notes)),
        baseline=summary.baseline,
        table=table_html(columns, map(_cells, summary.rows), text=("method",)),
        settings=summary.settings,
    )


def _cells(row: Row) -> list[Cell]:
    gain, interval, won, p = _gain(row, cell)
    tied = "" if row.gain is None else str(row.gain.tied)
    counts = {"trials without a finite metric": row.diverged, "trials that raised an error": row.failed}
    bad = [Cell(str(number), name if number else "") for name, number in counts.items()]
    return [*map(Cell, (row.label, cell(row.mean, ".4g"), gain, interval, won, tied, p)), *bad]
