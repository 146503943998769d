"""The results of an experiment in one JSON file, to be committed: settings, summary and every trial of each study."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from claims import Experiment
from gains import Results

from tempbalance._files import dumps, write_atomically
from tempbalance.errors import StudyError

_PARTS = ("settings", "summary", "search", "runs")  # "search" of a search only


def read_results(path: Path) -> dict[str, dict[str, Any]]:
    """Read the results of an experiment.

    Args:
        path: The file.

    Returns:
        Collected studies by name; none if there is no file yet.

    Raises:
        StudyError: The file is damaged.
    """
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {
            name: {part: entry[part] for part in _PARTS if part in entry or part != "search"}
            for name, entry in found.items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise StudyError(f"cannot read {path}: {error!r}; restore it from the repository") from error


def add_results(path: Path, name: str, entry: Mapping[str, Any]) -> None:
    """Add a study to the file, or replace it; the file is written atomically.

    Args:
        path: The file.
        name: The study.
        entry: The result of ``tempbalance.study.collect_folder``; of a search also its trials, as ``search``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = read_results(path) | {name: entry}
    write_atomically(path, ("{\n" + ",\n".join(_text(*item) for item in entries.items()) + "\n}\n").encode())


def _text(name: str, entry: Mapping[str, Any]) -> str:
    """One line per trial, so that a diff shows what changed."""
    runs = ",\n".join(map(dumps, entry["runs"]))
    parts = "".join(f'"{part}": {dumps(entry[part])},\n' for part in ("settings", "summary", "search") if part in entry)
    return f'{dumps(name)}: {{\n{parts}"runs": [\n{runs}\n]}}'


def load_results(experiment: Experiment, folder: Path) -> dict[str, Results]:
    """Load the results of an experiment.

    Args:
        experiment: The experiment.
        folder: The folder of results.

    Returns:
        Results of its studies that have been run, by name, in the order of the experiment.
    """
    entries = _read_once(folder / f"{experiment.name}.json")
    return {
        study.name: Results(study, entries[study.name], experiment.metric)
        for study in (*experiment.full, *experiment.searches)
        if study.name in entries
    }


@functools.cache
def _read_once(path: Path) -> dict[str, dict[str, Any]]:
    return read_results(path)
