"""Findings of an analysis: what is wrong with which layers, how sure that is, and what to do."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tempbalance.analysis.change_findings import comma_names, make_finding
from tempbalance.analysis.deviations import LEVEL, Difference, compare_similar, holm
from tempbalance.analysis.initial_values import exceeds_initial, initialisation
from tempbalance.layers.coverage import is_weight
from tempbalance.types import Finding, LayerStats, ModelSize, Severity, Skipped, Status

__all__ = ["KINDS", "find_in_layers"]

KINDS = (
    *("nan", "not_covered", "untrained", "constant", "collapsed", "duplicated", "outlier", "random", "poor_fit"),
    *("traps", "quantised"),
)

_SHOWN = 3  # groups in a message
_UNCOVERED = 0.1  # of the weights
_LEAST_DISTANCE = 0.1  # KS distances below it are small, however certain
_DOMINATED, _COLLAPSED = 0.5, 0.9  # share of one direction in the squared Frobenius norm
_SIDE = 10  # smaller matrices have few directions in any case
_VECTORS = re.compile(r"every kernel tap is a vector|depthwise convolution ")  # no checkpoint has a spectrum of these
_NAN = re.compile(r"\d+ of \d+ weights are NaN or Inf")
_ORDER = {severity: place for place, severity in enumerate(Severity)}


def find_in_layers(
    layers: Sequence[LayerStats], skipped: Sequence[Skipped], size: ModelSize | None, settings: Mapping[str, Any]
) -> tuple[Finding, ...]:
    """Return what is wrong in the rows of an analysis, the most severe findings first; see ``Analysis.findings``."""
    found = [
        *_nan(skipped),
        *_not_covered(layers, skipped, size),
        *_untrained(layers),
        *_constant(layers),
        *_collapsed(layers),
        *_duplicated(layers),
        *_outliers(layers, settings),
        *_random(layers),
        *_poor_fit(layers, settings),
        *_traps(layers),
        *_quantised(layers),
    ]
    return tuple(sorted(found, key=lambda finding: _ORDER[finding.severity]))


def _finding(
    kind: str, severity: Severity, rows: Iterable[LayerStats | Skipped], message: str, next_step: str, **evidence: Any
) -> Finding:
    """Return a finding about some layers; ``{layers}`` in the message stands for their names."""
    names = [row.name for row in rows]
    message = message.replace("{layers}", comma_names(names))
    return make_finding(kind, message, next_step=next_step, severity=severity, layers=names, **evidence)


def _nan(skipped: Sequence[Skipped]) -> Iterator[Finding]:
    rows = [row for row in skipped if _NAN.match(row.reason)]
    if rows:
        counts = [int(row.reason.split()[0]) for row in rows]
        yield _finding(
            "nan",
            Severity.ERROR,
            rows,
            f"{sum(counts):,} weights are NaN or Inf, in {{layers}}",
            "do not use this checkpoint: go back to the last one without them, and lower the learning rate or check "
            "the conversion",
            weights=sum(counts),
        )


def _not_covered(layers: Sequence[LayerStats], skipped: Sequence[Skipped], size: ModelSize | None) -> Iterator[Finding]:
    """Report weights that could not be analysed; those left out on purpose (embeddings, tied ones) do not count."""
    rows = [row for row in skipped if is_weight(row.reason) and not _NAN.match(row.reason)]
    covered = sum(math.prod(layer.shape) for layer in layers if layer.kind != "embedding")
    total = size.weights if size else 0
    share = 1 - covered / total if total else len(rows) / max(1, len(rows) + len(layers))
    if not layers and not rows:
        yield _finding(
            "not_covered",
            Severity.ERROR,
            skipped,
            "no weight matrix was analysed" + (f": {skipped[0].reason}, in {{layers}}" if skipped else ""),
            "check that this is the checkpoint of a model, and what --select, --exclude and --key leave",
        )
    if not rows or share <= _UNCOVERED or (layers and all(_VECTORS.match(row.reason) for row in rows)):
        return
    of = f"{total - covered:,} of {total:,} weights" if total else f"{len(rows)} of {len(rows) + len(layers)} matrices"
    reasons = Counter(row.reason for row in rows)
    why = "; ".join(f"{count}: {reason}" for reason, count in reasons.most_common(2))
    yield _finding(
        "not_covered",
        Severity.WARNING if layers else Severity.ERROR,
        rows,
        f"{of} ({share:.0%}) were not analysed, in {{layers}} ({why})",
        "the findings say nothing about them: analyse a checkpoint in which they can be read (see the reasons)",
        share=share,
        reasons=len(reasons),
    )


def _untrained(layers: Sequence[LayerStats]) -> Iterator[Finding]:
    rows = [row for row in layers if row.status is Status.RANDOM and not exceeds_initial(row)]
    if not rows:
        return
    names = f"all {len(rows)} layers" if len(rows) == len(layers) > 1 else f"{{layers}} ({len(rows)} of {len(layers)})"
    yield _finding(
        "untrained",
        Severity.WARNING,
        rows,
        f"{names} {'looks' if len(rows) == 1 else 'look'} untrained: the spectrum cannot be distinguished from that of "
        f"a random matrix (Marchenko-Pastur){_initial(rows)}",
        "load the weights that belong there, or train them; if the model does not use them, ignore this",
        of=len(layers),
        mp_ks_distance=max(row.mp_ks_distance for row in rows),
    )


def _initial(rows: Sequence[LayerStats]) -> str:
    """Say which of the layers have the size of initial values."""
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(initialisation(row), []).append(row.name)
    return "".join(
        f"; the weights{'' if len(names) == len(rows) else ' of ' + comma_names(names)} have the size of initial "
        f"ones ({name})"
        for name, names in found.items()
        if name
    )


def _random(layers: Sequence[LayerStats]) -> Iterator[Finding]:
    rows = [row for row in layers if row.status is Status.RANDOM and exceeds_initial(row)]
    if rows:
        yield _finding(
            "random",
            Severity.NOTE,
            rows,
            f"the spectrum of {{layers}} ({len(rows)} of {len(layers)}) cannot be distinguished from that of a random "
            "matrix, but the weights are larger than initial ones: trained, or random features",
            "there is no alpha: compare with an earlier checkpoint to see if it is trained",
        )


def _constant(layers: Sequence[LayerStats]) -> Iterator[Finding]:
    zero = [row for row in layers if row.status is Status.ZERO]
    if zero:
        yield _finding(
            "constant",
            Severity.WARNING,
            zero,
            "all weights of {layers} are zero",
            "check whether they were loaded; a layer or an adapter that starts at zero was not trained",
        )
    equal = [row for row in layers if row.status is Status.CONSTANT]
    if equal:
        yield _finding(
            "constant",
            Severity.WARNING,
            equal,
            "the eigenvalues of {layers} are all equal, as in an orthogonal or an identity matrix",
            "check whether they were trained: this is how orthogonal initialisation looks",
            lambda_max=max(row.lambda_max for row in equal),
        )


def _collapsed(layers: Sequence[LayerStats]) -> Iterator[Finding]:
    shares = [(row, 1 / row.stable_rank) for row in layers if _has_directions(row)]
    for severity, low, high in ((Severity.WARNING, _COLLAPSED, math.inf), (Severity.NOTE, _DOMINATED, _COLLAPSED)):
        rows = [(row, share) for row, share in shares if low < share <= high]
        if rows:
            worst, share = max(rows, key=lambda pair: pair[1])
            yield _finding(
                "collapsed",
                severity,
                [row for row, _ in rows],
                f"{{layers}} {'is' if len(rows) == 1 else 'are'} dominated by one direction: it has {share:.1%} of the "
                f"squared Frobenius norm (stable rank {worst.stable_rank:.2f} of at most {_directions(worst)})",
                "compare with an earlier checkpoint: if the share grows, the layer loses its other directions "
                "(lower learning rate, weight decay)",
                stable_rank=worst.stable_rank,
                share=share,
            )


def _directions(row: LayerStats) -> int:
    return row.num_eigenvalues // max(1, row.num_matrices * row.num_windows)


def _has_directions(row: LayerStats) -> bool:
    """Return whether a low stable rank means anything: not for small matrices, and for updates of low rank."""
    if row.status is Status.RANDOM or row.kind == "lora":
        return False
    return _directions(row) >= _SIDE and row.stable_rank > 0


def _duplicated(layers: Sequence[LayerStats]) -> Iterator[Finding]:
    """Report different layers with equal spectra; tied weights have one row only."""
    same: dict[tuple[Any, ...], list[LayerStats]] = {}
    for row in layers:
        values = row.esd.eigenvalues
        if len(values) >= _SIDE and values[0] != values[-1]:
            same.setdefault((row.num_eigenvalues, values), []).append(row)
    groups = [rows for rows in same.values() if len(rows) > 1]
    if groups:
        pairs = "; ".join(" and ".join(row.name for row in rows[:2]) for rows in groups[:_SHOWN])
        yield _finding(
            "duplicated",
            Severity.WARNING,
            [row for rows in groups for row in rows],
            f"{len(groups)} {'group' if len(groups) == 1 else 'groups'} of different layers have the same spectrum to "
            f"the last digit: {pairs}",
            "check whether one was copied over the other; layers that were copied on purpose (new experts, added "
            "depth) were not trained since",
            groups=len(groups),
        )


def _outliers(layers: Sequence[LayerStats], settings: Mapping[str, Any]) -> Iterator[Finding]:
    compared = compare_similar(layers, windows=settings.get("windows") is not None)
    for row in sorted((row for row in compared if row.p <= LEVEL), key=lambda row: -abs(row.deviation)):
        yield _outlier(row, len(compared))


def _outlier(row: Difference, compared: int) -> Finding:
    lighter = row.deviation > 0
    spread = f"times the spread of all layers ({row.spread:.1f} standard errors)"
    unit = "standard errors" if row.spread == 1 else spread
    searched = "" if row.alpha == row.layer.alpha else ", compared at tails of the same share"
    return _finding(
        "outlier",
        Severity.WARNING if lighter else Severity.NOTE,  # a heavier tail is usual in good models
        [row.layer],
        f"alpha {row.alpha:.2f} of {{layers}} is {abs(row.deviation):.1f} {unit} {'above' if lighter else 'below'} "
        f"{row.reference:.2f}, that of {row.others} other layers of the same {row.in_common}{searched} "
        f"(p = {row.p:.1g}, corrected for {compared} layers)",
        "a lighter tail: check whether it was trained like the others (frozen, new, or trained for a shorter time)"
        if lighter
        else "a heavier tail: check its largest weights, and whether it was trained longer or faster than the others",
        alpha=row.alpha,
        reference=row.reference,
        deviation=row.deviation,
        spread=row.spread,
        p=row.p,
        compared=compared,
        others=row.others,
        in_common=row.in_common,
    )


def _poor_fit(layers: Sequence[LayerStats], settings: Mapping[str, Any]) -> Iterator[Finding]:
    fitted = [row for row in layers if row.status is Status.OK]
    probabilities = holm([_chance_of_distance(row) for row in fitted])
    pairs = [
        (row, p)
        for row, p in zip(fitted, probabilities, strict=True)
        if p <= LEVEL and row.ks_distance >= _LEAST_DISTANCE
    ]
    if pairs:
        distances, worst = [row.ks_distance for row, _ in pairs], max(p for _, p in pairs)
        searched = "ks" in str(settings.get("estimator", "")).partition("(")[0].lower()
        yield _finding(
            "poor_fit",
            Severity.NOTE,
            [row for row, _ in pairs],
            f"{len(pairs)} of {len(fitted)} tails are no power law: KS distance {min(distances):.2f} to "
            f"{max(distances):.2f}, more than chance explains (p at most {worst:.1g}, corrected), in {{layers}}",
            "alpha is then a summary of the tail; compare stable ranks too"
            + ("" if searched else ", or let the fit search the tail (--estimator ks)"),
            of=len(fitted),
            ks_distance=max(distances),
            p=worst,
        )
    without = [row for row in layers if row.status is Status.NO_TAIL]
    if without:
        yield _finding(
            "poor_fit",
            Severity.NOTE,
            without,
            "no threshold gives a decaying tail in {layers}",
            "use another estimator (--estimator hill)",
            of=len(layers),
        )


def _traps(layers: Sequence[LayerStats]) -> Iterator[Finding]:
    rows = sorted((row for row in layers if row.num_traps), key=lambda row: -(row.num_traps or 0))
    if rows:
        counts = [row.num_traps or 0 for row in rows]
        yield _finding(
            "traps",
            Severity.NOTE,
            rows,
            f"{len(rows)} of {len(layers)} layers have correlation traps, at most {counts[0]}: large eigenvalues that "
            "a few huge entries cause, and not correlations, in {layers}",
            "look at their largest entries, and compare with an earlier checkpoint: more of them late in training are "
            "a sign of overfitting",
            of=len(layers),
            traps=sum(counts),
        )


def _quantised(layers: Sequence[LayerStats]) -> Iterator[Finding]:
    rows = [row for row in layers if row.quantisation]
    if rows:
        formats = Counter(row.quantisation for row in rows)
        shown = "; ".join(f"{count}: {label}" for label, count in formats.most_common())
        yield _finding(
            "quantised",
            Severity.NOTE,
            rows,
            f"{len(rows)} of {len(layers)} weights are quantised ({shown}): alpha is that of the rounded weights",
            "compare it with alphas of the same format; in MiniLM, rounding to 8 bits moves alpha by 0.1 %, to 4 "
            "bits by 0.2 to 0.5 % (medians; docs/reference/sources.md)",
            of=len(layers),
            formats=len(formats),
        )


def _chance_of_distance(row: LayerStats) -> float:
    """Return a bound on the probability of a KS distance as large (Dvoretzky, Kiefer, Wolfowitz; Massart 1990).

    It is for a known law; the distance from a fitted one is smaller, so that fewer fits are called poor.
    """
    points = float(row.num_tail)
    if row.stderr > 0:  # overlapping windows count less
        points = min(points, ((row.alpha - 1) / row.stderr) ** 2)
    return min(1.0, 2 * math.exp(-2 * points * row.ks_distance**2))
