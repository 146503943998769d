"""Rows of an analysis: from fits, to JSON and back."""

from __future__ import annotations

import math
from dataclasses import MISSING, asdict, fields, replace
from typing import Annotated, Any, TypeAlias

import msgspec

from tempbalance._saved import Count, Size
from tempbalance.errors import TempBalanceError
from tempbalance.layers import Weight
from tempbalance.metrics import thin
from tempbalance.tail.estimator import failed
from tempbalance.types import ESD, LayerStats, Skipped, Status
from tempbalance.weight_fit import WeightFit

__all__ = ["Row", "SavedLayer", "SavedSkipped", "make_row", "restored_layer", "row_from_json", "row_to_json"]

Row: TypeAlias = LayerStats | Skipped

_OPTIONAL = ("role", "quantisation", "transposed", "num_traps", "delta_erg")
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
        quantisation=weight.quantisation,
        transposed=weight.transposed,
        num_matrices=spectrum.num_matrices // found.num_windows,
        num_windows=found.num_windows,
        coverage=found.coverage,
        num_eigenvalues=len(spectrum.eigenvalues),
        num_traps=found.num_traps,
        delta_erg=math.nan if found.random else found.delta_erg,
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
    for name in _OPTIONAL:  # files of older versions have none, and are saved as they were
        if values[name] in ("", None) or values[name] is False or values[name] != values[name]:
            del values[name]
    return values | {"status": row.status.value, "esd": row.esd._asdict()}


class SavedSkipped(msgspec.Struct):
    """A skipped weight in a file."""

    name: str
    reason: str


class _SavedESD(msgspec.Struct):
    eigenvalues: tuple[Annotated[float, msgspec.Meta(gt=0)], ...]
    ranks: tuple[Size, ...]


# A layer in a file: a float may be missing (NaN, or a field that an older version lacks), counts are not negative.
_TYPES: dict[str, Any] = {
    **{f.name: {"float": float | None, "int": Count}.get(str(f.type)) for f in fields(LayerStats)},
    **dict.fromkeys(("name", "kind", "role", "quantisation"), str),
    "transposed": bool,
    "block": str | None,
    "status": Status,
    "esd": _SavedESD,
    "num_traps": Count | None,
    "shape": Annotated[tuple[Size, ...], msgspec.Meta(min_length=2)],
}
SavedLayer = msgspec.defstruct(
    "SavedLayer",
    [(f.name, _TYPES[f.name], msgspec.NODEFAULT if f.default is MISSING else f.default) for f in fields(LayerStats)],
    kw_only=True,
)


def row_from_json(row: Any) -> Row:
    """Return the row that ``row_to_json`` wrote, without unknown fields; a ValueError names a value that is wrong."""
    if isinstance(row, dict) and "reason" in row:
        skipped = msgspec.convert(row, SavedSkipped)
        return Skipped(skipped.name, skipped.reason)
    return restored_layer(msgspec.convert(row, SavedLayer))


def restored_layer(saved: Any) -> LayerStats:
    """Return the layer of a checked ``SavedLayer``; a ValueError if two values do not fit together."""
    values = {f.name: getattr(saved, f.name) for f in fields(LayerStats)}
    values |= {name: math.nan for name in _FLOATS if values[name] is None}
    if (saved.status is Status.OK) == math.isnan(values["alpha"]):
        raise ValueError(f"{saved.name} has alpha {values['alpha']:g} with status {saved.status.value}")
    if len(saved.esd.eigenvalues) != len(saved.esd.ranks):
        raise ValueError(f"the esd of {saved.name} has other numbers of eigenvalues and ranks")
    return LayerStats(**values | {"esd": ESD(saved.esd.eigenvalues, saved.esd.ranks)})
