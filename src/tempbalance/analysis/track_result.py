"""The result of tracking a training run over its checkpoints, and its files."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from tempbalance._files import RENDERERS, as_path, dumps
from tempbalance._saved import Settings, read_saved
from tempbalance._text import encodable
from tempbalance.analysis.result import save_report
from tempbalance.analysis.resume import ResumeFile, identities
from tempbalance.analysis.rows import SavedSkipped
from tempbalance.checkpoints import Checkpoint
from tempbalance.errors import AnalysisError
from tempbalance.metrics import imbalance
from tempbalance.types import Finding, Skipped, Status

if TYPE_CHECKING:
    import pandas as pd
    from plotly.graph_objects import Figure

__all__ = ["Track", "TrackResume", "TrackedCheckpoint", "TrackedLayer"]

_SCHEMA = 1
_FLOATS = ("alpha", "stderr", "stable_rank", "norm", "drift")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedLayer:
    """One layer at one checkpoint.

    Attributes:
        name: Qualified parameter name.
        kind: Kind of weight, as in ``LayerStats``; an embedding has no alpha.
        block: Its transformer block, or None.
        status: Outcome of the fit; None for an embedding.
        alpha: Alpha; NaN without a fit.
        stderr: Standard error of alpha.
        stable_rank: Stable rank of the weight.
        norm: Frobenius norm of the weight.
        drift: ``||W - W0|| / ||W0||`` with ``W0`` the weight at the first checkpoint; NaN if it is not there, or has
            another shape.
        identical: Whether the weight is equal to that of the first checkpoint; None if it was not compared.
    """

    name: str
    kind: str
    block: str | None
    status: Status | None
    alpha: float
    stderr: float
    stable_rank: float
    norm: float
    drift: float
    identical: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedCheckpoint:
    """One checkpoint of a series.

    Attributes:
        name: Its name in the series.
        source: Its path or hub id.
        step: Its training step; None if it is not known.
        digest: SHA-256 of names, shapes, dtypes and values of all its tensors.
        layers: Its layers, in model order.
        findings: The findings of its analysis.
        files: Identity of its files, by which a result is used again; empty for a model in memory.
    """

    name: str
    source: str
    step: int | None
    digest: str
    layers: list[TrackedLayer]
    findings: list[Finding]
    files: list[dict[str, Any]]

    @property
    def median_alpha(self) -> float:
        """Median of alpha over the layers; NaN if none has one."""
        return median([row.alpha for row in self.layers if math.isfinite(row.alpha)] or [math.nan])

    @property
    def imbalance(self) -> float:
        """Standard deviation of alpha over the layers."""
        return imbalance([row.alpha for row in self.layers])

    @property
    def median_stable_rank(self) -> float:
        """Median of the stable rank over the layers."""
        return median([row.stable_rank for row in self.layers if math.isfinite(row.stable_rank)] or [math.nan])


@dataclass(frozen=True, kw_only=True)
class Track:
    """Alpha, stable rank and drift of every layer over the checkpoints of a training run.

    Attributes:
        settings: Estimator, windows, selection, device and versions.
        checkpoints: The checkpoints, by step.
        skipped: Checkpoints that could not be read, each with the reason.
        findings: What to look at first, the most severe first.
    """

    settings: Mapping[str, Any]
    checkpoints: list[TrackedCheckpoint]
    skipped: list[Skipped] = field(default_factory=list[Skipped])
    findings: list[Finding] = field(default_factory=list[Finding])

    def __repr__(self) -> str:
        """Return the first and last checkpoint, and the numbers of checkpoints and findings."""
        ends = " to ".join(dict.fromkeys(each.name for each in (*self.checkpoints[:1], *self.checkpoints[-1:])))
        return f"Track({ends}, {len(self)} checkpoints, {len(self.findings)} findings)"

    def __len__(self) -> int:
        """Return the number of checkpoints."""
        return len(self.checkpoints)

    @property
    def steps(self) -> list[int]:
        """The training steps, or the positions 1, 2, ... if a step is not known."""
        steps = [checkpoint.step for checkpoint in self.checkpoints]
        known = [step for step in steps if step is not None]
        return known if len(known) == len(steps) else list(range(1, len(steps) + 1))

    @property
    def drift(self) -> list[float]:
        """``||W - W0|| / ||W0||`` at each checkpoint, over all weights that are compared with the first."""
        norms = {row.name: row.norm for row in self.checkpoints[0].layers}
        result = []
        for checkpoint in self.checkpoints:
            rows = [(row.drift, norms[row.name]) for row in checkpoint.layers if math.isfinite(row.drift)]
            total = math.hypot(*(norm for _, norm in rows))
            result.append(math.hypot(*(drift * norm for drift, norm in rows)) / total if total else math.nan)
        return result

    def to_pandas(self) -> pd.DataFrame:
        """Return one row per layer and checkpoint: ``checkpoint``, ``step``, and the fields of ``TrackedLayer``."""
        import pandas as pd  # slow to import

        rows = []
        for checkpoint in self.checkpoints:
            for layer in checkpoint.layers:
                row = {"checkpoint": checkpoint.name, "step": checkpoint.step} | asdict(layer)
                row["status"] = layer.status and layer.status.value
                rows.append({k: encodable(v) if isinstance(v, str) else v for k, v in row.items()})
        return pd.DataFrame(rows, columns=["checkpoint", "step", *(f.name for f in fields(TrackedLayer))])

    def plot(self) -> Figure:
        """Draw alpha, drift and stable rank of each layer over the checkpoints.

        Returns:
            A plotly figure.

        Raises:
            MissingExtraError: plotly is not installed.

        Example:
            >>> import tempbalance as tb, torch
            >>> weight = torch.randn(64, 64)
            >>> run = tb.track([{"fc.weight": weight}, {"fc.weight": 1.1 * weight}], progress=False)
            >>> [trace.yaxis for trace in run.plot().data]  # it has no alpha: it is random
            ['y2', 'y3']
        """
        return RENDERERS["plot"]("track_figure", self)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values; NaN stays."""
        return {
            "schema": _SCHEMA,
            "settings": dict(self.settings),
            "checkpoints": [asdict(checkpoint) for checkpoint in self.checkpoints],
            "skipped": [row._asdict() for row in self.skipped],
            "findings": [asdict(finding) for finding in self.findings],
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file atomically; its ending determines the format.

        Args:
            path: ``.json`` contains everything, can be loaded again, and lets the next run use what is in it;
                ``.csv`` contains the table; ``.html`` is a report for a browser, in one file.

        Raises:
            AnalysisError: The ending is none of these, or the file cannot be written.
        """
        save_report(self, path, "render_track")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Track:
        """Load a result from a file that ``save("x.json")`` wrote.

        Args:
            path: A JSON file.

        Returns:
            The result, equal to the one saved.

        Raises:
            AnalysisError: The file is missing, contains no such result, or was written by a newer version.
        """
        saved = read_saved(path, _SavedTrack, "a tracked run", AnalysisError, newest=_SCHEMA)
        return cls(
            settings=saved.settings,
            checkpoints=[checkpoint.restored() for checkpoint in saved.checkpoints],
            skipped=[Skipped(row.name, row.reason) for row in saved.skipped],
            findings=saved.findings,
        )


class TrackResume(ResumeFile):
    """Finished checkpoints of a run that was interrupted, beside its output; also those of an earlier output.

    Use it as a context manager, and write the results inside the block: ``OUTPUT.partial`` is kept after an error or an
    interrupt, and removed otherwise.

    Args:
        output: The path of the result, ``.json`` or any other.

    Raises:
        AnalysisError: ``OUTPUT.partial`` exists and is not such a file.
    """

    def __init__(self, output: str | os.PathLike[str]) -> None:
        self._output = as_path("output", output)
        super().__init__(self._output.with_name(f"{self._output.name}.partial"))

    @property
    def path(self) -> Path:
        """The file of finished checkpoints."""
        return self._path

    def start(self, source: object, settings: Any, *, reuse: bool = True) -> None:
        """Find the finished checkpoints of a run with the same first checkpoint and settings, if they may be reused."""
        super().start(source, settings, reuse=reuse)
        is_result = self._output.suffix.lower() == ".json" and self._output.is_file()
        if not (reuse and is_result and isinstance(source, Checkpoint)):
            return
        try:
            earlier = Track.load(self._output)
        except AnalysisError:  # any other file, which the result replaces
            return
        same_first = earlier.checkpoints[0].files == identities(source)
        if same_first and dumps(earlier.settings) == dumps(settings):
            self.rows = {row.name: row for row in earlier.checkpoints} | self.rows

    def _decoded(self, line: Any) -> TrackedCheckpoint:
        return msgspec.convert(line, _SavedCheckpoint).restored()

    def _encoded(self, row: Any) -> dict[str, Any]:
        return asdict(row)


class _SavedLayer(msgspec.Struct):
    name: str
    kind: str
    block: str | None
    status: Status | None
    alpha: float | None
    stderr: float | None
    stable_rank: float | None
    norm: float | None
    drift: float | None
    identical: bool | None

    def restored(self) -> TrackedLayer:
        """Return the layer, with NaN for missing numbers."""
        values = msgspec.structs.asdict(self)
        return TrackedLayer(**values | {name: math.nan for name in _FLOATS if values[name] is None})


class _SavedCheckpoint(msgspec.Struct):
    name: str
    source: str
    step: int | None
    digest: str
    layers: list[_SavedLayer]
    findings: list[Finding]
    files: list[dict[str, Any]]

    def restored(self) -> TrackedCheckpoint:
        """Return the checkpoint."""
        values = msgspec.structs.asdict(self)
        return TrackedCheckpoint(**values | {"layers": [layer.restored() for layer in self.layers]})


class _SavedTrack(msgspec.Struct):
    schema: int
    settings: Settings
    checkpoints: Annotated[list[_SavedCheckpoint], msgspec.Meta(min_length=1)]
    skipped: list[SavedSkipped]
    findings: list[Finding]
