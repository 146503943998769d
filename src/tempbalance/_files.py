"""Files and folders that are written atomically, JSON without NaN, and the registry of report renderers.

A file or folder is written beside its target, synced, and renamed. What a killed process leaves there is removed when
the same target is written again; a process holds a lock on what it still writes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from tempbalance.errors import ArgumentTypeError, CheckpointError, OutputError, TempBalanceError

__all__ = [
    "RENDERERS",
    "TEMPORARY",
    "as_path",
    "atomic_folder",
    "check_replaceable",
    "check_writable",
    "dumps",
    "open_regular",
    "read_regular",
    "without_nan",
    "write_atomically",
]

# Functions of ``report`` by name: ``analysis.save("report.html")`` and ``analysis.plot()`` find theirs here, so that
# ``analysis`` does not import ``report``. The package registers them when it is imported.
RENDERERS: dict[str, Callable[..., Any]] = {}

TEMPORARY = ".tempbalance-"  # begins the names of files that are being written
_OLD = ".old"  # ends the name of a folder that is being replaced
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of linux/fcntl.h and linux/fs.h


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


def as_path(name: str, value: object) -> Path:
    """Return a path; an ArgumentTypeError for anything else, such as a number, which Python takes for an open file."""
    if not isinstance(value, (str, os.PathLike)):
        raise ArgumentTypeError(f"{name} must be a path, got {value!r:.80}")
    return Path(value)


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file for reading; a pipe or a device, which may have no end, is an OSError."""

    def opener(name: str, flags: int) -> int:
        """Open a file without waiting for the other end of a pipe."""
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    file = open(path, "rb", opener=opener)
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise OSError("it is not a regular file")


def read_regular(path: str | os.PathLike[str]) -> bytes:
    """Return the bytes of a file; a pipe or a device, which may have no end, is an OSError."""
    with open_regular(path) as file:
        return file.read()


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise an OutputError unless ``write_atomically`` can write this file."""
    target = as_path("path", path)
    with _output_errors(target):
        _check_kind(target, stat.S_ISREG, "a file")
        with _temporary(target, _new_file):
            pass


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file to an existing folder: it has either its old or its complete new content, even after a crash."""
    target = as_path("path", path)
    with _output_errors(target):
        _check_kind(target, stat.S_ISREG, "a file")
        with _temporary(target, _new_file) as new:
            with new.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            new.chmod(0o666 & ~_umask())  # mkstemp makes files private
            new.replace(target)
        _sync(target.absolute().parent)


def check_replaceable(out: Path, marker: str) -> None:
    """Raise unless a folder is new or empty, or contains the marker, a file of earlier outputs, and can be written."""
    out = out.absolute()
    with _output_errors(out):
        _check_kind(out, stat.S_ISDIR, "a folder")
        with _temporary(out, tempfile.mkdtemp):  # which puts back a folder that a killed process was replacing
            pass
        if out.exists() and any(out.iterdir()) and not (out / marker).is_file():
            raise CheckpointError(
                f"{out} exists and is not an earlier output (it has no {marker}): choose another folder"
            )


@contextlib.contextmanager
def atomic_folder(out: Path, marker: str) -> Generator[Path]:
    """Yield a temporary folder that replaces ``out`` when the block ends without an error (see check_replaceable)."""
    out = out.absolute()
    check_replaceable(out, marker)
    with _output_errors(out), _temporary(out, tempfile.mkdtemp) as new:
        try:
            yield new
        except OutputError as error:  # of a file in the folder, whose name is temporary
            raise OutputError(str(error).replace(str(new), str(out))) from error
        new.chmod(0o777 & ~_umask())  # mkdtemp makes folders private
        for file in (*new.rglob("*"), new):
            if not file.is_symlink():
                _sync(file)
        _replace(out, new)
        _sync(out.parent)


