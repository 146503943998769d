"""Findings about a training run: checkpoints with the same weights, and what changed from the first to the last."""

from __future__ import annotations

import math
from collections.abc import Iterator

from tempbalance.analysis.change_findings import alpha_findings, comma_names, make_finding, weight_findings
from tempbalance.analysis.layer_delta import LayerDelta
from tempbalance.analysis.track_result import Track, TrackedCheckpoint
from tempbalance.types import Finding, Severity

__all__ = ["track_findings"]


def track_findings(tracked: Track) -> list[Finding]:
    """Return what to look at first in the checkpoints of a run, the most severe findings first.

    Findings about changes are about the first and the last checkpoint.
    """
    found = [*_unreadable(tracked), *_of_checkpoints(tracked), *_same(tracked), *_rounded(tracked)]
    if len(tracked) > 1:
        first, last = tracked.checkpoints[0], tracked.checkpoints[-1]
        rows = changes(first, last)
        if not rows:
            message = f"{first.name} and {last.name} have no layer in common"
            found.append(make_finding("not_matched", message, severity=Severity.WARNING))
        found += [*weight_findings(rows), *alpha_findings(rows)]
    return sorted(found, key=lambda finding: [*Severity].index(finding.severity))


def changes(first: TrackedCheckpoint, last: TrackedCheckpoint) -> list[LayerDelta]:
    """Return the changes of the layers from one checkpoint, with which drifts are measured, to another."""
    before = {row.name: row for row in first.layers}
    rows = []
    for row in last.layers:
        old = before.get(row.name)
        if old is None or row.identical is None:
            continue
        delta, stderr = row.alpha - old.alpha, math.hypot(row.stderr, old.stderr)
        rows.append(
            LayerDelta(
                name=row.name,
                block=row.block,
                alpha_before=old.alpha,
                alpha_after=row.alpha,
                delta=delta,
                stderr=stderr,
                z=delta / stderr if stderr > 0 else math.nan,
                kind=row.kind,
                relative_change=row.drift,
                norm_before=old.norm,
                identical=row.identical,
            )
        )
    return rows


def _unreadable(tracked: Track) -> Iterator[Finding]:
    for name, reason in tracked.skipped:
        yield make_finding(
            "unreadable",
            f"{name} cannot be read: {reason}",
            next_step="copy it again, or leave it out",
            severity=Severity.ERROR,
        )


def _same(tracked: Track) -> Iterator[Finding]:
    """Yield the groups of checkpoints with the same weights."""
    groups: dict[str, list[str]] = {}
    for checkpoint in tracked.checkpoints:
        if checkpoint.digest:
            groups.setdefault(checkpoint.digest, []).append(checkpoint.name)
    for names in groups.values():
        if len(names) > 1:
            yield make_finding(
                "same_weights",
                f"{comma_names(names)} have the same weights",
                next_step="check that each was saved at its own step; what is measured between them is no training",
                severity=Severity.WARNING,
                checkpoints=", ".join(names),
            )


def _rounded(tracked: Track) -> Iterator[Finding]:
    """Yield that some checkpoints are quantised, or in other formats than others."""
    messages = {
        checkpoint.name: next((each.message for each in checkpoint.findings if each.kind == "quantised"), "")
        for checkpoint in tracked.checkpoints
    }
    if len(set(messages.values())) > 1:
        names = [name for name, message in messages.items() if message]
        yield make_finding(
            "quantised",
            f"{len(names)} of {len(tracked)} checkpoints are quantised, not all in one format ({comma_names(names)}): "
            "drift and changes of alpha include the rounding",
            next_step="track checkpoints of one format",
            severity=Severity.WARNING,
            checkpoints=len(names),
        )


def _of_checkpoints(tracked: Track) -> Iterator[Finding]:
    """Yield the warnings and errors of the analyses, each once, with the checkpoints that have it."""
    groups: dict[tuple[str, tuple[str, ...]], list[tuple[str, Finding]]] = {}
    for checkpoint in tracked.checkpoints:
        for finding in checkpoint.findings:
            if finding.severity is not Severity.NOTE:
                groups.setdefault((finding.kind, finding.layers), []).append((checkpoint.name, finding))
    for (kind, layers), found in groups.items():
        names = list(dict.fromkeys(name for name, _ in found))
        _, last = found[-1]
        span = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
        yield make_finding(
            kind,
            f"in {len(names)} of {len(tracked)} checkpoints ({span}): {last.message}",
            next_step=last.next_step,
            severity=last.severity,
            layers=layers,
            first=names[0],
            last=names[-1],
            checkpoints=len(names),
        )
