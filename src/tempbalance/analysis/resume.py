"""The resume file of an analysis, with the finished rows."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from tempbalance._files import dumps
from tempbalance.analysis.rows import Row, row_from_json, row_to_json
from tempbalance.checkpoints import Checkpoint
from tempbalance.errors import AnalysisError

__all__ = ["ResumeFile"]

_logger = logging.getLogger("tempbalance")


class ResumeFile:
    """Finished rows, one JSON line each, after a line with the files and settings of the analysis.

    Use it as a context manager. The file is kept after an error or an interrupt, and removed otherwise.

    Attributes:
        rows: The finished rows by name.
    """

    def __init__(self, path: str | os.PathLike[str], source: object, settings: Any) -> None:
        """Read the rows of an interrupted analysis of the same source and settings, and open the file for more."""
        if not isinstance(source, Checkpoint):
            raise AnalysisError("only an analysis of files can be resumed: a model in memory may have changed")
        header = dumps({"files": [list(map(str, file)) for file in source.files], "settings": settings})
        self._path = Path(path)
        self.rows = self._read(header)
        try:
            self._file: IO[str] = self._path.open("w", encoding="utf-8")
        except OSError as error:
            raise AnalysisError(f"cannot write {path}: {error.strerror}") from error
        self._file.write(header + "\n")
        for row in self.rows.values():
            self.add(row)

    def __enter__(self) -> ResumeFile:
        """Return the file."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Close the file; remove it if there was no error."""
        self._file.close()
        if kind is None:
            self._path.unlink(missing_ok=True)

    def add(self, row: Row) -> None:
        """Write a row, and flush, since the process may be killed at any time."""
        self._file.write(dumps(row_to_json(row)) + "\n")
        self._file.flush()

    def _read(self, header: str) -> dict[str, Row]:
        lines: list[str] = []
        with contextlib.suppress(OSError):
            lines = self._path.read_text(encoding="utf-8").splitlines()
        rows: dict[str, Row] = {}
        if lines and lines[0] != header:
            _logger.warning("%s belongs to other files or settings: starting afresh", self._path)
            return rows
        for line in lines[1:]:
            with contextlib.suppress(ValueError, KeyError, TypeError):  # the last line may be cut short
                row = row_from_json(json.loads(line))
                rows[row.name] = row
        return rows
