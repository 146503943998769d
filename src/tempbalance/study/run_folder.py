"""The folder of a comparison: one file per run, written whole, so that a comparison goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tempbalance._files import dumps, write_whole
from tempbalance.errors import StudyError
from tempbalance.study.candidates import Trial
from tempbalance.study.task import Run, Task

__all__ = ["Folder", "common_settings", "open_folder"]

_LOCK, _SETTINGS = ".lock", "settings.json"
_LONGEST = 80  # characters of a name before its hash


class Folder:
    """Runs on disk, each known by its method, learning rate and seed."""

    def __init__(self, path: Path) -> None:
        """Take a folder that exists.

        Args:
            path: The folder.
        """
        self.path = path

    def file(self, trial: Trial, seed: int) -> Path:
        """Where a run is kept."""
        name = str(trial)
        readable = re.sub(r"[^\w.=+-]+", "_", name)[:_LONGEST]
        return self.path / "runs" / f"{readable}-{hashlib.sha256(name.encode()).hexdigest()[:8]}" / f"seed-{seed}.json"

    def load(self, trial: Trial, seed: int) -> Run | None:
        """Read a run.

        Args:
            trial: Its method.
            seed: Its seed.

        Returns:
            The run, None if it has not been made.

        Raises:
            StudyError: The file is damaged.
        """
        path = self.file(trial, seed)
        if not path.exists():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            for numbers in (content["metrics"], content["balance"]):
                numbers |= {name: math.nan for name, value in numbers.items() if value is None}
            return Run(**content)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise StudyError(f"cannot read {path}: {error}; delete it, and that run is made again") from error

    def save(self, run: Run) -> Path:
        """Write a run.

        Args:
            run: The run.

        Returns:
            Its file.
        """
        path = self.file(Trial(run.method, run.lr), run.seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, (dumps(asdict(run)) + "\n").encode())
        return path


def common_settings(task: Task, lower_is_better: bool) -> dict[str, Any]:
    """What all runs of a folder must have in common.

    Args:
        task: The task.
        lower_is_better: Whether the smallest metric is the best.

    Returns:
        The settings, for ``open_folder``.
    """
    return {
        "task": f"{task.name} ({task.digest})",
        "parameters": task.parameters,
        "lower_is_better": lower_is_better,
        "versions": {"tempbalance": version("tempbalance"), "torch": torch.__version__, "numpy": np.__version__},
    }


@contextmanager
def open_folder(path: Path, settings: Mapping[str, Any], extent: Mapping[str, Any]) -> Iterator[Folder]:
    """Use a folder alone, for runs that were all made with the same settings.

    Args:
        path: The folder; it is made if it is missing.
        settings: What all runs must have in common.
        extent: What may grow from call to call, such as the number of seeds; kept beside the settings.

    Yields:
        The folder.

    Raises:
        StudyError: It is in use, holds runs with other settings, or something else.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StudyError(f"cannot make the folder {path}: {error.strerror}") from error
    with _alone(path):
        _check(path, settings)
        write_whole(
            path / _SETTINGS, (json.dumps({"settings": settings, **extent}, indent=1, default=str) + "\n").encode()
        )
        yield Folder(path)


def _check(path: Path, settings: Mapping[str, Any]) -> None:
    if not (path / _SETTINGS).exists():
        if any(found.name != _LOCK for found in path.iterdir()):
            raise StudyError(f"{path} holds files that are no comparison: choose another folder")
        return
    try:
        before = json.loads((path / _SETTINGS).read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StudyError(f"cannot read {path / _SETTINGS}: {error}; choose another folder") from error
    now = json.loads(json.dumps(settings, default=str))
    differing = [
        f"{key} was {before.get(key)} and is {now.get(key)}"
        for key in {**before, **now}
        if before.get(key) != now.get(key)
    ]
    if differing:
        raise StudyError(
            f"{path} holds runs with other settings, which cannot be compared with new ones: {'; '.join(differing)}. "
            "Choose another folder, or delete this one"
        )


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock that the system takes back when the process ends, however it ends."""
    if sys.platform == "win32":  # without a lock: two processes would make the same runs twice, and lose nothing
        yield
        return
    import fcntl

    with open(path / _LOCK, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StudyError(f"another process works in {path}: wait for it, or choose another folder") from None
        yield
