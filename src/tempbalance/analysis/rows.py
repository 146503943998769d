"""Rows of an analysis: from fits, to JSON and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, replace
from typing import Any, TypeAlias

from tempbalance.errors import TempBalanceError
from tempbalance.layers import Weight
from tempbalance.metrics import thin
from tempbalance.tail.estimator import failed
from tempbalance.types import ESD, LayerStats, Skipped, Status
from tempbalance.weight_fit import WeightFit

__all__ = ["Row", "layer_from_json", "make_row", "row_from_json", "row_to_json"]

Row: TypeAlias = LayerStats | Skipped

_FLOATS = {f.name for f in fields(LayerStats) if f.type == "float"}


def make_row(weight: Weight, found: WeightFit | TempBalanceError) -> Row:
    """Return the row of a weight: its metrics, without alpha if it looks untrained, or the reason why it is skipped."""
    if isinstance(found, TempBalanceError):
        return Skipped(weight.name, str(found))
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


def row_to_json(row: Row) -> dict[str, Any]:
    """Return a row as plain lists, strings and numbers; NaN becomes null when it is written."""
    if isinstance(row, Skipped):
        return row._asdict()
    values = {f.name: getattr(row, f.name) for f in fields(row)}
    return values | {"status": row.status.value, "esd": row.esd._asdict()}


def row_from_json(row: Mapping[str, Any]) -> Row:
    """Return the row that ``row_to_json`` wrote."""
    return Skipped(row["name"], row["reason"]) if "reason" in row else layer_from_json(row)


def layer_from_json(row: Mapping[str, Any]) -> LayerStats:
    """Return the layer that ``row_to_json`` wrote, also in an older version; unknown fields are ignored."""
    values: dict[str, Any] = {}
    for name, default in ((f.name, f.default) for f in fields(LayerStats)):
        value = row[name] if default is MISSING else row.get(name, default)  # files of older versions lack some
        values[name] = math.nan if name in _FLOATS and value is None else value
    values["shape"] = tuple(row["shape"])
    values["status"] = Status(row["status"])
    values["esd"] = ESD(tuple(row["esd"]["eigenvalues"]), tuple(row["esd"]["ranks"]))
    return LayerStats(**values)
