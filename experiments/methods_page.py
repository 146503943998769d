"""The page "Training methods": every method that was compared on digits and on SST-2, with its time and memory."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median
from typing import NamedTuple

from claims import Metric, Study
from gains import Results, control_of
from pages import fill
from results_file import load_results
from studies import load_experiment
from studies.digits import METHODS as DIGITS
from studies.text import SST2, SST2_METHODS
from tables import gain_text, head, line, number
from what_helps import Cell, Finding, find, grid

from tempbalance.study import holm
from tempbalance.study.method_names import read_parts

FIGURE = "training-methods.svg"
PLAIN = "plain"
MEMORY = Path(__file__).with_name("method_memory.json")


class Test(NamedTuple):
    """Test data: the title of its column, the experiment, its studies, and the metric.

    A method is taken from the first study that has it.
    """

    title: str
    experiment: str
    studies: tuple[Study, ...]
    key: str = "test"


TESTS = (
    Test("digits", "digits", (DIGITS,)),
    Test("digits with noise", "digits", (DIGITS,), "noisy"),
    Test("digits, rotated", "digits", (DIGITS,), "rotated"),
    Test("SST-2", "text", (SST2_METHODS, SST2)),
    Test("SST-2, product reviews", "text", (SST2_METHODS,), "shifted"),
)
RANKED = ("digits", "SST-2")


class Row(NamedTuple):
    """A method: a cell by title of the test data, and its time as a multiple of plain's, on SST-2 if run there."""

    name: str
    cells: Mapping[str, Cell]
    time: float


def load_rows(folder: Path) -> list[Row]:
    """Load the methods of all studies that have been run.

    Args:
        folder: The folder of results.

    Returns:
        A row per method, the largest mean gain on ``RANKED`` first.
    """
    cells: dict[str, dict[str, Cell]] = {}
    times: dict[str, float] = {}
    for test in TESTS:
        experiment = load_experiment(test.experiment)
        metric = next(each for each in (experiment.metric, *experiment.others) if each.key == test.key)
        found = load_results(experiment, folder)
        for study in reversed(test.studies):
            if study.name in found:
                results = found[study.name]
                for name, cell in _cells(replace(results, metric=metric)).items():
                    cells.setdefault(name, {})[test.title] = cell
                times.update(_times(results))
    rows = [Row(name, each, times[name]) for name, each in cells.items()]
    return sorted(rows, key=lambda row: -fmean(row.cells[title].gain.mean for title in RANKED if title in row.cells))


def base_name(method: str) -> str:
    """The name of a method without all parameters."""
    return "+".join(part.name for part in read_parts(method))


def _cells(results: Results) -> dict[str, Cell]:
    """The methods of a study; p is corrected for all of them."""
    gains = {row["method"]: results.gain(row["method"], PLAIN) for row in results.rows[1:]}
    found = {method: gain for method, gain in gains.items() if gain is not None}
    corrected = holm([gain.p_value for gain in found.values()])
    cells: dict[str, Cell] = {}
    for (method, gain), p_value in zip(found.items(), corrected, strict=True):
        if control_of(method) is None:  # of several variants the first one
            cells.setdefault(base_name(method), Cell(gain, find(results, method, gain, p_value)))
    return cells


def _times(results: Results) -> dict[str, float]:
    """The median time of a trial by method, as a multiple of plain's."""
    medians: dict[str, float] = {}
    for row in results.rows:
        seconds = [trial["seconds"] for trial in results.trials(row["method"])]
        medians.setdefault(base_name(row["method"]), median(seconds or [math.nan]))
    return {name: seconds / medians[PLAIN] for name, seconds in medians.items()}


def page(rows: Sequence[Row], text: str) -> str:
    """Update the generated part of the page.

    Args:
        rows: The methods.
        text: The page.

    Returns:
        The updated page.
    """
    titles = [test.title for test in TESTS if any(test.title in row.cells for row in rows)]
    metric = load_experiment(TESTS[0].experiment).metric
    memory = {
        base_name(name): median(each) for name, each in json.loads(MEMORY.read_text("utf-8"))["megabytes"].items()
    }
    lines = head("method", *titles, "time", "memory")
    for row in rows:
        cells = [_shown(row.cells.get(title), metric) for title in titles]
        used = memory[row.name] / memory[PLAIN] if row.name in memory else math.nan
        lines.append(line(f"`{row.name}`", *cells, number(row.time, 1), number(used, 1)))
    return fill(text, "table", "\n".join(lines))


def _shown(cell: Cell | None, metric: Metric) -> str:
    if cell is None:
        return ""
    text = gain_text(cell.gain, replace(metric, digits=1))
    return f"**{text}**" if cell.finding not in (Finding.NONE, Finding.WORSE) else text


def figure(rows: Sequence[Row]) -> str:
    """Draw the gains: a row per method, a column per test data.

    Args:
        rows: The methods.

    Returns:
        SVG.
    """
    columns = [test.title for test in TESTS if any(test.title in row.cells for row in rows)]
    title = "Gain of every training method over plain fine-tuning, in points"
    cells, names = [row.cells for row in rows], [row.name for row in rows]
    return grid(cells, columns, names, [1] * len(rows), name="training-methods", title=title)
