"""What an analysis found: rows, summaries, files."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from tempbalance.errors import AnalysisError, MissingExtraError
from tempbalance.metrics import imbalance
from tempbalance.report.protocol import RefreshRow
from tempbalance.types import ESD, LayerStats, Skipped, Status

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Analysis", "Comparison", "LayerDelta", "compare", "row_from_json", "row_to_json"]

SCHEMA = 1
_FLOATS = {f.name for f in fields(LayerStats) if f.type == "float"}


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """The spectra of a model in numbers: one row per weight matrix, in model order.

    Attributes:
        source: Where the weights came from: a path, a hub id, or the class of a live model.
        settings: Everything that shaped the numbers: estimator, selection, device, versions.
        layers: One row per analysed weight matrix.
        skipped: Weights that were not analysed, each with the reason.

    Example:
        >>> import tempbalance as tb, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1))
        >>> analysis = tb.analyze(model)
        >>> [(layer.name, layer.status.value) for layer in analysis.layers]
        [('0.weight', 'random'), ('2.weight', 'too_few')]
    """

    source: str
    settings: Mapping[str, Any]
    layers: list[LayerStats]
    skipped: list[Skipped] = field(default_factory=list[Skipped])

    @property
    def imbalance(self) -> float:
        """Standard deviation of alpha over the layers (Model Balancing, section 4.4); NaN if none has an alpha."""
        return imbalance([layer.alpha for layer in self.layers])

    @property
    def block_imbalance(self) -> float:
        """Standard deviation, over the transformer blocks, of a block's mean alpha; NaN if there are no blocks."""
        blocks: dict[str, list[float]] = {}
        for layer in self.layers:
            if layer.block is not None and math.isfinite(layer.alpha):
                blocks.setdefault(layer.block, []).append(layer.alpha)
        return imbalance([fmean(alphas) for alphas in blocks.values()])

    def to_pandas(self) -> pd.DataFrame:
        """One row per layer, one column per field of ``LayerStats`` but ``esd``; ``status`` as a string.

        Returns:
            The table; where a layer has no alpha, floats are NaN.
        """
        import pandas as pd  # loading it costs more than importing tempbalance may

        names = [f.name for f in fields(LayerStats) if f.name != "esd"]
        rows = [{name: getattr(layer, name) for name in names} for layer in self.layers]
        frame = pd.DataFrame(rows, columns=names)
        frame["status"] = [layer.status.value for layer in self.layers]
        return frame

    def save(self, path: str | os.PathLike[str], *, history: Sequence[RefreshRow] = ()) -> None:
        """Write a file, whole or not at all; its ending says which kind.

        Args:
            path: ``.json`` holds everything and can be loaded again; ``.csv`` and ``.parquet`` the table; ``.html`` a
                report for a browser, in one file.
            history: ``balancer.history``, to be drawn in the report; for ``.html`` only.

        Raises:
            AnalysisError: The ending is none of these, or has no place for a history; or the file cannot be written.
            MissingExtraError: The format needs a package that is not installed.
        """
        suffix = Path(path).suffix.lower()
        writer = _WRITERS.get(suffix)
        if writer is None:
            raise AnalysisError(f"cannot save to {path}: the ending must be one of {', '.join(_WRITERS)}")
        if history and suffix != ".html":
            raise AnalysisError(f"cannot save a history to {path}: only an .html report has a place for it")
        write_whole(path, _html(self, history) if history else writer(self))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Analysis:
        """Read what ``save("x.json")`` wrote.

        Args:
            path: A JSON file.

        Returns:
            The analysis, equal to the one saved.

        Raises:
            AnalysisError: The file is missing, is no analysis, or was written by a newer version.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise AnalysisError(f"cannot read an analysis from {path}: {error}") from error
        try:
            if data["schema"] > SCHEMA:
                raise AnalysisError(f"{path} was written by a newer tempbalance (schema {data['schema']}): upgrade")
            return cls(
                source=data["source"],
                settings=data["settings"],
                layers=[row_from_json(row) for row in data["layers"]],
                skipped=[Skipped(row["name"], row["reason"]) for row in data["skipped"]],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise AnalysisError(f"{path} is not an analysis saved by tempbalance ({error!r})") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerDelta:
    """How one layer's alpha changed.

    Attributes:
        name: Qualified parameter name.
        block: Its transformer block, or None.
        alpha_before: Alpha before; NaN where there was no fit.
        alpha_after: Alpha after.
        delta: ``alpha_after - alpha_before``.
        stderr: Standard error of ``delta`` if the two fits were independent; for two states of one layer, which share
            most of their spectrum, an upper bound.
        z: ``delta / stderr``.
    """

    name: str
    block: str | None
    alpha_before: float
    alpha_after: float
    delta: float
    stderr: float
    z: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two analyses, layer by layer.

    Attributes:
        before: Source of the first analysis.
        after: Source of the second.
        settings: Settings of the second.
        layers: One row per layer that both have, in model order.
        only_before: Layers of the first alone.
        only_after: Layers of the second alone.
        imbalance_before: Standard deviation of alpha over all layers, before.
        imbalance_after: The same, after.
    """

    before: str
    after: str
    settings: Mapping[str, Any]
    layers: list[LayerDelta]
    only_before: list[str]
    only_after: list[str]
    imbalance_before: float
    imbalance_after: float

    def to_pandas(self) -> pd.DataFrame:
        """One row per common layer, one column per field of ``LayerDelta``.

        Returns:
            The table.
        """
        import pandas as pd  # loading it costs more than importing tempbalance may

        return pd.DataFrame([asdict(row) for row in self.layers], columns=[f.name for f in fields(LayerDelta)])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file, whole or not at all.

        Args:
            path: Ends in ``.json`` or ``.csv``.

        Raises:
            AnalysisError: Another ending, or the file cannot be written.
        """
        suffix = Path(path).suffix.lower()
        if suffix == ".json":
            write_whole(path, _dumps({"schema": SCHEMA, **asdict(self)}))
        elif suffix == ".csv":
            write_whole(path, _csv(self.to_pandas()))
        else:
            raise AnalysisError(f"cannot save to {path}: the ending must be .json or .csv")


def compare(before: Analysis, after: Analysis) -> Comparison:
    """Compare two analyses layer by layer, as before and after fine-tuning.

    Args:
        before: The first.
        after: The second, measured with the same estimator.

    Returns:
        The changes of alpha, in units of their standard error too.

    Raises:
        AnalysisError: The estimators or the windows differ, or no layer is in both.

    Example:
        >>> import tempbalance as tb, torch
        >>> model = torch.nn.Linear(64, 64, bias=False)
        >>> weight = tb.testing.matrix_with_spectrum(tb.testing.pareto_quantiles(64, alpha=3.0), (64, 64), seed=0)
        >>> _ = model.load_state_dict({"weight": weight})
        >>> analysis = tb.analyze(model)
        >>> tb.compare(analysis, analysis).layers[0].delta
        0.0
    """
    estimators = before.settings.get("estimator"), after.settings.get("estimator")
    if estimators[0] != estimators[1]:
        raise AnalysisError(f"alphas of different estimators cannot be compared: {estimators[0]} and {estimators[1]}")
    windows = before.settings.get("windows"), after.settings.get("windows")
    if windows[0] != windows[1]:
        raise AnalysisError(f"alphas of different windows cannot be compared: {windows[0]} and {windows[1]}")
    first = {layer.name: layer for layer in before.layers}
    second = {layer.name: layer for layer in after.layers}
    common = [name for name in first if name in second]
    if not common:
        raise AnalysisError(
            f"no layer is in both: {next(iter(first), None)!r}, ... and {next(iter(second), None)!r}, ..."
        )
    return Comparison(
        before=before.source,
        after=after.source,
        settings=after.settings,
        layers=[_delta(first[name], second[name]) for name in common],
        only_before=[name for name in first if name not in second],
        only_after=[name for name in second if name not in first],
        imbalance_before=before.imbalance,
        imbalance_after=after.imbalance,
    )


def _delta(before: LayerStats, after: LayerStats) -> LayerDelta:
    delta, stderr = after.alpha - before.alpha, math.hypot(before.stderr, after.stderr)
    return LayerDelta(
        name=after.name,
        block=after.block,
        alpha_before=before.alpha,
        alpha_after=after.alpha,
        delta=delta,
        stderr=stderr,
        z=delta / stderr if stderr > 0 else math.nan,
    )


def row_to_json(layer: LayerStats) -> dict[str, Any]:
    """A row as JSON knows it: NaN becomes null.

    Args:
        layer: The row.

    Returns:
        Plain lists, strings and numbers.
    """
    row = {f.name: getattr(layer, f.name) for f in fields(layer)}
    return row | {"status": layer.status.value, "esd": layer.esd._asdict()}


def row_from_json(row: Mapping[str, Any]) -> LayerStats:
    """The inverse of ``row_to_json``; fields that this version does not know are ignored.

    Args:
        row: One element of ``layers`` of a saved analysis.

    Returns:
        The row.
    """
    values: dict[str, Any] = {}
    for name, default in ((f.name, f.default) for f in fields(LayerStats)):
        value = row[name] if default is MISSING else row.get(name, default)  # files of older versions lack some
        values[name] = math.nan if name in _FLOATS and value is None else value
    values["shape"] = tuple(row["shape"])
    values["status"] = Status(row["status"])
    values["esd"] = ESD(tuple(row["esd"]["eigenvalues"]), tuple(row["esd"]["ranks"]))
    return LayerStats(**values)


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(inner) for inner in value]
    return value


def dumps(value: Any) -> str:
    """JSON text of plain values, with null for NaN and Inf, which JSON does not have.

    Args:
        value: Mappings, sequences, strings, numbers.

    Returns:
        One line.
    """
    return json.dumps(_without_nan(value), allow_nan=False)


def _json(analysis: Analysis) -> bytes:
    return _dumps(
        {
            "schema": SCHEMA,
            "source": analysis.source,
            "settings": dict(analysis.settings),
            "imbalance": analysis.imbalance,
            "block_imbalance": analysis.block_imbalance,
            "layers": [row_to_json(layer) for layer in analysis.layers],
            "skipped": [row._asdict() for row in analysis.skipped],
        }
    )


def _dumps(value: Any) -> bytes:
    return (dumps(value) + "\n").encode()


def _csv(frame: pd.DataFrame) -> bytes:
    text: str = frame.to_csv(index=False)
    return text.encode()


def _parquet(analysis: Analysis) -> bytes:
    frame = analysis.to_pandas()
    frame["shape"] = [list(shape) for shape in frame["shape"]]
    try:
        content: bytes = frame.to_parquet(index=False)
    except ImportError as error:
        raise MissingExtraError("parquet needs pyarrow: pip install 'tempbalance[parquet]'") from error
    return content


def _html(analysis: Analysis, history: Sequence[RefreshRow] = ()) -> bytes:
    from tempbalance.report.html import render_html

    return render_html(analysis, history).encode()


_WRITERS: dict[str, Callable[[Analysis], bytes]] = {
    ".json": _json,
    ".csv": lambda analysis: _csv(analysis.to_pandas()),
    ".parquet": _parquet,
    ".html": _html,
}


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file so that a reader, or a crash, never meets half of it.

    Args:
        path: Its folder must exist.
        content: All of it.

    Raises:
        AnalysisError: The file cannot be written.
    """
    target = Path(path)
    try:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(name, 0o666 & ~mask)  # mkstemp makes files private
            os.replace(name, target)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise AnalysisError(f"cannot write {target}: {error.strerror or error}") from error
