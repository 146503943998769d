"""Compare the alpha of each layer with those of the layers like it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist, median
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tempbalance.types import LayerStats, Status

__all__ = ["LEVEL", "Difference", "compare_similar", "holm"]

LEVEL = 0.025  # largest p of an outlier: 3 to 5 % of models of equal layers have one (benchmarks/outliers.json)

_FEWEST = 5  # similar layers
_CLEAN = 2.5  # deviations from the median of its group, from which on a layer is no reference
_TRIMMED = 0.1  # fraction of the layers that is left out of the spread
_EFFICIENCY = 0.7  # of the trimmed spread, relative to the standard deviation
_SIGNIFICANT = 2.33  # quantile of the normal law at 99 %
_NUMBER = re.compile(r"(?<![^.])\d+(?![^.:])")
_NORMAL = NormalDist()
_Array: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The difference between a layer and the layers like it.

    Attributes:
        layer: The layer.
        alpha: Its exponent. If the estimator searches the threshold of each layer, that of a tail with the same share
            of the spectrum in all of them.
        reference: The exponent of the others.
        deviation: ``alpha`` minus ``reference`` in standard errors of the difference; if the layers differ from each
            other by more than their errors, in units of that spread.
        p: Probability that any layer of the model is that far off by chance (Holm).
        others: Number of layers that it was compared with.
        in_common: What they have in common.
        spread: Spread of all layers around their references, in standard errors; 1 unless it is significantly more.
    """

    layer: LayerStats
    alpha: float
    reference: float
    deviation: float
    p: float = 1.0
    others: int
    in_common: str
    spread: float = 1.0


def compare_similar(layers: Sequence[LayerStats], *, windows: bool = False) -> list[Difference]:
    """Compare each layer with at least four others of its kind, role and shape, or else of its kind and shape.

    For a Pareto sample ``k / (alpha - 1)`` has a gamma distribution, so ``(alpha - 1)^(-1/3)`` is normal with the
    relative error ``stderr / (alpha - 1) / 3`` (Wilson and Hilferty 1931), also for tails of few eigenvalues. The
    reference is the weighted mean of the others without those that are far from the median of all.

    If the layers of the model differ from their references by significantly more than their errors (at 1 %, without the
    most deviating tenth of them), deviations are divided by this spread and referred to Student's t.

    Args:
        layers: The rows of an analysis.
        windows: Whether they are spectra of FARMS windows: then alphas of different shapes can be compared.

    Returns:
        A row for each layer with an alpha that has four others like it, in the order of the model.

    Example:
        >>> import tempbalance as tb
        >>> spectra = [tb.testing.pareto_sample(100, alpha=3.0, seed=i) for i in range(12)]
        >>> weights = [tb.testing.matrix_with_spectrum(spectrum, (100, 100)) for spectrum in spectra]
        >>> found = compare_similar(tb.analyze({f"h.{i}.fc.weight": weight for i, weight in enumerate(weights)}).layers)
        >>> len(found), min(row.p for row in found) > LEVEL
        (12, True)
    """
    levels: dict[str, Callable[[LayerStats], Any]] = {
        "kind, role and shape": lambda row: (row.kind, _name_in_block(row), row.shape),
        "kind and shape": lambda row: (row.kind, sorted(row.shape[:2]), row.shape[2:]),
    }
    if windows:
        levels |= {"kind and role": lambda row: (row.kind, _name_in_block(row)), "kind": lambda row: row.kind}
    fitted = [row for row in layers if row.status is Status.OK and row.alpha > 1 and 0 < row.stderr < math.inf]
    found: dict[str, Difference] = {}
    for in_common, key in levels.items():
        groups: dict[str, list[LayerStats]] = {}
        for row in fitted:
            groups.setdefault(str(key(row)), []).append(row)
        for group in groups.values():
            if len(group) >= _FEWEST and not all(row.name in found for row in group):
                found = {row.layer.name: row for row in _compare(group, in_common)} | found
    return _with_probabilities([found[row.name] for row in fitted if row.name in found])


def _name_in_block(layer: LayerStats) -> str:
    """Return the name of a layer in its block, or its whole name, with a star for each number."""
    name = layer.name if layer.block is None else layer.name.removeprefix(f"{layer.block}.")
    return _NUMBER.sub("*", name)


