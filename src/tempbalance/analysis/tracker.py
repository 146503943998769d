"""Track a training run over its checkpoints: alpha, stable rank, and the drift from the first one."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from tempbalance._files import dumps
from tempbalance._progress import show_line
from tempbalance._text import printable
from tempbalance.analysis.adapted import is_adapter, with_base
from tempbalance.analysis.analyzer import Opened, Source, analyze, make_settings, open_source
from tempbalance.analysis.resume import identities
from tempbalance.analysis.row_cache import foreign
from tempbalance.analysis.series import SeriesItem, find_series
from tempbalance.analysis.track_findings import track_findings
from tempbalance.analysis.track_result import Track, TrackedCheckpoint, TrackedLayer, TrackResume
from tempbalance.analysis.weight_change import weight_change
from tempbalance.checkpoints import Checkpoint
from tempbalance.errors import AnalysisError, SelectionError, TempBalanceError, WeightError
from tempbalance.float32 import find_dtype
from tempbalance.layers import Select, TensorStore, Weight, find_weights
from tempbalance.layers.names import StateDict
from tempbalance.spectra.windows import Windows
from tempbalance.tail import TailEstimator, find_estimator
from tempbalance.types import LayerStats, Skipped

__all__ = ["track", "weights_digest"]


def track(  # noqa: PLR0913  all but the sources are options by keyword
    checkpoints: Source | Iterable[Source],
    *,
    estimator: TailEstimator | str | None = None,
    windows: Windows | None = None,
    select: Select | Sequence[str] | str | None = None,
    base: Source | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    cache: str | os.PathLike[str] | None = None,
    progress: bool = True,
    strict: bool = False,
    key: str | None = None,
    resume: TrackResume | str | os.PathLike[str] | None = None,
) -> Track:
    """Measure every layer at each checkpoint of a training run.

    Checkpoints are read one after the other, tensor by tensor; of the first one, the weight with which another is
    compared.

    Args:
        checkpoints: A folder with ``checkpoint-*`` or ``.ckpt`` files in it, or sources as for ``analyze``. They are
            sorted by step, if all steps are known.
        estimator: Estimator of the tail, by default ``Hill()``.
        windows: Windows, as for ``analyze``.
        select: Weights to analyse, as for ``analyze``. Embeddings have a drift in any case.
        base: The base model of checkpoints that are PEFT adapters; each is merged with it.
        device: Device for the computation.
        dtype: ``"float32"`` computes eigenvalues in float32, as for ``analyze``.
        cache: A folder for rows, as for ``analyze``.
        progress: Whether to show progress (on a terminal only).
        strict: Whether a checkpoint that cannot be read raises. By default it is listed under ``skipped``.
        key: Key of the state dict in training checkpoints, such as ``"ema"``.
        resume: The path of the output. Finished checkpoints are kept in ``PATH.partial`` until the end; they, and those
            of an earlier output ``PATH`` that ends in ``.json``, are used again if their files, the first checkpoint
            and the settings are the same, and estimator and windows are of tempbalance. A
            ``tempbalance.analysis.TrackResume`` keeps the file until its ``with`` block has ended.

    Returns:
        The layers at each checkpoint, and the findings.

    Raises:
        TempBalanceError: With ``strict``, a checkpoint cannot be read.
        SelectionError: A glob matches no weight of a checkpoint.
        AnalysisError: No checkpoint can be read, or ``resume`` is given for models in memory.
        ArgumentError: There is no checkpoint, or two have the same name.

    Example:
        >>> import tempbalance as tb, torch
        >>> model = torch.nn.Linear(64, 64)
        >>> before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        >>> tracked = tb.track([before, {"weight": 1.5 * before["weight"]}])
        >>> [round(drift, 6) for drift in tracked.drift]
        [0.0, 0.5]
    """
    items = find_series(checkpoints)
    estimator, selection = find_estimator(estimator), Select.parse(select)
    work = find_dtype(dtype, windows)
    settings = make_settings(estimator, windows, selection, device, dtype=work) | ({} if key is None else {"key": key})
    options: dict[str, Any] = {"estimator": estimator, "windows": windows, "device": device, "dtype": dtype}
    options |= {"cache": cache, "progress": progress}
    tracker = _Tracker(selection, options, key)
    done: list[TrackedCheckpoint] = []
    skipped: list[Skipped] = []
    with contextlib.ExitStack() as stack:
        if base is not None:
            tracker.base, name = stack.enter_context(open_source(base, None))
            settings |= {"base": name, "base_files": dumps(_files(tracker.base))}
            if resume is not None and not _files(tracker.base):
                raise AnalysisError("a run can be resumed only if its base model is on disk: one in memory may change")
        partial = stack.enter_context(TrackResume(resume)) if isinstance(resume, (str, os.PathLike)) else resume
        for place, item in enumerate(items, start=1):
            show_line(printable(f"checkpoint {place} of {len(items)}: {item.name}"), progress)
            try:
                done.append(tracker.measure(item, settings, partial, stack))
            except (AnalysisError, SelectionError):  # of the output, or of an argument
                raise
            except TempBalanceError as error:
                if strict:
                    raise
                skipped.append(Skipped(item.name, str(error)))
    if not done:
        raise AnalysisError(f"no checkpoint can be read: {skipped[0].name}: {skipped[0].reason}")
    tracked = Track(settings=settings, checkpoints=done, skipped=skipped)
    return replace(tracked, findings=track_findings(tracked))


def _files(source: Opened) -> list[dict[str, Any]]:
    return identities(source) if isinstance(source, Checkpoint) else []


@dataclass
class _Tracker:
    """Measures checkpoints, and compares each with the first.

    Attributes:
        selection: Weights to analyse.
        options: Options of the analysis.
        key: Key of the state dict in training checkpoints.
        base: The base model of adapters.
        first: The weights of the first checkpoint, by name; None before it is measured.
    """

    selection: Select
    options: Mapping[str, Any]
    key: str | None
    base: Opened | None = None
    first: dict[str, Weight] | None = None

    def measure(
        self, item: SeriesItem, settings: Mapping[str, Any], partial: TrackResume | None, stack: contextlib.ExitStack
    ) -> TrackedCheckpoint:
        """Measure a checkpoint, or return what is known of it. The first one stays open on the stack."""
        with contextlib.ExitStack() as own:
            opened, name = own.enter_context(open_source(item.source, self.key))
            model = opened
            if self.base is not None and isinstance(opened, Checkpoint) and is_adapter(opened):
                model = with_base(opened, self.base)
            weights = {w.name: w for w in find_weights(model, replace(self.selection, embeddings=True))[0]}
            if partial is not None and self.first is None:
                own_code = not foreign(self.options["estimator"], self.options["windows"])
                partial.start(opened, dict(settings), reuse=own_code)
            known = partial.rows.get(item.name) if partial is not None else None
            if not isinstance(known, TrackedCheckpoint) or known.files != _files(opened):
                analysis = analyze(model, select=self.selection, **self.options)
                known = TrackedCheckpoint(
                    name=item.name,
                    source=name,
                    step=item.step,
                    digest=weights_digest(opened),
                    layers=self._layers(weights, {row.name: row for row in analysis.layers}),
                    findings=list(analysis.findings),
                    files=_files(opened),
                )
                if partial is not None:
                    partial.add(known)
            if self.first is None:
                self.first = weights
                stack.enter_context(own.pop_all())
            return known

    def _layers(self, weights: Mapping[str, Weight], rows: Mapping[str, LayerStats]) -> list[TrackedLayer]:
        """Return the layers of a checkpoint: those of its analysis, and embeddings."""
        found = []
        for name, weight in weights.items():
            row = rows.get(name)
            if row is None and weight.kind != "embedding":
                continue
            first = weight if self.first is None else self.first.get(name)
            comparable = first is not None and first.shape == weight.shape
            try:
                change = weight_change(
                    first if comparable and first else weight, weight, device=self.options["device"], spectrum=False
                )
            except WeightError:  # an embedding with NaN; other weights with it have no row
                continue
            found.append(
                TrackedLayer(
                    name=name,
                    kind=weight.kind,
                    block=weight.block,
                    status=None if row is None else row.status,
                    alpha=math.nan if row is None else row.alpha,
                    stderr=math.nan if row is None else row.stderr,
                    stable_rank=math.nan if row is None else row.stable_rank,
                    norm=change.norm_after,
                    drift=change.relative if comparable else math.nan,
                    identical=change.identical if comparable else None,
                )
            )
        return found


def weights_digest(source: Opened) -> str:
    """Return the SHA-256 of names, shapes, dtypes and values of all tensors; empty if one of them cannot be read."""
    state = source.state_dict() if isinstance(source, nn.Module) else source
    store: TensorStore = StateDict(state) if isinstance(state, Mapping) else state
    digest = hashlib.sha256()
    for name in sorted(store.tensors):
        info = store.tensors[name]
        digest.update(f"{name} {info.shape} {info.dtype} ".encode(errors="backslashreplace"))
        try:
            tensor = store.load(name).detach().cpu().contiguous()
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
        except (TempBalanceError, RuntimeError, TypeError, NotImplementedError):  # quantised or without storage
            return ""
    return digest.hexdigest()
