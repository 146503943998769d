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

__all__ = ["RENDERERS", "atomic_folder", "check_replaceable", "dumps", "without_nan", "write_atomically"]

# Functions that render a result as text, by file suffix: ``analysis.save("report.html")`` finds its renderer here, so
# that ``analysis`` does not import ``report``. The package registers ``.html`` when it is imported.
RENDERERS: dict[str, Callable[..., str]] = {}


def dumps(value: Any) -> str:
    """Return one line of JSON, with null for NaN and Inf."""
    return json.dumps(without_nan(value), allow_nan=False)


def without_nan(value: Any) -> Any:
    """Return nested mappings and sequences as dicts and lists, with None for NaN and Inf."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(inner) for inner in value]
    return value


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file to an existing folder: it has either its old or its complete new content, even after a crash."""
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
    """Yield a temporary folder that replaces ``out`` when the block ends without an error (see check_replaceable)."""
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
    """Raise a CheckpointError unless a folder is new or empty, or contains the marker, a file of earlier outputs."""
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
