"""The page "What helps": every candidate on every task, as a table and as a figure with a colour for each verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from claims import CANDIDATES, TaskRow
from gains import Gain, Results
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from pages import fill
from plotting import render
from results_file import load_results
from studies import NAMES, load_experiment
from tables import gain_text, head, line, number, signed
from verdict import LEVEL

FIGURE = "what-helps.svg"
HEADINGS = {False: "Training from scratch", True: "Fine-tuning"}


class Finding(Enum):
    """What was found of a candidate on a task; the value is the colour of its cell."""

    HELPS = "#7fc8a9"
    CONTROL = "#f3d98b"
    UNCONTROLLED = "#cfe3f5"
    NONE = "#eeeeee"
    WORSE = "#eeaa99"


WORDS = {
    Finding.HELPS: "better than plain and than each control",
    Finding.CONTROL: "better than plain, but not than each control",
    Finding.UNCONTROLLED: "better than plain, no control",
    Finding.NONE: "no significant difference",
    Finding.WORSE: "worse than plain",
}


class Cell(NamedTuple):
    """A candidate on a task, or on other test data."""

    gain: Gain
    finding: Finding


class Row(NamedTuple):
    """A task with the results of its study, and a cell by candidate."""

    task: TaskRow
    results: Results
    cells: Mapping[str, Cell]


def load_rows(results: Path) -> list[Row]:
    """Load the tasks whose studies have been run.

    Args:
        results: The folder of results.

    Returns:
        A row per task; training from scratch first.
    """
    rows = []
    for experiment in map(load_experiment, NAMES):
        found = load_results(experiment, results)
        for task in experiment.task_rows:
            if task.study.name in found:
                rows.append(Row(task, found[task.study.name], _cells(task, found[task.study.name])))
    return sorted(rows, key=lambda row: row.task.pretrained)


def _cells(task: TaskRow, results: Results) -> dict[str, Cell]:
    cells = {}
    for candidate in sorted(task.methods, key=CANDIDATES.index):
        name = task.methods[candidate]
        method = results.rows[1]["method"] if name is None else results.find(name)
        gain = results.gain(method, results.rows[0]["method"]) if method else None
        if method and gain is not None:
            p_value = next(row["p_value"] for row in results.rows if row["method"] == method)
            cells[candidate] = Cell(gain, find(results, method, gain, p_value))
    return cells


def find(results: Results, method: str, gain: Gain, p_value: float) -> Finding:
    """Judge a candidate by the rule of all pages: the interval, p after Holm's correction, and each control.

    Args:
        results: Results of the study.
        method: The candidate.
        gain: Its gain over the baseline.
        p_value: That of the gain, corrected.

    Returns:
        The finding.
    """
    if p_value >= LEVEL or gain.low <= 0 <= gain.high:
        return Finding.NONE
    if gain.high < 0:
        return Finding.WORSE
    against = [results.gain(method, control) for control in results.controls(method).values()]
    if not against:
        return Finding.UNCONTROLLED
    return Finding.HELPS if all(each is not None and each.low > 0 for each in against) else Finding.CONTROL


def page(rows: Sequence[Row], text: str) -> str:
    """Update the generated parts of the page.

    Args:
        rows: The tasks.
        text: The page.

    Returns:
        The updated page.
    """
    parts = []
    for pretrained, heading in HEADINGS.items():
        chosen = [row for row in rows if row.task.pretrained == pretrained]
        if chosen:
            parts.append(f"**{heading}**\n\n{_table(chosen)}")
    return fill(text, "table", "\n\n".join(parts) or "Nothing has been run yet.")


def _table(rows: Sequence[Row]) -> str:
    lines = head("task", "candidate", "plain", "gain over plain (95 % interval)", "seeds won", "finding")
    for row in rows:
        metric, means = row.results.metric, {each["method"]: each["mean"] for each in row.results.rows}
        plain = f"{number(metric.scale * means[row.results.rows[0]['method']], metric.digits)} {metric.name}"
        for place, (candidate, cell) in enumerate(row.cells.items()):
            shown = f"{gain_text(cell.gain, metric)} {metric.unit}"
            won = f"{cell.gain.won} of {cell.gain.seeds}"
            first = (row.task.title, plain) if place == 0 else ("", "")
            lines.append(line(first[0], candidate, first[1], shown, won, WORDS[cell.finding]))
    return "\n".join(lines)


def figure(rows: Sequence[Row]) -> str:
    """Draw a grid: a row per task, a column per candidate, the gain in each cell and the finding as its colour.

    Args:
        rows: The tasks.

    Returns:
        SVG.
    """
    columns = [each for each in CANDIDATES if any(each in row.cells for row in rows)]
    labels = [f"{row.task.title}\n({row.results.metric.unit})" for row in rows]
    digits = [min(row.results.metric.digits, 3) for row in rows]
    title = "Gain of every candidate over plain training, by task"
    return grid([row.cells for row in rows], columns, labels, digits, name="what-helps", title=title)


def grid(
    rows: Sequence[Mapping[str, Cell]],
    columns: Sequence[str],
    labels: Sequence[str],
    digits: Sequence[int],
    *,
    name: str,
    title: str,
) -> str:
    """Draw a grid with the gain in each cell and the finding as its colour.

    Args:
        rows: Cells by column.
        columns: Names of the columns.
        labels: Labels of the rows.
        digits: Digits of the gains of each row.
        name: Seed of the identifiers in the SVG.
        title: Title of the document.

    Returns:
        SVG.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for y, row in enumerate(rows):
            for column, cell in row.items():
                x, text = columns.index(column), signed(cell.gain.mean, digits[y])
                axes.add_patch(Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, color=cell.finding.value))
                axes.text(x, y, text, ha="center", va="center", fontsize="small")
        axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5))
        axes.set_xticks(range(len(columns)), columns, rotation=35, ha="left", rotation_mode="anchor")
        axes.xaxis.tick_top()
        axes.set_yticks(range(len(rows)), labels)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        used = {cell.finding for row in rows for cell in row.values()}
        handles = [Patch(color=each.value, label=WORDS[each]) for each in Finding if each in used]
        figure.legend(handles=handles, loc="outside lower left", ncols=2, fontsize="small", frameon=False)

    height = 0.45 if any("\n" in label for label in labels) else 0.26
    size = (2.6 + 0.78 * max(1, len(columns)), 1.9 + height * len(rows))
    return render(draw, *size, name=name, title=title)