def _replace(out: Path, new: Path) -> None:
    """Give the new folder the name ``out``; what had it goes, or is at ``new`` and goes with the temporary name."""
    if not out.exists():
        new.rename(out)
        return
    if _exchange(out, new):
        return
    old, lock = new.with_name(f"{new.name}{_OLD}"), _lock(out)
    try:
        out.rename(old)
        try:
            new.rename(out)
        except OSError:
            old.rename(out)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        _unlock(lock)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step, so that a kill loses neither; return False where the system cannot."""
    if sys.platform != "linux":
        return False
    import ctypes

    try:
        rename = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):  # an older libc
        return False
    done: int = rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    return done == 0


@contextlib.contextmanager
def _output_errors(target: Path) -> Generator[None]:
    """Raise an OutputError for a failure of the system: a full disk, a read-only folder, a name that is too long."""
    try:
        yield
    except TempBalanceError:
        raise
    except OSError as error:
        raise OutputError(
            f"cannot write {target}: {error.strerror or error}; an earlier output is unchanged"
        ) from error
    except Exception as error:
        if isinstance(error, UnicodeEncodeError) or "(os error " in str(error):  # of a path; of a library in Rust
            raise OutputError(f"cannot write {target}: {error}; an earlier output is unchanged") from error
        raise


def _check_kind(target: Path, is_kind: Callable[[int], bool], kind: str) -> None:
    """Raise an OutputError unless a path is free, or of a kind that may be replaced."""
    if not target.absolute().parent.is_dir():
        raise OutputError(f"cannot write {target}: there is no folder {target.absolute().parent}")
    if target.name in ("", ".."):
        raise OutputError(f"cannot write {target}: it is a folder that contains others; choose a name in it")
    try:
        mode = target.lstat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISLNK(mode):
        raise OutputError(f"cannot write {target}: it is a symbolic link; give the path that it points to")
    if not is_kind(mode):
        raise OutputError(f"cannot write {target}: it exists and is not {kind}")


@contextlib.contextmanager
def _temporary(target: Path, make: Callable[..., str]) -> Generator[Path]:
    """Yield a new file or folder beside the target; remove it at the end, unless it was renamed."""
    parent = target.absolute().parent
    # Of the name only a hash: names have at most 255 bytes.
    prefix = f"{TEMPORARY}{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]}-"
    with contextlib.suppress(PermissionError):  # a folder may be writable and not readable
        for leftover in [each for each in parent.iterdir() if each.name.startswith(prefix)]:
            _remove_leftover(leftover, target)
    while True:
        new = Path(make(prefix=prefix, dir=parent))
        lock = _lock(new)
        if new.exists():  # else another process took it for a leftover, before it was locked
            break
        _unlock(lock)
    try:
        yield new
    finally:
        _remove(new)
        _unlock(lock)


def _new_file(prefix: str, dir: Path) -> str:
    handle, name = tempfile.mkstemp(prefix=prefix, dir=dir)
    os.close(handle)
    return name


def _remove_leftover(leftover: Path, target: Path) -> None:
    """Remove what a killed process was writing; put back what it was replacing."""
    lock = _lock(leftover, wait=False)
    if lock is None:  # a process is writing it, or it cannot be known
        return
    with contextlib.suppress(OSError):
        if leftover.name.endswith(_OLD) and not os.path.lexists(target):
            leftover.rename(target)
        else:
            _remove(leftover)
    _unlock(lock)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def _lock(path: Path, *, wait: bool = True) -> int | None:
    """Lock a file or folder until ``_unlock`` or the end of the process; None if this is not possible."""
    if sys.platform == "win32":
        return None
    import fcntl

    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(handle)
        return None
    return handle


def _unlock(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)


def _sync(path: Path) -> None:
    """Write a file or the entries of a folder to the disk, so that a crash after a rename loses nothing."""
    # A folder may be unreadable, and some systems cannot sync one; what is in it has its name already.
    with contextlib.suppress(OSError) if path.is_dir() else contextlib.nullcontext():
        handle = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)  # Windows syncs what it may write
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
