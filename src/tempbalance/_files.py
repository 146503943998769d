"""Files and folders that are written atomically, JSON without NaN, and the registry of report renderers."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

from tempbalance.errors import AnalysisError, CheckpointError

__all__ = ["atomic_folder", "check_replaceable", "dumps", "register_renderer", "renderer", "write_atomically"]

_renderers: dict[str, Callable[..., str]] = {}


def register_renderer(suffix: str, render: Callable[..., str]) -> None:
    """Register the function that renders a result as text for files of a suffix.

    ``analysis.save("report.html")`` finds its renderer here, so that ``analysis`` does not import ``report``. The
    package registers ``.html`` when it is imported.

    Args:
        suffix: File suffix with its dot.
        render: Takes the result and returns the text of the file.
    """
    _renderers[suffix] = render


def renderer(suffix: str) -> Callable[..., str]:
    """Return the function that was registered for a suffix."""
    return _renderers[suffix]


def dumps(value: Any) -> str:
    """Return one line of JSON, with null for NaN and Inf.

    Args:
        value: Mappings, sequences, strings, numbers.
    """
    return json.dumps(_without_nan(value), allow_nan=False)


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(inner) for inner in value]
    return value


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file atomically: a reader or a crash never sees a part of it.

    Args:
        path: The file; its folder must exist.
        content: The content.

    Raises:
        AnalysisError: The file cannot be written.
    """
    target = Path(path)
    try:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.chmod(name, 0o666 & ~_umask())  # mkstemp makes files private
            os.replace(name, target)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise AnalysisError(f"cannot write {target}: {error.strerror or error}") from error


@contextlib.contextmanager
def atomic_folder(out: Path, marker: str) -> Generator[Path]:
    """Write a folder atomically: it replaces ``out`` when the block ends without an error.

    Args:
        out: The folder. An existing one is replaced if it is empty or contains the marker.
        marker: Name of a file that only an earlier output contains.

    Yields:
        A temporary folder to write to, on the same disk.

    Raises:
        CheckpointError: ``out`` is something else, or cannot be written; it is then unchanged.
    """
    out = out.absolute()
    check_replaceable(out, marker)
    try:
        new = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    except OSError as error:
        raise CheckpointError(f"cannot write to {out.parent}: {error.strerror or error}") from error
    try:
        yield new
        new.chmod(0o777 & ~_umask())  # mkdtemp makes folders private
        _replace(out, new)
    except OSError as error:
        raise CheckpointError(f"cannot write {out}: {error.strerror or error}; the old content is unchanged") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def check_replaceable(out: Path, marker: str) -> None:
    """Raise, before the work starts, if ``atomic_folder`` could not replace a folder.

    Args:
        out: The folder.
        marker: Name of a file that only an earlier output contains.

    Raises:
        CheckpointError: ``out`` is neither empty nor an earlier output, or its parent folder does not exist.
    """
    if out.exists() and not (out.is_dir() and ((out / marker).is_file() or not any(out.iterdir()))):
        raise CheckpointError(f"{out} exists and is not an earlier output (it has no {marker}): choose another folder")
    if not out.absolute().parent.is_dir():
        raise CheckpointError(f"cannot write {out}: there is no folder {out.absolute().parent}")


def _replace(out: Path, new: Path) -> None:
    old = new.with_name(f"{new.name}.old")
    if out.exists():
        out.rename(old)
    try:
        new.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
