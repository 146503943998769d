"""Analyse every weight matrix of a model or a checkpoint, a few at a time."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, TypeAlias

import torch
from torch import Tensor, nn

from tempbalance._files import dumps
from tempbalance._progress import progress_bar
from tempbalance.analysis.batching import enough_side_by_side, fit_model_weights, own_share
from tempbalance.analysis.distributed import WorkQueue
from tempbalance.analysis.result import Analysis
from tempbalance.analysis.rows import row_from_json, row_to_json
from tempbalance.checkpoints import Checkpoint, open_checkpoint
from tempbalance.errors import AnalysisError, SelectionError, TempBalanceError, WeightError
from tempbalance.layers import Select, Weight, find_weights
from tempbalance.metrics import thin
from tempbalance.spectra.windows import Windows
from tempbalance.tail import TailEstimator, find_estimator
from tempbalance.tail.estimator import failed
from tempbalance.types import LayerStats, Skipped, Status
from tempbalance.weight_fit import WeightFit

__all__ = ["Source", "analyze"]

Source: TypeAlias = nn.Module | Mapping[str, Tensor] | Checkpoint | str | os.PathLike[str]

_logger = logging.getLogger("tempbalance")


def analyze(  # noqa: PLR0913  the front door; all but the source are options by keyword
    source: Source,
    *,
    estimator: TailEstimator | str = "hill",
    windows: Windows | None = None,
    select: Select | Sequence[str] | str | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
    strict: bool = False,
    resume: str | os.PathLike[str] | None = None,
    processes: WorkQueue | None = None,
) -> Analysis:
    """Measure the spectrum of every weight matrix.

    A checkpoint is read tensor by tensor, never as a whole. A live model is not changed.

    Args:
        source: A live model, a state dict, a checkpoint (``.safetensors``, ``.bin``, ``.pt``), a folder of them with
            or without an index and a ``config.json``, or a Hugging Face hub id.
        estimator: How the tail is fitted: an estimator, or its name (``"ks"``; see ``tail.find_estimator``).
        windows: ``FARMS()`` pools the spectra of windows of one aspect ratio, so that alphas of layers of different
            shapes can be compared; each row is then that of the windows. By default each matrix is measured whole.
        select: Which weights, as a ``Select``, or as one or several globs on the qualified parameter name.
        device: Where to compute; by default where the weights are.
        progress: Whether to show a progress bar (only ever on a terminal).
        strict: Whether a weight that cannot be analysed raises. By default it is listed under ``skipped``.
        resume: A file for the rows done so far. If it exists and fits the source and the settings, its rows are not
            computed again. It is left behind when this is interrupted, and removed otherwise.
        processes: Those that share the weights, as ``tempbalance.analysis.distributed.WorkQueue.launched()`` finds them
            under torchrun. All call this, each reads its share, and all get all rows; by default one process.

    Returns:
        One row per weight matrix, in model order, and what was skipped and why.

    Raises:
        CheckpointError: The source cannot be read.
        SelectionError: A glob matches no weight, or there is no such estimator or device.
        WeightError: The source holds no weight matrix at all.
        AnalysisError: ``resume`` is asked for a source that is not on disk, or its file cannot be written; or another
            of several processes has failed.

    Example:
        >>> import tempbalance as tb, torch
        >>> model = torch.nn.Linear(256, 128)
        >>> row = tb.analyze(model, estimator=tb.KS()).layers[0]
        >>> row.name, row.shape, row.status.value
        ('weight', (128, 256), 'random')
    """
    estimator, processes = find_estimator(estimator), processes or WorkQueue()
    resume = resume if processes.rank == 0 else None
    selection = Select.parse(select)
    _check_device(device)
    with _opened(source) as (opened, name):
        weights, skipped = find_weights(opened, selection)
        if not weights and not skipped:
            raise WeightError(f"{name} holds no weight matrix: nothing in it has two or more axes")
        settings = _settings(estimator, windows, selection, device)
        settings["revision"] = _revision(opened)
        partial = _Partial.open(resume, opened, settings) if resume is not None else None
        try:
            job = _Job(estimator, windows, device, strict, partial, processes)
            rows = job.run(weights, progress)
        finally:
            if partial is not None:
                partial.close()
    if resume is not None:
        Path(resume).unlink(missing_ok=True)
    return Analysis(
        source=name,
        settings=settings,
        layers=[row for row in rows if isinstance(row, LayerStats)],
        skipped=skipped + [row for row in rows if isinstance(row, Skipped)],
    )


def _check_device(device: torch.device | str | None) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch without CUDA asserts
        reason = str(error).strip().partition("\n")[0]
        raise SelectionError(f"device {str(device)!r} cannot be used here: {reason}") from error


@contextlib.contextmanager
def _opened(source: Source) -> Generator[tuple[nn.Module | Mapping[str, Tensor] | Checkpoint, str]]:
    """What ``find_weights`` takes, and a name for people."""
    if isinstance(source, nn.Module):
        yield source, type(source).__name__
    elif isinstance(source, (str, os.PathLike)):
        with open_checkpoint(source) as checkpoint:
            yield checkpoint, os.fspath(source)
    elif isinstance(source, Checkpoint):
        yield source, str(source.path)
    elif isinstance(source, Mapping):
        yield source, "state dict"
    else:
        raise WeightError(
            f"cannot analyse a {type(source).__name__}: expected a torch.nn.Module, a state dict, a path or a hub id"
        )


def _settings(
    estimator: TailEstimator, windows: Windows | None, select: Select, device: torch.device | str | None
) -> dict[str, Any]:
    return {
        "estimator": repr(estimator),
        "windows": repr(windows) if windows is not None else None,
        "select": json.loads(dumps(asdict(select))),
        "device": str(device) if device is not None else "where the weights are",
        "tempbalance": version("tempbalance"),
        "torch": torch.__version__,
    }


def _revision(source: nn.Module | Mapping[str, Tensor] | Checkpoint) -> str | None:
    """Commit of a model from the hub, where it is known."""
    if isinstance(source, Checkpoint):
        return source.revision
    revision = getattr(getattr(source, "config", None), "_commit_hash", None)
    return revision if isinstance(revision, str) else None


@dataclass(frozen=True)
class _Job:
    """What stays the same from weight to weight."""

    estimator: TailEstimator
    windows: Windows | None
    device: torch.device | str | None
    strict: bool
    partial: _Partial | None
    processes: WorkQueue

    def run(self, weights: Sequence[Weight], progress: bool) -> list[LayerStats | Skipped]:
        """A row, or the reason why there is none, for every weight, in the order given."""
        done = self.processes.first(dict(self.partial.rows) if self.partial else {})
        if done:
            _logger.info("resuming: %d of %d weights are done", len(done), len(weights))
        left = [weight for weight in weights if weight.name not in done]
        own = own_share(left, self.processes.rank, self.processes.size)
        side_by_side = enough_side_by_side(weights, self.windows)
        with progress_bar("analysing weights", len(weights), progress and self.processes.rank == 0) as advance:
            advance(len(done))
            for rows in self.processes.merge(self._computed(own, side_by_side)):
                for row in rows:
                    done[row.name] = row
                    if self.partial:
                        self.partial.add(row)
                advance(len(rows))
        return [done[weight.name] for weight in weights]

    def _computed(self, weights: Sequence[Weight], side_by_side: bool) -> Iterator[list[LayerStats | Skipped]]:
        for batch in fit_model_weights(
            weights, estimator=self.estimator, windows=self.windows, device=self.device, side_by_side=side_by_side
        ):
            yield [self._outcome(weight, found) for weight, found in batch]

    def _outcome(self, weight: Weight, found: WeightFit | TempBalanceError) -> LayerStats | Skipped:
        if isinstance(found, WeightFit):
            return _row(weight, found)
        if self.strict:
            raise type(found)(f"{weight.name}: {found}") from found
        return Skipped(weight.name, str(found))


def _row(weight: Weight, found: WeightFit) -> LayerStats:
    spectrum, fit, metrics = found.spectrum, found.fit, found.metrics
    if found.random:  # an exponent would only describe the shape of the matrix
        fit, metrics = failed(Status.RANDOM), replace(metrics, alpha_hat=math.nan, log10_alpha_norm=math.nan)
    return LayerStats(
        name=weight.name,
        kind=weight.kind,
        block=weight.block,
        shape=weight.shape,
        num_matrices=spectrum.num_matrices // found.num_windows,
        num_windows=found.num_windows,
        coverage=found.coverage,
        num_eigenvalues=len(spectrum.eigenvalues),
        error_bound=spectrum.error_bound,
        esd=thin(spectrum.eigenvalues),
        **asdict(fit),
        **asdict(metrics),
    )


class _Partial:
    """Rows done so far, one JSON line each after a first line that says what they belong to."""

    def __init__(self, file: IO[str], rows: dict[str, LayerStats | Skipped]) -> None:
        self._file = file
        self.rows = rows

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], source: nn.Module | Mapping[str, Tensor] | Checkpoint, settings: Any
    ) -> _Partial:
        """Read what an interrupted run has left, if it belongs to this one, and go on writing."""
        if not isinstance(source, Checkpoint):
            raise AnalysisError("only an analysis of files can be resumed: a model in memory may have changed")
        header = dumps({"files": [list(map(str, file)) for file in source.files], "settings": settings})
        lines: list[str] = []
        with contextlib.suppress(OSError):
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        rows: dict[str, LayerStats | Skipped] = {}
        if lines and lines[0] == header:
            for line in lines[1:]:
                with contextlib.suppress(ValueError, KeyError, TypeError):  # the last line may be cut short
                    row = json.loads(line)
                    parsed = Skipped(**row) if "reason" in row else row_from_json(row)
                    rows[parsed.name] = parsed
        elif lines:
            _logger.warning("%s belongs to other files or settings: starting afresh", path)
        try:
            file = Path(path).open("w", encoding="utf-8")
        except OSError as error:
            raise AnalysisError(f"cannot write {path}: {error.strerror}") from error
        partial = cls(file, rows)
        file.write(header + "\n")
        for row in rows.values():
            partial.add(row)
        return partial

    def add(self, row: LayerStats | Skipped) -> None:
        """Write a row at once: the next moment may be the last."""
        self._file.write(dumps(row._asdict() if isinstance(row, Skipped) else row_to_json(row)) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file; it stays where it is."""
        self._file.close()
