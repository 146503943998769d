"""Analyse every weight matrix of a model or a checkpoint, a few at a time."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from tempbalance._files import dumps
from tempbalance._progress import progress_bar
from tempbalance.analysis.batching import fit_model_weights, should_parallelize, weights_of_rank
from tempbalance.analysis.distributed import WorkQueue
from tempbalance.analysis.result import Analysis
from tempbalance.analysis.resume import ResumeFile
from tempbalance.analysis.row_cache import RowCache, check_cache, foreign
from tempbalance.analysis.rows import Row, make_row
from tempbalance.checkpoints import Checkpoint, open_checkpoint
from tempbalance.errors import CheckpointError, SelectionError, TempBalanceError, WeightError, WindowError, check_type
from tempbalance.float32 import find_dtype
from tempbalance.layers import Select, Weight, find_weights_and_size
from tempbalance.layers.nested import find_state_dict
from tempbalance.layers.reasons import is_broken
from tempbalance.spectra.windows import Windows
from tempbalance.tail import TailEstimator, find_estimator
from tempbalance.types import LayerStats, Skipped
from tempbalance.weight_fit import WeightFit

__all__ = ["Opened", "Source", "analyze", "check_device", "make_settings", "open_source"]

Source: TypeAlias = nn.Module | Mapping[str, Tensor] | Checkpoint | str | os.PathLike[str]
Opened: TypeAlias = nn.Module | Mapping[str, Tensor] | Checkpoint

_logger = logging.getLogger("tempbalance")


def analyze(  # noqa: PLR0913  the main entry point; all but the source are options by keyword
    source: Source,
    *,
    estimator: TailEstimator | str | None = None,
    windows: Windows | None = None,
    select: Select | Sequence[str] | str | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    traps: bool = False,
    cache: str | os.PathLike[str] | None = None,
    progress: bool = True,
    strict: bool = False,
    key: str | None = None,
    resume: ResumeFile | str | os.PathLike[str] | None = None,
    processes: WorkQueue | None = None,
) -> Analysis:
    """Measure the spectrum of every weight matrix.

    A checkpoint is read tensor by tensor. A live model is not changed.

    Args:
        source: A live model, a state dict (also inside the dictionary of a training script), a checkpoint
            (``.safetensors``, ``.bin``, ``.pt``), a folder of them with or without an index and a ``config.json``, or a
            Hugging Face hub id.
        estimator: Estimator of the tail, or its name (``"ks"``; see ``tail.find_estimator``);
            by default ``Hill()``.
        windows: ``FARMS()`` pools the spectra of windows of one aspect ratio, so that alphas of layers of different
            shapes can be compared; the numbers of a row are then those of its windows. By default full
            matrices are used.
        select: Weights to analyse: a ``Select``, or one or several globs on the qualified parameter name.
        device: Device for the computation; by default that of each weight.
        dtype: ``"float32"`` computes eigenvalues in float32: faster, most of all on consumer GPUs. A weight for which
            rounding errors could change a number of its row by more than 1e-4 of it is computed in float64, as by
            default; ``error_bound`` of the row tells. Not with windows.
        traps: Whether to count correlation traps (``num_traps``: large eigenvalues that remain when the entries of the
            matrix are shuffled) and to compare the ERG threshold with ``xmin`` (``delta_erg``). It nearly doubles the
            time. Not with windows.
        cache: A folder for rows. The row of a weight with the same content, settings and versions is not computed
            again, in whatever model the weight is. Nothing is removed from it.
        progress: Whether to show a progress bar (on a terminal only).
        strict: Whether a weight that cannot be read or analysed raises. By default it is listed under ``skipped``.
        key: Key of the state dict in a training checkpoint, such as ``"ema"``; by default it is searched.
        resume: A file for the finished rows. If it exists and belongs to the same source and settings, its rows are not
            computed again, unless estimator or windows are not of tempbalance, as their code may have changed. It is
            kept when the analysis is interrupted, and removed otherwise. A ``tempbalance.analysis.resume.ResumeFile``
            is kept until its ``with`` block has ended.
        processes: The processes that divide the work: ``tempbalance.analysis.distributed.WorkQueue.launched()`` under
            torchrun. All of them call this function, read a part of the weights, and return all rows. By default one
            process.

    Returns:
        One row per weight matrix, in model order, and the weights that were skipped, with the reason.

    Raises:
        CheckpointError: The source cannot be read.
        SelectionError: A glob matches no weight, or there is no such estimator or device.
        WindowError: ``windows`` is not a ``Windows``, or is given with ``traps`` or with float32.
        ArgumentError: ``dtype`` is not float64 or float32.
        WeightError: The source contains no weight matrix, or, with ``strict``, one that cannot be read.
        AnalysisError: ``resume`` is given for a source that is not on disk, is another file, or cannot be written; or
            another process has failed or sends no heartbeat; or ``cache`` is given for an estimator or windows that
            are not of tempbalance, or cannot be written.

    Example:
        >>> import tempbalance as tb, torch
        >>> model = torch.nn.Linear(256, 128)
        >>> row = tb.analyze(model, estimator="ks").layers[0]
        >>> row.name, row.shape, row.status.value
        ('weight', (128, 256), 'random')
    """
    estimator, processes = find_estimator(estimator), processes or WorkQueue()
    if not isinstance(windows, Windows | None):
        raise WindowError(f"windows must be None or windows such as FARMS(), got {windows!r}")
    if traps and windows is not None:
        raise WindowError("correlation traps are counted in full matrices: leave out windows (--farms), or traps")
    selection, work = Select.parse(select), find_dtype(dtype, windows)
    check_cache(cache, estimator, windows)
    check_device(device)
    if key is not None:
        check_type("key", key, str)
    with processes, contextlib.ExitStack() as stack:
        opened, name = stack.enter_context(open_source(source, key))
        weights, skipped, size, roles = find_weights_and_size(opened, selection)
        broken = [one for one in skipped if is_broken(one.reason)]
        if strict and broken:
            raise WeightError(f"{broken[0].name}: {broken[0].reason}")
        if not weights and not skipped:
            raise WeightError(f"{name} contains no weight matrix: no tensor in it has two or more axes")
        settings = make_settings(estimator, windows, selection, device, dtype=work, traps=traps)
        settings |= {"revision": _revision(opened)}
        used = opened.key if isinstance(opened, Checkpoint) else key
        settings |= {} if used is None else {"key": used}
        partial = None
        if resume is not None and processes.rank == 0:
            partial = resume if isinstance(resume, ResumeFile) else stack.enter_context(ResumeFile(resume))
            partial.start(opened, settings, reuse=not foreign(estimator, windows))

        def compute(left: list[Weight]) -> Generator[list[Row]]:
            """Yield the rows of this process, batch by batch."""
            parallel = should_parallelize(weights, windows)
            for batch in fit_model_weights(
                left, estimator=estimator, windows=windows, device=device, dtype=work, traps=traps, parallel=parallel
            ):
                yield [_row(weight, found, strict) for weight, found in batch]

        restored = partial.rows if partial else {}
        done = processes.broadcast({n: row for n, row in restored.items() if not (strict and isinstance(row, Skipped))})
        if done:
            _logger.info("resuming: %d of %d weights are done", len(done), len(weights))
        left = weights_of_rank([w for w in weights if w.name not in done], processes.rank, processes.size)
        with progress_bar("analysing weights", len(weights), progress and processes.rank == 0) as advance:
            advance(len(done))
            for rows in processes.gather(
                compute(left) if cache is None else RowCache(cache, settings).rows(left, compute)
            ):
                for row in rows:
                    done[row.name] = row
                    if partial:
                        partial.add(row)
                advance(len(rows))
    rows = [done[weight.name] for weight in weights]
    return Analysis(
        source=name,
        settings=settings,
        layers=[replace(row, role=roles[row.name]) for row in rows if isinstance(row, LayerStats)],
        skipped=skipped + [row for row in rows if isinstance(row, Skipped)],
        size=size,
    )


def _row(weight: Weight, found: WeightFit | TempBalanceError, strict: bool) -> Row:
    if strict and isinstance(found, TempBalanceError):
        raise type(found)(f"{weight.name}: {found}") from found
    return make_row(weight, found)


def check_device(device: torch.device | str | None) -> None:
    """Raise a SelectionError unless tensors can be put on this device."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:  # without CUDA, torch asserts
        reason = str(error).strip().partition("\n")[0]
        raise SelectionError(f"device {str(device)!r} cannot be used here: {reason}") from error


