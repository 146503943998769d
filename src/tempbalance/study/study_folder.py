"""The folder of a study: one JSON file per trial, written atomically, so that an interrupted study can resume."""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
import numpy as np
import torch

from tempbalance._files import TEMPORARY, dumps, read_regular, without_nan, write_atomically
from tempbalance._saved import Count, parse_json
from tempbalance.errors import OutputError, StudyError
from tempbalance.study.candidates import Configuration
from tempbalance.study.task import Task, Trial

__all__ = ["StudyFolder", "collect_folder", "common_settings", "open_folder", "restore_folder"]

_LOCK, _SETTINGS, _SUMMARY = ".lock", "settings.json", "summary.json"
_TRIALS = "runs/*/seed-*.json"
_RERUN = "delete it to run that trial again"
_LONGEST = 80  # characters of a name before its hash


_Number: TypeAlias = Annotated[int, msgspec.Meta(gt=-(2**53), lt=2**53)] | float


class _SavedTrial(msgspec.Struct):
    method: str
    lr: _Number | None
    seed: Count
    status: Literal["ok", "diverged", "failed"]
    metrics: dict[str, _Number | None]
    seconds: _Number
    balance: dict[str, _Number | None]
    error: str


class _SavedSettings(msgspec.Struct):
    settings: dict[str, Any]


def _read_trial(path: Path) -> Trial:
    try:
        saved = msgspec.convert(parse_json(read_regular(path)), _SavedTrial)
    except (OSError, ValueError) as error:  # msgspec.ValidationError is a ValueError
        raise StudyError(f"cannot read {path}: {error}; {_RERUN}") from error
    content = msgspec.structs.asdict(saved)
    for numbers in (content["metrics"], content["balance"]):
        numbers |= {name: math.nan for name, value in numbers.items() if value is None}
    if saved.status == "ok" and not math.isfinite(content["metrics"].get("test", math.nan)):
        raise StudyError(f"{path} has status ok and no metric test; {_RERUN}")
    return Trial(**content)


@dataclass(frozen=True)
class StudyFolder:
    """Trials on disk, by method, learning rate and seed."""

    path: Path

    def file(self, configuration: Configuration, seed: int) -> Path:
        """Return the path of a trial's file."""
        name = str(configuration)
        readable = re.sub(r"[^\w.=+-]+", "_", name)[:_LONGEST]
        return self.path / "runs" / f"{readable}-{hashlib.sha256(name.encode()).hexdigest()[:8]}" / f"seed-{seed}.json"

    def load(self, configuration: Configuration, seed: int) -> Trial | None:
        """Read a trial; None if it has not been run. Raises StudyError if its file is damaged."""
        path = self.file(configuration, seed)
        if not path.exists():
            return None
        trial = _read_trial(path)
        if (Configuration(trial.method, trial.lr), trial.seed) != (configuration, seed):
            raise StudyError(f"{path} is of {trial.method}, lr {trial.lr}, seed {trial.seed}; {_RERUN}")
        return trial

    def save(self, trial: Trial) -> Path:
        """Write a trial, and return its file."""
        path = self.file(Configuration(trial.method, trial.lr), trial.seed)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot create the folder {path.parent}: {error.strerror}") from error
        write_atomically(path, (dumps(asdict(trial)) + "\n").encode())
        return path

    def all_failed(self) -> bool:
        """Return whether there are trials, and all have failed."""
        files = [*self.path.glob(_TRIALS)]
        return bool(files) and all(_read_trial(file).status == "failed" for file in files)

    def save_summary(self, summary: Mapping[str, Any]) -> None:
        """Write ``summary.json``."""
        write_atomically(self.path / _SUMMARY, (dumps(summary) + "\n").encode())


def common_settings(task: Task, parameters: Mapping[str, Any], lower_is_better: bool) -> dict[str, Any]:
    """Return the settings that all trials of a folder share; ``parameters`` are those that define the study."""
    return {
        "task": f"{task.name} ({task.digest})",
        "parameters": parameters,
        "lower_is_better": lower_is_better,
        "versions": {"tempbalance": version("tempbalance"), "torch": torch.__version__, "numpy": np.__version__},
    }


