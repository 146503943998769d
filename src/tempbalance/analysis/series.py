"""The checkpoints of a training run: where they are, and the step of each."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from tempbalance.analysis.analyzer import Source
from tempbalance.checkpoints.torch_file import stored_integer
from tempbalance.errors import ArgumentError, CheckpointError, NotFoundError

__all__ = ["SeriesItem", "find_series"]

_STEP = re.compile(r"(?:global_?step|step|iter(?:ation)?|checkpoint|ckpt)[-_=]?(\d+)", re.IGNORECASE)
_EPOCH = re.compile(r"epoch[-_=]?(\d+)", re.IGNORECASE)
_FILES = (".ckpt", ".pt", ".pth", ".safetensors", ".bin")


class SeriesItem(NamedTuple):
    """One checkpoint of a series.

    Attributes:
        name: Its name in tables.
        source: Where its weights are.
        step: Its training step; None if it is not known.
    """

    name: str
    source: Source
    step: int | None


def find_series(sources: Source | Iterable[Source]) -> list[SeriesItem]:
    """Find the checkpoints of a series and sort them by step.

    A folder with ``checkpoint-*`` or other numbered checkpoints in it, or ``.ckpt`` files, also in a folder
    ``checkpoints``, stands for them. Steps are those of ``trainer_state.json``, of the name (``step=100``), of
    ``global_step`` in the file, or else the number in the name.

    Args:
        sources: Sources as for ``analyze``, or folders of checkpoints.

    Returns:
        The checkpoints, by step if all steps are known, else in the order given.

    Raises:
        ArgumentError: There is no source, or two have the same name.
        NotFoundError: The only source is a folder without checkpoints.
        CheckpointError: The system refuses a path, such as one that is too long.
    """
    given = [sources] if isinstance(sources, (str, os.PathLike)) else list(sources)  # type: ignore[arg-type]
    found: list[SeriesItem] = []
    for place, source in enumerate(given, start=1):
        if not isinstance(source, (str, os.PathLike)):
            path = getattr(source, "path", None)
            name = path.name if isinstance(path, Path) else f"model {place}"
            found.append(SeriesItem(name, source, None if path is None else _step(path)))
            continue
        path = Path(source)
        try:
            inside = _inside(path) if path.is_dir() else []
            itself = SeriesItem(path.name if path.exists() else os.fspath(source), source, _step(path))
        except OSError as error:  # a name that is too long; a folder that may not be read
            raise CheckpointError(f"{path}: cannot be opened: {error.strerror or error}") from error
        if not inside and len(given) == 1 and path.is_dir():
            raise NotFoundError(
                f"{path} has no checkpoints in it: expected folders such as checkpoint-500 or .ckpt files, or give "
                "several checkpoints"
            )
        found += inside or [itself]
    if not found:
        raise ArgumentError("there is no checkpoint to track")
    found = _unique(found)
    steps = [item.step for item in found if item.step is not None]
    return sorted(found, key=lambda item: item.step or 0) if len(steps) == len(found) else found


def _inside(folder: Path) -> list[SeriesItem]:
    """Return the checkpoints in a folder, in natural order."""
    entries = sorted(folder.iterdir(), key=lambda entry: _natural(entry.name))
    chosen = [entry for entry in entries if entry.is_dir() and (_STEP.search(entry.name) or _EPOCH.search(entry.name))]
    if not chosen:
        is_model = (folder / "config.json").exists()
        chosen = [entry for entry in entries if entry.is_file() and _is_checkpoint(entry) and not is_model]
    if not chosen and (folder / "checkpoints").is_dir():
        return _inside(folder / "checkpoints")
    items = [SeriesItem(entry.name, entry, _step(entry)) for entry in chosen]
    counts = Counter(item.step for item in items)
    # Lightning saves a copy of the latest checkpoint under this name.
    return [item for item in items if not (item.name.startswith("last") and counts[item.step] > 1)]


def _is_checkpoint(file: Path) -> bool:
    """Return whether a file in a folder is a checkpoint of a series."""
    suffix = file.suffix.lower()
    return suffix == ".ckpt" or (suffix in _FILES and bool(_STEP.search(file.stem) or _EPOCH.search(file.stem)))


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _step(path: Path) -> int | None:
    """Return the step of a checkpoint."""
    if not path.exists():  # a hub id: its revision
        numbers = re.findall(r"\d+", path.name.partition("@")[2])
        return int(numbers[0]) if len(numbers) == 1 else None
    try:
        state = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        if isinstance(state, dict) and isinstance(state.get("global_step"), int):
            return int(state["global_step"])
    except (OSError, ValueError, RecursionError):
        pass
    named = _STEP.findall(path.name)
    if named:
        return int(named[-1])
    if path.suffix.lower() == ".ckpt" and path.is_file():
        stored = stored_integer(path, "global_step")
        if stored is not None:
            return stored
    numbers = _EPOCH.findall(path.name) or re.findall(r"\d+", path.stem)
    return int(numbers[-1]) if len(numbers) == 1 else None


def _unique(items: Sequence[SeriesItem]) -> list[SeriesItem]:
    """Give checkpoints of equal names that of their folder, too."""
    counts = Counter(item.name for item in items)
    result = []
    for item in items:
        path = Path(item.source) if isinstance(item.source, (str, os.PathLike)) else None
        named = counts[item.name] > 1 and path is not None and path.exists()
        result.append(item._replace(name=f"{path.resolve().parent.name}/{item.name}") if named and path else item)
    names = Counter(item.name for item in result)
    if names and max(names.values()) > 1:
        raise ArgumentError(f"two checkpoints are called {names.most_common(1)[0][0]!r}: give each once")
    return result
