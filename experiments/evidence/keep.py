"""The results of a study in one file, to be committed: settings, summary, and every run, tuning included."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evidence.study import StudyError
from tempbalance._files import dumps, write_whole
from tempbalance.study.run_folder import Folder
from tempbalance.study.task import Run

_PARTS = ("settings", "summary", "runs")
Entry = Mapping[str, Any]  # of one contest: these parts


def collect(folder: Path) -> Entry:
    """The folder of a contest as an entry of the results.

    Args:
        folder: With ``settings.json``, ``summary.json`` and the runs.

    Returns:
        What they hold; of a traceback, the last line.
    """
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("runs/*/seed-*.json")]
    runs.sort(key=lambda run: (run["method"], run["lr"] or 0, run["seed"]))
    runs = [run | {"error": run["error"].strip().rpartition("\n")[2]} for run in runs]
    settings, summary = (json.loads((folder / f"{part}.json").read_text("utf-8")) for part in ("settings", "summary"))
    return {"settings": settings, "summary": summary, "runs": runs}


def read_results(path: Path) -> dict[str, Entry]:
    """Read the results of a study.

    Args:
        path: The file.

    Returns:
        An entry per contest; none if there is no file yet.

    Raises:
        StudyError: It is damaged.
    """
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {name: {part: entry[part] for part in _PARTS} for name, entry in found.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise StudyError(f"cannot read {path}: {error!r}; take it from the repository again") from error


def add_results(path: Path, name: str, entry: Entry) -> None:
    """Put an entry in the file, in the place of the one that it has; whole or not at all.

    Args:
        path: The file.
        name: The contest.
        entry: What came of it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = read_results(path) | {name: entry}
    write_whole(path, ("{\n" + ",\n".join(_text(*item) for item in entries.items()) + "\n}\n").encode())


def _text(name: str, entry: Entry) -> str:
    """A line for every run, so that a change can be seen in a diff."""
    runs = ",\n".join(map(dumps, entry["runs"]))
    settings, summary = dumps(entry["settings"]), dumps(entry["summary"])
    return f'{dumps(name)}: {{\n"settings": {settings},\n"summary": {summary},\n"runs": [\n{runs}\n]}}'


def restore(entry: Entry, folder: Path) -> None:
    """Make the folder of a contest from its entry, to go on from there; whole or not at all.

    Args:
        entry: The entry.
        folder: The folder, which must not be there yet.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as half:
        made = Path(half) / folder.name
        kept = Folder(made)
        for run in entry["runs"]:
            kept.save(Run(**run))
        write_whole(made / "settings.json", (dumps(entry["settings"]) + "\n").encode())
        made.rename(folder)
