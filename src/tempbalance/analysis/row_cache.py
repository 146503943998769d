"""A folder with the rows of weights that were analysed before, by their content."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from tempbalance._files import as_path, dumps, read_regular, write_atomically
from tempbalance._saved import parse_json
from tempbalance.analysis.rows import Row, row_from_json, row_to_json
from tempbalance.errors import AnalysisError, OutputError
from tempbalance.layers import Weight
from tempbalance.types import LayerStats

__all__ = ["RowCache", "check_cache", "foreign"]

_SETTINGS = ("estimator", "windows", "device", "dtype", "traps", "tempbalance", "torch")

_logger = logging.getLogger("tempbalance")


def check_cache(cache: str | os.PathLike[str] | None, *methods: object) -> None:
    """Raise an AnalysisError if a cache could give the rows of other code: of methods that are not of tempbalance."""
    if cache is None:
        return
    as_path("cache", cache)
    for name in foreign(*methods):
        raise AnalysisError(f"rows of {name} cannot be kept in a cache, as its code may change: leave out cache")


def foreign(*methods: object) -> list[str]:
    """Return the classes of estimator and windows that are not of tempbalance, so that their code may change."""
    classes = [type(method) for method in methods if method is not None]
    return [each.__name__ for each in classes if each.__module__.partition(".")[0] != "tempbalance"]


class RowCache:
    """One JSON file for each weight and settings. Several processes may share a folder.

    Args:
        folder: The folder; it is made if there is none.
        settings: Settings of the analysis.

    Raises:
        OutputError: The folder cannot be made.
    """

    def __init__(self, folder: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
        self._folder = as_path("cache", folder)
        self._settings = dumps({key: settings.get(key) for key in _SETTINGS})
        self._names: dict[str, str] = {}
        with self._output_errors():
            self._folder.mkdir(parents=True, exist_ok=True)

    def rows(
        self, weights: Sequence[Weight], compute: Callable[[list[Weight]], Iterable[list[Row]]]
    ) -> Iterator[list[Row]]:
        """Yield the rows of weights in batches: those in the cache, then those that are computed, and store these."""
        others = []
        for weight in weights:
            row = self._find(weight)
            if row is None:
                others.append(weight)
            else:
                yield [row]
        for rows in compute(others):
            self._add(rows)
            yield rows

    def _add(self, rows: Sequence[Row]) -> None:
        for row in rows:  # those that were skipped are not stored
            if isinstance(row, LayerStats) and row.name in self._names:
                path = self._folder / self._names[row.name]
                content = row_to_json(replace(row, name="", kind="", block=None, quantisation="", transposed=False))
                with self._output_errors():
                    path.parent.mkdir(exist_ok=True)
                write_atomically(path, dumps(content).encode())

    def _find(self, weight: Weight) -> Row | None:
        try:
            digest = hashlib.sha256(f"{self._settings} {weight.layout.value} ".encode())
            tensor = weight.load().detach().cpu().resolve_conj().resolve_neg().contiguous()
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
            digest.update(tensor.view(-1).view(torch.uint8).numpy().data)
        except (MemoryError, torch.cuda.OutOfMemoryError):
            raise
        except Exception:  # raised again when the weight is analysed
            return None
        name = digest.hexdigest()
        self._names[weight.name] = f"{name[:2]}/{name}.json"
        path = self._folder / self._names[weight.name]
        try:
            row = row_from_json(parse_json(read_regular(path)))
        except FileNotFoundError:
            return None
        except (ValueError, OSError) as error:
            _logger.warning("%s in the cache cannot be read: %s", path, error)
            return None
        if not isinstance(row, LayerStats) or row.shape != weight.shape:
            return None
        known = {each: getattr(weight, each) for each in ("name", "kind", "block", "quantisation", "transposed")}
        return replace(row, **known)

    @contextlib.contextmanager
    def _output_errors(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(f"cannot write to the cache {self._folder}: {error.strerror}") from error
