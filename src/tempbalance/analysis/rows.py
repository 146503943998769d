"""Rows of an analysis as JSON, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from tempbalance.types import ESD, LayerStats, Status

__all__ = ["row_from_json", "row_to_json"]

_FLOATS = {f.name for f in fields(LayerStats) if f.type == "float"}


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
