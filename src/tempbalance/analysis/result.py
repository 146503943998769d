"""The result of an analysis, and its files."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tempbalance._files import RENDERERS, dumps, write_atomically
from tempbalance._saved import SavedSize, Settings, read_saved
from tempbalance._text import csv_bytes, encodable
from tempbalance.analysis.findings import find_in_layers
from tempbalance.analysis.rows import SavedLayer, SavedSkipped, restored_layer, row_to_json
from tempbalance.errors import AnalysisError, require_extra
from tempbalance.metrics import imbalance, mean_alpha
from tempbalance.types import Finding, LayerStats, ModelSize, Skipped

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["SCHEMA", "Analysis"]

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """The metrics of a model: one row per weight matrix, in model order.

    Attributes:
        source: The analysed source: a path, a hub id, or the class of a live model.
        settings: Estimator, windows, selection, device and versions.
        layers: One row per analysed weight matrix.
        skipped: Weights that were not analysed, each with the reason.
        size: Number of parameters of the model; None in files of older versions.

    Example:
        >>> import tempbalance as tb, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1))
        >>> analysis = tb.analyze(model)
        >>> [(layer.name, layer.status.value) for layer in analysis.layers]
        [('0.weight', 'random'), ('2.weight', 'too_few')]
        >>> [(finding.kind, finding.layers) for finding in analysis.findings]
        [('untrained', ('0.weight',))]
    """

    source: str
    settings: Mapping[str, Any]
    layers: list[LayerStats]
    skipped: list[Skipped] = field(default_factory=list[Skipped])
    size: ModelSize | None = None

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What is wrong with which layers, how sure that is and what to do, the most severe first; empty if nothing is.

        Computed from the rows, also of a loaded analysis. docs/how-to/checkpoint-health.md lists the kinds.
        """
        return find_in_layers(self.layers, self.skipped, self.size, self.settings)

    @property
    def covered(self) -> int:
        """Number of parameters of the model that the rows hold."""
        return sum(math.prod(layer.shape) for layer in self.layers)

    @property
    def imbalance(self) -> float:
        """Standard deviation of alpha over the layers (Model Balancing, section 4.4); NaN if none has an alpha."""
        return imbalance([layer.alpha for layer in self.layers])

    @property
    def block_imbalance(self) -> float:
        """Standard deviation, over the transformer blocks, of a block's mean alpha; NaN if there are no blocks."""
        blocks: dict[str, list[tuple[float, float]]] = {}
        for layer in self.layers:
            if layer.block is not None:
                blocks.setdefault(layer.block, []).append((layer.alpha, layer.stderr))
        return imbalance([mean_alpha(layers)[0] for layers in blocks.values()])

    def to_pandas(self) -> pd.DataFrame:
        """Return a table with one row per layer and one column per field of ``LayerStats`` but ``esd``.

        Returns:
            The table; ``status`` is a string, and a missing alpha is NaN.
        """
        import pandas as pd  # slow to import

        names = [f.name for f in fields(LayerStats) if f.name != "esd"]
        rows = [{name: getattr(layer, name) for name in names} for layer in self.layers]
        for row in rows:  # pandas takes no unpaired surrogate
            row |= {key: encodable(value) for key, value in row.items() if isinstance(value, str)}
        frame = pd.DataFrame(rows, columns=names)
        frame["status"] = [layer.status.value for layer in self.layers]
        return frame

    def to_weightwatcher(self) -> pd.DataFrame:
        """Return the table of WeightWatcher 0.7.7: its columns, their order and its definitions.

        ``D``, ``sigma`` and ``num_pl_spikes`` are our ``ks_distance``, ``stderr`` and ``num_tail``; ``log_norm`` and
        ``log_spectral_norm`` are of the squared norms; kernels of 2-D convolutions are scaled by ``sqrt(1/2)``.
        ``sv_min`` and ``weak_rank_loss`` are missing, ``layer_id`` counts the rows, and a layer without a fit has NaN
        and its status, not -1. See docs/how-to/weightwatcher.md.

        Returns:
            The table, one row per layer.

        Raises:
            AnalysisError: The analysis is not by ``KS`` (or ``Peak``), or has windows.

        Example:
            >>> import tempbalance as tb, torch
            >>> analysis = tb.analyze(torch.nn.Sequential(torch.nn.Linear(64, 32)), estimator=tb.KS())
            >>> analysis.to_weightwatcher()[["layer_type", "N", "M", "Q", "num_evals"]].astype(str).iloc[0].tolist()
            ['dense', '64', '32', '2.0', '32']
        """
        from tempbalance.analysis.weightwatcher import weightwatcher_table

        return weightwatcher_table(self.layers, str(self.settings.get("estimator")))

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``save("x.json")`` as dicts, lists, strings and numbers; a missing number is NaN."""
        return {
            "schema": SCHEMA,
            "source": self.source,
            "settings": dict(self.settings),
            "imbalance": self.imbalance,
            "block_imbalance": self.block_imbalance,
            **({"size": self.size._asdict()} if self.size else {}),
            "findings": [asdict(finding) for finding in self.findings],
            "layers": [row_to_json(layer) for layer in self.layers],
            "skipped": [row_to_json(row) for row in self.skipped],
        }

    def save(self, path: str | os.PathLike[str], *, history: Sequence[Any] = ()) -> None:
        """Write a file atomically; its ending determines the format.

        Args:
            path: ``.json`` contains everything and can be loaded again; ``.csv`` and ``.parquet`` contain the table;
                ``.html`` is a report for a browser, in one file.
            history: ``balancer.history``, to be plotted in the report; for ``.html`` only.

        Raises:
            AnalysisError: The ending is none of these, a history is given for another format, or the file cannot be
                written.
            MissingExtraError: The format needs a package that is not installed.
        """
        suffix = Path(path).suffix.lower()
        writer = _WRITERS.get(suffix)
        if writer is None:
            raise AnalysisError(f"cannot save to {path}: the ending must be one of {', '.join(_WRITERS)}")
        if history and suffix != ".html":
            raise AnalysisError(f"cannot save a history to {path}: only an .html report can contain it")
        write_atomically(path, _html(self, history) if history else writer(self))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Analysis:
        """Load an analysis from a file that ``save("x.json")`` wrote, in this version or an older one.

        Args:
            path: A JSON file.

        Returns:
            The analysis, equal to the one saved.

        Raises:
            AnalysisError: The file is missing, contains no analysis, or was written by a newer version.
        """
        saved = read_saved(path, _SavedAnalysis, "an analysis", AnalysisError, newest=SCHEMA)
        try:
            return saved.restored()
        except ValueError as error:
            raise AnalysisError(f"{path} is not an analysis saved by tempbalance: {error}") from error


class _SavedAnalysis(msgspec.Struct):
    schema: int
    source: str
    settings: Settings
    layers: list[SavedLayer]  # type: ignore[valid-type]  # made from the fields of LayerStats
    skipped: list[SavedSkipped]
    size: SavedSize | None = None

    def restored(self) -> Analysis:
        """Return the analysis, after checks between fields."""
        layers = [restored_layer(layer) for layer in self.layers]
        if len({layer.name for layer in layers}) != len(layers):
            raise ValueError("two layers have the same name")
        return Analysis(
            source=self.source,
            settings=self.settings,
            layers=layers,
            skipped=[Skipped(row.name, row.reason) for row in self.skipped],
            size=self.size.restored() if self.size else None,
        )


def _json(analysis: Analysis) -> bytes:
    return (dumps(analysis.to_dict()) + "\n").encode()


def _csv(analysis: Analysis) -> bytes:
    return csv_bytes(analysis.to_pandas())


def _parquet(analysis: Analysis) -> bytes:
    frame = analysis.to_pandas()
    frame["shape"] = [list(shape) for shape in frame["shape"]]
    with require_extra("parquet", "parquet needs pyarrow"):
        content: bytes = frame.to_parquet(index=False)
    return content


def _html(analysis: Analysis, history: Sequence[Any] = ()) -> bytes:
    return RENDERERS[".html"](analysis, history).encode()


_WRITERS: dict[str, Callable[[Analysis], bytes]] = {".json": _json, ".csv": _csv, ".parquet": _parquet, ".html": _html}
