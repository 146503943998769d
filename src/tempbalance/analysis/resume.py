"""The resume file of an analysis, with the finished rows."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import stat
from collections.abc import Generator
from pathlib import Path
from types import TracebackType
from typing import IO, Any, TypeVar

import msgspec

from tempbalance._files import as_path, dumps, write_atomically
from tempbalance._saved import parse_json
from tempbalance.analysis.rows import Row, row_from_json, row_to_json
from tempbalance.checkpoints import Checkpoint
from tempbalance.errors import AnalysisError, OutputError

__all__ = ["ResumeFile", "identities"]

_HASHED = 2**16  # bytes at the beginning and the end of a file

_Self = TypeVar("_Self", bound="ResumeFile")

_logger = logging.getLogger("tempbalance")


class _Header(msgspec.Struct):
    """The first line, by which a resume file is recognised."""

    files: list[Any]
    settings: dict[str, Any]


class ResumeFile:
    """Finished rows, one JSON line each, after a line with the identity of the files and the settings of the analysis.

    Use it as a context manager. The file is kept after an error or an interrupt, and removed at the end of the block
    otherwise: write the results inside the block.

    Args:
        path: The file.

    Attributes:
        rows: The finished rows by name.

    Raises:
        AnalysisError: The path exists and is not a resume file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = as_path("resume", path)
        self.rows: dict[str, Any] = {}
        self._file: IO[str] | None = None
        self._read()

    def start(self, source: object, settings: Any, *, reuse: bool = True) -> None:
        """Find the rows of an interrupted analysis of the same source and settings, and open the file for more.

        Rows are used again if ``reuse``; those of an estimator that is not of tempbalance may be of other code.

        Raises:
            AnalysisError: The source is not on disk.
        """
        if not isinstance(source, Checkpoint):
            raise AnalysisError("only an analysis of files can be resumed: a model in memory may have changed")
        header = dumps({"files": identities(source), "settings": settings})
        lines = self._read()
        if lines and not (reuse and lines[0] == header):
            why = "belongs to other files or settings" if reuse else "has rows of code that may have changed"
            _logger.warning("%s %s: starting afresh", self._path, why)
            lines = []
        for line in lines[1:]:
            with contextlib.suppress(ValueError):  # the last line may be cut short
                row = self._decoded(parse_json(line))
                self.rows[row.name] = row
        kept = [header, *(dumps(self._encoded(row)) for row in self.rows.values())]
        write_atomically(self._path, "".join(f"{line}\n" for line in kept).encode())
        with self._output_errors():
            self._file = self._path.open("a", encoding="utf-8")

    def __enter__(self: _Self) -> _Self:
        """Return the file."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Close the file; remove it if there was no error."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # what a full disk could not take is computed again
                self._file.close()
            if kind is None:
                with self._output_errors():
                    self._path.unlink(missing_ok=True)

    def _decoded(self, line: Any) -> Any:
        row: Row = row_from_json(line)
        return row

    def _encoded(self, row: Any) -> dict[str, Any]:
        return row_to_json(row)

    def add(self, row: Any) -> None:
        """Write a row, and flush, since the process may be killed at any time."""
        if self._file is None:
            raise AnalysisError(f"{self._path} is not open: call start first")
        with self._output_errors():
            self._file.write(dumps(self._encoded(row)) + "\n")
            self._file.flush()

    @contextlib.contextmanager
    def _output_errors(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(
                f"cannot write {self._path}: {error.strerror}; run the same again to resume from what is in it"
            ) from error

    def _read(self) -> list[str]:
        """Return the lines of the file, none if there is no file; refuse a file of somebody else."""
        try:
            if not stat.S_ISREG(self._path.lstat().st_mode):  # nor a symbolic link
                raise ValueError("it is not a regular file")
            lines = self._path.read_text(encoding="utf-8").splitlines()
            msgspec.convert(parse_json(lines[0] if lines else ""), _Header)
        except FileNotFoundError:
            return []
        except ValueError as error:  # msgspec.ValidationError is a ValueError
            raise AnalysisError(
                f"{self._path} exists and is not the resume file of an analysis ({error}): move it, or choose another "
                "name for the output"
            ) from None
        except OSError as error:
            raise OutputError(f"cannot read {self._path}: {error.strerror}") from error
        return lines


def identities(source: Checkpoint) -> list[dict[str, Any]]:
    """Return what tells whether the files of a checkpoint are the same as before."""
    return [_identity(file.path) for file in source.files]


def _identity(path: Path) -> dict[str, Any]:
    """Return what changes if a file is replaced, also by one of the same size and time."""
    with path.open("rb") as file:
        found = os.fstat(file.fileno())
        content = file.read(_HASHED)
        file.seek(max(0, found.st_size - _HASHED))
        content += file.read(_HASHED)
    times = {"mtime_ns": found.st_mtime_ns, "ctime_ns": found.st_ctime_ns}
    return {
        "path": str(path.resolve()),
        "size": found.st_size,
        **times,
        "inode": found.st_ino,
        "sha256": hashlib.sha256(content).hexdigest(),
    }