@contextlib.contextmanager
def open_source(source: Source, key: str | None) -> Generator[tuple[Opened, str]]:
    """Yield a model, state dict or open checkpoint, and the name of the source."""
    if isinstance(source, (str, os.PathLike)):
        with open_checkpoint(source, key=key) as checkpoint:
            yield checkpoint, os.fspath(source)
    elif isinstance(source, Mapping):
        if key is not None or any(isinstance(value, Mapping) for value in source.values()):
            found = find_state_dict(source, key)
            source = found.tensors
            if found.message:
                _logger.warning(found.message)
        yield source, "state dict"
    elif key is not None:
        raise CheckpointError(f"a key ({key!r}) requires a path or a dictionary, got a {type(source).__name__}")
    elif isinstance(source, nn.Module):
        yield source, type(source).__name__
    elif isinstance(source, Checkpoint):
        yield source, str(source.path)
    else:
        raise WeightError(
            f"cannot analyse a {type(source).__name__}: expected a torch.nn.Module, a state dict, a path or a hub id"
        )


def make_settings(
    estimator: TailEstimator,
    windows: Windows | None,
    select: Select,
    device: torch.device | str | None,
    *,
    dtype: torch.dtype | None = None,
    traps: bool = False,
) -> dict[str, Any]:
    """Return what an analysis depends on, as JSON values."""
    return {
        "estimator": repr(estimator),
        "windows": repr(windows) if windows is not None else None,
        "select": json.loads(dumps(asdict(select))),
        "device": str(device) if device is not None else "where the weights are",
        "tempbalance": version("tempbalance"),
        "torch": torch.__version__,
        **({"dtype": "float32"} if dtype is torch.float32 else {}),
        **({"traps": True} if traps else {}),
    }


def _revision(source: Opened) -> str | None:
    """Return the commit of a model from the hub, where it is known."""
    if isinstance(source, Checkpoint):
        return source.revision
    revision = None
    with contextlib.suppress(Exception):  # whatever a property of a model raises
        revision = getattr(getattr(source, "config", None), "_commit_hash", None)
    return revision if isinstance(revision, str) else None
