"""Findings about the changes between two states of a model: what moved, what did not, and whether alpha did."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import NormalDist

from tempbalance.analysis.deviations import holm
from tempbalance.analysis.layer_delta import LayerDelta
from tempbalance.types import Finding, Severity

__all__ = ["alpha_findings", "block_changes", "comma_names", "make_finding", "weight_findings"]

_LEVEL = 0.05  # probability of a false alarm over all layers
_SHOWN = 3
_SPARSE = 0.01  # fraction of zeros that is no chance
_REPLACED = 1.0  # relative change of a weight that has little of what it was


def comma_names(names: Sequence[str]) -> str:
    """Return the first names of a list, and how many more there are."""
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def make_finding(
    kind: str,
    message: str,
    *,
    next_step: str = "",
    severity: Severity = Severity.NOTE,
    layers: Iterable[str] = (),
    **evidence: float | int | str | None,
) -> Finding:
    """Return a finding, by default a note about the whole model."""
    return Finding(
        kind=kind, severity=severity, layers=tuple(layers), message=message, next_step=next_step, evidence=evidence
    )


def block_changes(rows: Sequence[LayerDelta]) -> dict[str, float]:
    """Return ``||dW|| / ||W||`` of each block, over its weight matrices, in model order.

    A layer outside of blocks is a block of its own. Layers whose weights were not compared are left out.
    """
    sums: dict[str, tuple[float, float]] = {}
    for row in rows:
        if math.isfinite(row.relative_change) and math.isfinite(row.norm_before):
            key = row.block or row.name
            moved, norm = sums.get(key, (0.0, 0.0))
            sums[key] = math.hypot(moved, row.relative_change * row.norm_before), math.hypot(norm, row.norm_before)
    return {key: moved / norm if norm else 0.0 for key, (moved, norm) in sums.items()}


def weight_findings(rows: Sequence[LayerDelta]) -> list[Finding]:
    """Return what the weights tell: identical, rounded and replaced layers, zeros, and the blocks that moved most.

    Nothing is said of layers whose weights were not compared.
    """
    known = [row for row in rows if row.identical is not None]
    found = []
    replaced = [row for row in known if row.relative_change >= _REPLACED and not row.identical]
    if replaced:
        names, largest = [row.name for row in replaced], max(row.relative_change for row in replaced)
        found.append(
            make_finding(
                "replaced",
                f"{comma_names(names)} changed by at least the norm of the weight (up to {largest:.0%}), as a layer "
                "that was initialised again does",
                next_step="check that these layers were loaded from the first model, and their learning rate",
                severity=Severity.WARNING,
                layers=names,
                relative_change=largest,
            )
        )
    blocks = block_changes(known)
    order = sorted(blocks, key=lambda name: -blocks[name])
    most = [name for name in order[:_SHOWN] if blocks[name] > 0]
    if len(order) > 1 and most:
        moved = ", ".join(f"{name} ({blocks[name]:.2%})" for name in most)
        found.append(
            make_finding(
                "moved_most",
                f"moved most, as ||dW|| / ||W||: {moved}; least: {order[-1]} ({blocks[order[-1]]:.2%})",
                layers=[row.name for row in known if (row.block or row.name) in most],
                largest=blocks[most[0]],
                smallest=blocks[order[-1]],
            )
        )
    return [*found, *_sparsity(known), *_identical(known), *_rounded(known)]


def _sparsity(rows: Sequence[LayerDelta]) -> list[Finding]:
    """Return the fraction of exact zeros of both models, without embeddings, if one of them has some."""
    rows = [row for row in rows if row.kind != "embedding"]
    sizes = [math.prod(row.shape) for row in rows]
    before, after = (
        math.fsum(getattr(row, f"sparsity_{when}") * size for row, size in zip(rows, sizes, strict=True))
        / max(1, sum(sizes))
        for when in ("before", "after")
    )
    if not max(before, after) >= _SPARSE:
        return []
    lost = after < before - _SPARSE
    return [
        make_finding(
            "sparsity",
            f"{before:.1%} of the weights of the first model and {after:.1%} of those of the second are exactly zero",
            next_step="if they were pruned, train with tempbalance recover or with masks, which keep the zeros"
            if lost
            else "",
            before=before,
            after=after,
        )
    ]


def _identical(rows: Sequence[LayerDelta]) -> list[Finding]:
    same = [row for row in rows if row.identical and row.relative_change == 0]
    if not same:
        return []
    every = len(same) == len(rows)
    if every:
        message = f"all {len(rows)} weight matrices are identical"
        step = "check that this is the model you trained; biases, norms and other vectors are not compared"
    else:
        message = f"{len(same)} of {len(rows)} weight matrices are identical: {comma_names(_whole_blocks(same, rows))}"
        step = "if they were to be trained, check requires_grad and the parameters of the optimizer"
    return [
        make_finding(
            "identical",
            message,
            next_step=step,
            severity=Severity.WARNING if every else Severity.NOTE,
            layers=[row.name for row in same],
            identical=len(same),
            compared=len(rows),
        )
    ]


def _whole_blocks(same: Sequence[LayerDelta], rows: Sequence[LayerDelta]) -> list[str]:
    """Return names for some of the rows: that of a block for all of its rows, then those of the other rows."""
    names = {row.name for row in same}
    parts = {None, *(row.block for row in rows if row.name not in names)}
    blocks = [row.block for row in same if row.block is not None and row.block not in parts]
    return [*dict.fromkeys(blocks), *(row.name for row in same if row.block in parts)]


def _rounded(rows: Sequence[LayerDelta]) -> list[Finding]:
    names = [row.name for row in rows if row.identical and row.relative_change > 0]
    if not names:
        return []
    return [
        make_finding(
            "rounded",
            f"{len(names)} of {len(rows)} weight matrices differ only by the rounding of the narrower dtype: "
            f"{comma_names(names)}",
            next_step="compare checkpoints of one dtype to see smaller changes",
            layers=names,
        )
    ]


def alpha_findings(rows: Sequence[LayerDelta]) -> list[Finding]:
    """Return whether alpha changed, by Holm's test over the layers at a level of 5 %; empty if no layer can be tested.

    The standard error of a change holds for independent fits; two states of one layer have most of their spectrum in
    common, so that the test finds too few changes rather than too many. Identical layers, and those without alphas or
    of another shape, are not tested.
    """
    tested = [row for row in rows if math.isfinite(row.z) and not row.identical]
    if not tested:
        return []
    order = sorted(tested, key=lambda row: -abs(row.z))
    corrected = holm([math.erfc(abs(row.z) / math.sqrt(2)) for row in order])
    moved = [row for row, p in zip(order, corrected, strict=True) if p <= _LEVEL]
    first, names = order[0], [row.name for row in moved]
    needed = NormalDist().inv_cdf(1 - _LEVEL / (2 * len(tested)))
    largest = f"the largest change is {first.delta:+.3f} ({abs(first.z):.1f} standard errors, in {first.name})"
    count = f"{len(tested)} layers" if len(tested) > 1 else "1 layer"
    if moved:
        smaller = sum(row.delta < 0 for row in moved)
        message = (
            f"alpha changed in {len(moved)} of {count}, in {smaller} of them to a heavier tail: {comma_names(names)}; "
            f"{largest}"
        )
        step = "look at these layers first: the tails of their spectra changed"
    else:
        message = (
            f"alpha did not change in any of {count}: {largest}; {needed:.1f} are needed at {_LEVEL:.0%}, corrected "
            "for the number of layers"
        )
        step = "judge the change by ||dW|| / ||W|| and by accuracy on held-out data; alpha does not show it"
    return [
        make_finding(
            "alpha_moved" if moved else "alpha_unchanged",
            message,
            next_step=step,
            layers=names,
            tested=len(tested),
            moved=len(moved),
            largest_z=first.z,
            largest_change=first.delta,
            needed_z=needed,
        )
    ]
