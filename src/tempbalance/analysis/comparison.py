"""Compare two analyses layer by layer."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tempbalance._files import dumps, write_atomically
from tempbalance._text import csv_bytes, encodable
from tempbalance.analysis.result import SCHEMA, Analysis
from tempbalance.errors import AnalysisError
from tempbalance.types import LayerStats

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Comparison", "LayerDelta", "compare"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerDelta:
    """The change of alpha of one layer.

    Attributes:
        name: Qualified parameter name.
        block: Its transformer block, or None.
        alpha_before: Alpha before; NaN without a fit.
        alpha_after: Alpha after.
        delta: ``alpha_after - alpha_before``.
        stderr: Standard error of ``delta`` for independent fits; an upper bound for two states of one layer, which have
            most of their spectrum in common.
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
    """The changes between two analyses, layer by layer.

    Attributes:
        before: Source of the first analysis.
        after: Source of the second analysis.
        settings: Settings of the second analysis.
        layers: One row per layer that is in both, in model order.
        only_before: Names of the layers that are only in the first.
        only_after: Names of the layers that are only in the second.
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
        """Return a table with one row per common layer and one column per field of ``LayerDelta``.

        Returns:
            The table.
        """
        import pandas as pd  # slow to import

        rows = [asdict(row) for row in self.layers]
        for row in rows:  # pandas takes no unpaired surrogate
            row |= {key: encodable(value) for key, value in row.items() if isinstance(value, str)}
        return pd.DataFrame(rows, columns=[f.name for f in fields(LayerDelta)])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file atomically.

        Args:
            path: A path that ends in ``.json`` or ``.csv``.

        Raises:
            AnalysisError: The path ends differently, or the file cannot be written.
        """
        suffix = Path(path).suffix.lower()
        if suffix == ".json":
            write_atomically(path, (dumps({"schema": SCHEMA, **asdict(self)}) + "\n").encode())
        elif suffix == ".csv":
            write_atomically(path, csv_bytes(self.to_pandas()))
        else:
            raise AnalysisError(f"cannot save to {path}: the ending must be .json or .csv")


def compare(before: Analysis, after: Analysis) -> Comparison:
    """Compare two analyses layer by layer, for example before and after fine-tuning.

    Args:
        before: The first analysis.
        after: The second analysis, measured with the same estimator.

    Returns:
        The changes of alpha, with their standard errors.

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
    for key in ("estimator", "windows"):
        one, other = before.settings.get(key), after.settings.get(key)
        if one != other:
            raise AnalysisError(f"alphas of different {key.rstrip('s')}s cannot be compared: {one} and {other}")
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
