"""Findings about the layers of two models that were matched, and those that could not be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tempbalance.analysis.change_findings import comma_names, make_finding
from tempbalance.analysis.layer_delta import LayerDelta
from tempbalance.analysis.matching import Matching
from tempbalance.types import Finding, Severity

__all__ = ["RENAME", "match_findings", "rounded_findings"]

RENAME = "give the names that differ with rename={'old.': 'new.'} (--rename old.=new.)"
_FUSED = (
    "the configuration of one model tells how fused weights are split: give the folder or the model for the other, "
    "too, or split none, with select=Select(split=False) (--no-split)"
)
_FEW = 0.5  # with a smaller share of matched layers, the models are probably not of one family


def match_findings(
    matching: Matching,
    rows: Sequence[LayerDelta],
    only_before: Sequence[str],
    only_after: Sequence[str],
    reasons: Mapping[str, str],
) -> list[Finding]:
    """Return how layers were matched, which have no partner, another shape, or cannot be compared.

    ``reasons`` says, by name, why layers cannot be compared; they are not among ``only_before`` and ``only_after``.
    """
    found = []
    if matching.affix is not None:
        model = "second" if matching.affix.of_after else "first"
        found.append(make_finding("renamed", f"layers were matched without the {matching.affix} of the {model} model"))
    if only_before or only_after:
        few = len(rows) < _FEW * max(len(rows) + len(only_before), len(rows) + len(only_after))
        both = [{name.partition(":")[0] for name in names} for names in (only_before, only_after)]
        step = _FUSED if both[0] & both[1] else RENAME if only_before and only_after else ""
        sides = [("first", only_before), ("second", only_after)]
        parts = [f"{len(names)} only in the {side} model ({comma_names(names)})" for side, names in sides if names]
        found.append(
            make_finding(
                "not_matched",
                f"{len(rows)} layers are in both models, {' and '.join(parts)}",
                next_step=step,
                severity=Severity.WARNING if few else Severity.NOTE,
                layers=[*only_before, *only_after],
                only_before=len(only_before),
                only_after=len(only_after),
            )
        )
    for row in rows:
        if row.shape != row.shape_before:
            shapes = " to ".join("x".join(map(str, shape)) for shape in (row.shape_before, row.shape))
            message = f"{row.name} changed its shape from {shapes}: its weights are not compared"
            found.append(make_finding("reshaped", message, layers=[row.name]))
    by_reason: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        by_reason.setdefault(reason, []).append(name)
    for reason, names in by_reason.items():
        message = f"{comma_names(names)} cannot be compared: {reason}"
        found.append(make_finding("not_compared", message, severity=Severity.WARNING, layers=names))
    return found


def rounded_findings(formats: Mapping[str, tuple[str, str]]) -> list[Finding]:
    """Return one finding for each pair of different formats, given the formats of each layer in both models.

    The format of a layer that is not quantised is empty.
    """
    different: dict[tuple[str, str], list[str]] = {}
    for name, pair in formats.items():
        if pair[0] != pair[1]:
            different.setdefault(pair, []).append(name)
    found = []
    for (before, after), names in different.items():
        if before and after:
            how = f"quantised in different formats ({before} and {after})"
        else:
            how = f"quantised in the {'first' if before else 'second'} model only ({before or after})"
        found.append(
            make_finding(
                "quantised",
                f"{len(names)} of {len(formats)} layers are {how}: changes of weights and of alpha include the "
                f"rounding, in {comma_names(names)}",
                next_step="compare models of one format; in MiniLM, rounding to 8 bits moves alpha by 0.1 %, to 4 bits "
                "by 0.2 to 0.5 % (medians; docs/reference/sources.md)",
                severity=Severity.WARNING,
                layers=names,
                before=before,
                after=after,
            )
        )
    return found