def _compare(group: Sequence[LayerStats], in_common: str) -> list[Difference]:
    """Compare the layers of a group with each other."""
    alphas, relative = _of_common_tails(group)
    values, errors = (alphas - 1) ** (-1 / 3), relative / 3
    middle = float(np.median(values))
    distances = np.abs(values - middle)
    clean = distances <= _CLEAN * np.maximum(errors * middle, float(np.median(distances)) / _NORMAL.inv_cdf(0.75))
    weights = clean / errors**2
    others = weights.sum() - weights
    references = ((weights * values).sum() - weights * values) / others
    deviations = (references - values) / references / np.sqrt(errors**2 + 1 / others)
    return [
        Difference(
            layer=row,
            alpha=float(alpha),
            reference=float(1 + reference**-3),
            deviation=float(deviation),
            others=len(group) - 1,
            in_common=in_common,
        )
        for row, alpha, reference, deviation in zip(group, alphas, references, deviations, strict=True)
    ]


def _of_common_tails(group: Sequence[LayerStats]) -> tuple[_Array, _Array]:
    """Return alphas and their relative errors, all of the same share of the spectrum.

    A search (KS, Peak) jumps from one threshold to another: the alphas of such tails differ by more than their errors.
    """
    shares = [row.num_tail / row.matrix_rank for row in group]
    common = median(shares)
    alphas = [(row.alpha, row.stderr / (row.alpha - 1)) for row in group]
    if any(abs(row.num_tail - common * row.matrix_rank) > 1 for row in group):
        alphas = [_hill(row, common) or pair for row, pair in zip(group, alphas, strict=True)]
    values = np.asarray(alphas, dtype=np.float64)
    return values[:, 0], values[:, 1]


def _hill(row: LayerStats, share: float) -> tuple[float, float] | None:
    """Return Hill's alpha of a share of a thinned spectrum, and its relative error; None if there is no such tail."""
    count = max(1, min(round(share * row.matrix_rank), row.matrix_rank - 1))
    if not row.esd.ranks or row.esd.ranks[0] <= count:
        return None
    logs = np.interp(np.arange(1, count + 2), row.esd.ranks[::-1], np.log(row.esd.eigenvalues[::-1]))
    total = float((logs[:count] - logs[count]).sum())
    error = row.stderr / (row.alpha - 1) * math.sqrt(row.num_tail / count)
    return (1 + count / total, error) if total > 0 else None


def _with_probabilities(rows: Sequence[Difference]) -> list[Difference]:
    if not rows:
        return []
    spread, probabilities = 1.0, holm([_two_sided(row.deviation) for row in rows])
    if _differ(rows, probabilities):
        spread, freedom = _spread(rows), _EFFICIENCY * len(rows)
        probabilities = holm([_two_sided(_normal_of_t(row.deviation / spread, freedom)) for row in rows])
    return [
        replace(row, deviation=row.deviation / spread, p=p, spread=spread)
        for row, p in zip(rows, probabilities, strict=True)
    ]


def _differ(rows: Sequence[Difference], probabilities: Sequence[float]) -> bool:
    """Return whether the layers, without the outliers among the largest tenth, differ by more than their errors."""
    ordered = sorted(zip(rows, probabilities, strict=True), key=lambda pair: abs(pair[0].deviation))
    kept = len(rows) - _trimmed(rows)
    squares = [row.deviation**2 for i, (row, p) in enumerate(ordered) if i < kept or p > LEVEL]
    return math.sqrt(math.fsum(squares) / len(squares)) > 1 + _SIGNIFICANT / math.sqrt(2 * len(squares))


def _spread(rows: Sequence[Difference]) -> float:
    """Return the standard deviation of a normal law, from the deviations without the largest tenth."""
    sizes = sorted(abs(row.deviation) for row in rows)[: -_trimmed(rows)]
    part = len(sizes) / len(rows)
    cut = _NORMAL.inv_cdf((1 + part) / 2)
    expected = 1 - 2 * cut * _NORMAL.pdf(cut) / part  # mean square of a normal variable between -cut and cut
    return math.sqrt(math.fsum(size**2 for size in sizes) / len(sizes) / expected)


def _trimmed(rows: Sequence[Difference]) -> int:
    return math.ceil(_TRIMMED * len(rows))


def _two_sided(z: float) -> float:
    return math.erfc(abs(z) / math.sqrt(2))


def _normal_of_t(t: float, freedom: float) -> float:
    """Return the normal quantile with the probability of a quantile of Student's t (Wallace 1959, to 0.02)."""
    return (8 * freedom + 1) / (8 * freedom + 3) * math.sqrt(freedom * math.log1p(t * t / freedom))


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for multiple comparisons (Holm 1979).

    Args:
        p_values: One per comparison.

    Returns:
        The corrected p-values, in the same order.

    Example:
        >>> holm([0.01, 0.5, 0.03])
        [0.03, 0.5, 0.06]
    """
    corrected = [1.0] * len(p_values)
    largest = 0.0
    for place, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[i]))
        corrected[i] = largest
    return corrected