@contextmanager
def open_folder(
    path: Path, settings: Mapping[str, Any], extent: Mapping[str, Any], *, retry: bool = True
) -> Iterator[StudyFolder]:
    """Open or create a folder for one process and for trials of these settings; ``extent`` may change later.

    If all its trials have failed and ``retry`` is true, they are deleted: the task is wrong, and may now be corrected.

    Yields:
        The folder.

    Raises:
        StudyError: It cannot be created or read, has other files, trials of other settings, or another process uses it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StudyError(f"cannot create the folder {path}: {error.strerror}") from error
    _refuse_other_files(path)  # before a lock is put between them
    with _locked(path):
        folder = StudyFolder(path)
        if retry and folder.all_failed():
            for file in path.glob(_TRIALS):
                file.unlink()
        else:
            _check(path, settings)
        content = json.dumps(_stored({"settings": settings, **extent}), indent=1, default=str)
        write_atomically(path / _SETTINGS, (content + "\n").encode())
        yield folder


def _stored(value: Any) -> Any:
    """Return settings as JSON has them, the same in every process: sets in order; other keys, NaN and Inf as text."""
    if isinstance(value, Mapping):
        return {key if isinstance(key, str) else repr(key): _stored(inner) for key, inner in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(map(repr, value))
    if isinstance(value, (list, tuple)):
        return [_stored(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _refuse_other_files(path: Path) -> None:
    try:
        names = [found.name for found in path.iterdir()]
    except OSError as error:
        raise StudyError(f"cannot read the folder {path}: {error.strerror}") from error
    if _SETTINGS not in names and any(name != _LOCK and not name.startswith(TEMPORARY) for name in names):
        raise StudyError(f"{path} contains files but no study: choose another folder")


def _check(path: Path, settings: Mapping[str, Any]) -> None:
    """Raise unless a folder is new, or of a study with these settings."""
    if not (path / _SETTINGS).exists():
        return
    try:
        saved = parse_json(read_regular(path / _SETTINGS))
        before = msgspec.convert(saved, _SavedSettings).settings
    except (OSError, ValueError) as error:  # msgspec.ValidationError is a ValueError
        raise StudyError(f"cannot read {path / _SETTINGS}: {error}; choose another folder") from error
    now = json.loads(json.dumps(_stored(settings), default=str))
    differing = [
        _difference(key, before.get(key), now.get(key)) for key in {**before, **now} if before.get(key) != now.get(key)
    ]
    if differing:
        raise StudyError(
            f"{path} contains trials with other settings, which cannot be compared with new ones: "
            f"{'; '.join(differing)}. Choose another folder, or delete this one"
        )


def _difference(key: str, before: Any, now: Any) -> str:
    names = {str(value).rpartition(" (")[0] for value in (before, now)}
    if key == "task" and len(names) == 1:  # only the hash differs
        return f"the content of the task {names.pop()} has changed"
    return f"{key} was {before} and is {now}"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Lock a folder; the system releases the lock even if the process is killed."""
    if sys.platform == "win32":  # no lock: two processes would run the same trials twice, and lose none
        yield
        return
    import fcntl

    try:
        file = open(path / _LOCK, "w")
    except OSError as error:
        raise StudyError(f"cannot write to {path}: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StudyError(f"another process uses {path}: wait for it, or choose another folder") from None
        yield


def collect_folder(path: Path) -> dict[str, Any]:
    """Collect a study in one object, to share or commit as JSON.

    Args:
        path: Folder of a study that has been run.

    Returns:
        ``settings``, ``summary`` and ``runs``: all trials, tuning included, with the last line of each traceback.

    Raises:
        StudyError: A file is missing or damaged.
    """
    runs = [without_nan(asdict(_read_trial(file))) for file in path.glob(_TRIALS)]
    runs.sort(key=lambda run: (run["method"], run["lr"] or 0, run["seed"]))
    runs = [run | {"error": run["error"].strip().rpartition("\n")[2]} for run in runs]
    try:
        settings, summary = (parse_json(read_regular(path / name)) for name in (_SETTINGS, _SUMMARY))
    except (OSError, ValueError) as error:
        raise StudyError(f"cannot read the study in {path}: {error}") from error
    return {"settings": settings, "summary": summary, "runs": runs}


def restore_folder(collected: Mapping[str, Any], path: Path) -> None:
    """Write a collected study as a folder, atomically, so that seeds or methods can be added.

    Args:
        collected: From :func:`collect_folder`.
        path: A folder that does not exist yet.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
        folder = StudyFolder(Path(temporary) / path.name)
        for run in collected["runs"]:
            folder.save(Trial(**run))
        write_atomically(folder.path / _SETTINGS, (dumps(collected["settings"]) + "\n").encode())
        folder.path.rename(path)
