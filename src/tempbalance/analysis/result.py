"""The result of an analysis, and its files."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

import msgspec

from tempbalance._files import RENDERERS, as_path, dumps, write_atomically
from tempbalance._saved import SavedSize, Settings, read_saved
from tempbalance._text import csv_bytes, encodable
from tempbalance.analysis.findings import find_in_layers
from tempbalance.analysis.rows import SavedLayer, SavedSkipped, restored_layer, row_to_json
from tempbalance.errors import AnalysisError, UnknownLayerError, check_type, require_extra
from tempbalance.metrics import imbalance, mean_alpha
from tempbalance.types import Finding, LayerStats, ModelSize, Severity, Skipped, Status

if TYPE_CHECKING:
    import pandas as pd
    from plotly.graph_objects import Figure

__all__ = ["SCHEMA", "Analysis", "save_report"]

SCHEMA = 1
_MEANS = ("alpha_hat", "log10_alpha_norm", "log10_frobenius_norm", "log10_spectral_norm", "stable_rank")


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
        >>> analysis["2"].shape, len(analysis)
        ((1, 64), 2)
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
            The table; ``status`` is a string, and a missing alpha is NaN. ``num_traps`` and ``delta_erg`` are in it if
            the analysis was with ``traps``.
        """
        import pandas as pd  # slow to import

        left_out = {"esd"} if self.settings.get("traps") else {"esd", "num_traps", "delta_erg"}
        names = [f.name for f in fields(LayerStats) if f.name not in left_out]
        rows = [{name: getattr(layer, name) for name in names} for layer in self.layers]
        for row in rows:  # pandas takes no unpaired surrogate
            row |= {key: encodable(value) for key, value in row.items() if isinstance(value, str)}
        frame = pd.DataFrame(rows, columns=names)
        frame["status"] = [layer.status.value for layer in self.layers]
        return frame if "num_traps" in left_out else frame.astype({"num_traps": "Int64"})

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
        suffix = as_path("path", path).suffix.lower()
        writer = _WRITERS.get(suffix)
        if writer is None:
            raise AnalysisError(f"cannot save to {path}: the ending must be one of {', '.join(_WRITERS)}")
        check_type("history", history, Sequence)
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

    # In Python and in notebooks

    def __repr__(self) -> str:
        """Return the source, the number of layers, their median alpha, and the number of findings."""
        alphas = [layer.alpha for layer in self.layers if math.isfinite(layer.alpha)]
        alpha = f"median alpha {median(alphas):.2f}" if alphas else "none with an alpha"
        count = len(self.findings)
        return f"Analysis({self.source}, {len(self)} layers, {alpha}, {count} finding{'' if count == 1 else 's'})"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the findings, the summary and the first rows."""
        return str(RENDERERS["view_analysis"](self))

    def __len__(self) -> int:
        """Return the number of layers."""
        return len(self.layers)

    def __iter__(self) -> Iterator[LayerStats]:
        """Iterate over the layers, in model order."""
        return iter(self.layers)

    def __contains__(self, layer: object) -> bool:
        """Return whether there is a layer of this name, or this layer."""
        return any(layer in (row.name, row.name.removesuffix(".weight")) or layer is row for row in self.layers)

    def __getitem__(self, layer: str | int) -> LayerStats:
        """Return a layer by its name, with or without ``.weight``, or by its number.

        Raises:
            UnknownLayerError: There is no such layer.
        """
        names = [row.name for row in self.layers]
        if isinstance(layer, str):
            for name in (layer, f"{layer}.weight"):
                if name in names:
                    return self.layers[names.index(name)]
            reasons = [row.reason for row in self.skipped if row.name in (layer, f"{layer}.weight")]
            if reasons:
                raise UnknownLayerError(f"no layer {layer!r} was analysed: {reasons[0]}")
            close = difflib.get_close_matches(layer, names, n=3)
            hint = f"; did you mean {', '.join(close)}?" if close else ""
            raise UnknownLayerError(f"no layer {layer!r} was analysed{hint}")
        try:
            return self.layers[layer]
        except IndexError:
            raise UnknownLayerError(f"there is no layer {layer}: {len(names)} were analysed") from None

    def summary(self) -> dict[str, float | int | None]:
        """Return the numbers that are quoted of a model: counts, and means over the layers that have the value.

        Returns:
            ``layers``, ``with_alpha``, ``untrained``, ``skipped``; ``parameters`` of the model (None if unknown) and
            ``covered`` by the rows; ``alpha_mean``, ``alpha_median``, ``alpha_min``, ``alpha_max``; ``imbalance`` and
            ``block_imbalance``; the means of ``alpha_hat`` (WeightWatcher's ``alpha_weighted``), ``log10_alpha_norm``,
            ``log10_frobenius_norm``, ``log10_spectral_norm`` and ``stable_rank``, NaN without any layer; and the number
            of findings of each severity: ``error``, ``warning``, ``note``.

        Example:
            >>> import tempbalance as tb
            >>> from tempbalance.testing import matrix_with_spectrum, pareto_quantiles
            >>> spectra = [pareto_quantiles(64, alpha) for alpha in (2.0, 3.0, 4.0)]
            >>> weights = {f"{i}.weight": matrix_with_spectrum(each, (64, 64)) for i, each in enumerate(spectra)}
            >>> summary = tb.analyze(weights).summary()
            >>> summary["layers"], summary["untrained"], round(summary["alpha_median"], 1)
            (3, 0, 3.0)
        """
        alphas = [layer.alpha for layer in self.layers if math.isfinite(layer.alpha)]

        severities = [finding.severity for finding in self.findings]

        def mean(name: str) -> float:
            values = [value for layer in self.layers if math.isfinite(value := getattr(layer, name))]
            return fmean(values) if values else math.nan

        return {
            "layers": len(self.layers),
            "with_alpha": len(alphas),
            "untrained": sum(layer.status is Status.RANDOM for layer in self.layers),
            "skipped": len(self.skipped),
            "parameters": self.size.parameters if self.size else None,
            "covered": self.covered,
            "alpha_mean": mean("alpha"),
            "alpha_median": median(alphas) if alphas else math.nan,
            "alpha_min": min(alphas, default=math.nan),
            "alpha_max": max(alphas, default=math.nan),
            "imbalance": self.imbalance,
            "block_imbalance": self.block_imbalance,
            **{name: mean(name) for name in _MEANS},
            **{each.value: severities.count(each) for each in Severity},
        }

    def plot(self) -> Figure:
        """Draw the alpha of every layer, with its standard error, against depth.

        Returns:
            A plotly figure.

        Raises:
            MissingExtraError: plotly is not installed.

        Example:
            >>> import tempbalance as tb, torch
            >>> tb.analyze({"0.weight": torch.randn(64, 64)}).plot().layout.yaxis.title.text
            'alpha (smaller: heavier tail)'
        """
        return RENDERERS["plot"]("alpha_figure", self)

    def plot_esd(self, layer: str | int) -> Figure:
        """Draw the spectrum of a layer: fraction of eigenvalues as large or larger, with the fitted tail.

        The figure has ``xmin``, where the tail starts, the bulk of the Marchenko-Pastur law, and the spectrum of a
        random matrix of the same shape and variance. Both axes are logarithmic: a power law is a straight line.

        Args:
            layer: Its name, with or without ``.weight``, or its number.

        Returns:
            A plotly figure.

        Raises:
            UnknownLayerError: There is no such layer.
            MissingExtraError: plotly is not installed.

        Example:
            >>> import tempbalance as tb, torch
            >>> figure = tb.analyze({"fc.weight": torch.randn(64, 64)}).plot_esd("fc")
            >>> [trace.name for trace in figure.data]
            ['eigenvalues', 'random matrix of this shape and variance']
        """
        return RENDERERS["plot"]("esd_figure", self[layer])


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


def _parquet(analysis: Analysis) -> bytes:
    frame = analysis.to_pandas()
    frame["shape"] = [list(shape) for shape in frame["shape"]]
    with require_extra("parquet", "parquet needs pyarrow"):
        content: bytes = frame.to_parquet(index=False)
    return content


def _html(analysis: Analysis, history: Sequence[Any] = ()) -> bytes:
    page: str = RENDERERS["render_analysis"](analysis, history)
    return page.encode()


_WRITERS: dict[str, Callable[[Analysis], bytes]] = {
    ".json": lambda analysis: (dumps(analysis.to_dict()) + "\n").encode(),
    ".csv": lambda analysis: csv_bytes(analysis.to_pandas()),
    ".parquet": _parquet,
    ".html": _html,
}


def save_report(result: Any, path: str | os.PathLike[str], renderer: str) -> None:
    """Write a result as JSON, its table as CSV, or its report as HTML, by the ending of the path."""
    suffix = as_path("path", path).suffix.lower()
    if suffix == ".json":
        write_atomically(path, (dumps(result.to_dict()) + "\n").encode())
    elif suffix == ".csv":
        write_atomically(path, csv_bytes(result.to_pandas()))
    elif suffix == ".html":
        write_atomically(path, RENDERERS[renderer](result).encode())
    else:
        raise AnalysisError(f"cannot save to {path}: the ending must be .json, .csv or .html")
