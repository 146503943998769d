"""Measure the finding "outlier": false alarms among layers of equal alpha, and how far off a layer must be.

    python benchmarks/outliers.py [--models 200]

Every layer has a spectrum with alpha 3: a Pareto sample with random singular vectors ("sample"), or a Gaussian matrix
with Pareto column variances ("random matrix"). A false alarm is a model with at least one outlier. Then one layer of
each model of samples is replaced by one that is a number of standard errors off, ``1 / sqrt(tail)`` of ``alpha - 1``:
by a sample of that power law ("true"), or by its quantiles, whose fit is that far off ("fitted"). The result is
``outliers.json``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

import tempbalance as tb
from tempbalance.testing import matrix_with_spectrum, pareto_quantiles, pareto_sample

HERE = Path(__file__).parent
ALPHA = 3.0
# Blocks, and the shapes of the roles in each.
LAYOUTS = {
    24: (12, ((64, 64), (192, 64))),
    36: (6, (*((64, 64),) * 4, (256, 64), (64, 256))),
    84: (12, (*((64, 64),) * 4, (176, 64), (176, 64), (64, 176))),
}
ERRORS = (-6, -5, -4, -3, 3, 4, 5, 6)
PLANTED = "h.2.0.weight"


def layer(shape: tuple[int, int], seed: int, spectra: str) -> Tensor:
    """Return a weight whose spectrum has alpha 3."""
    if spectra == "sample":
        return matrix_with_spectrum(pareto_sample(min(shape), ALPHA, seed=seed), shape, seed=seed)
    gaussian = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    scales = pareto_quantiles(min(shape), ALPHA).sqrt()
    return gaussian * (scales if shape[1] <= shape[0] else scales[:, None])


def models(count: int, layers: int, spectra: str) -> Iterator[dict[str, Tensor]]:
    """Yield models whose layers have equal alphas."""
    blocks, shapes = LAYOUTS[layers]
    for seed in range(count):
        first = 10_000_000 * (spectra == "sample") + 1000 * seed
        yield {
            f"h.{block}.{role}.weight": layer(shape, first + block * len(shapes) + role, spectra)
            for block in range(blocks)
            for role, shape in enumerate(shapes)
        }


def outliers(analysis: tb.Analysis) -> set[str]:
    """Return the layers that are found."""
    return {finding.layers[0] for finding in analysis.findings if finding.kind == "outlier"}


def with_planted(analysis: tb.Analysis, spectrum: Tensor) -> tb.Analysis:
    """Return the analysis with another spectrum of one layer."""
    side = len(spectrum)
    row = tb.analyze({PLANTED: matrix_with_spectrum(spectrum, (side, side))}, progress=False).layers[0]
    rows = [dataclasses.replace(row, block=old.block) if old.name == PLANTED else old for old in analysis.layers]
    return dataclasses.replace(analysis, layers=rows)


def measure(layers: int, spectra: str, count: int) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """Return false alarms by estimator, and for samples the layers found by distance (with ``Hill``)."""
    side = LAYOUTS[layers][1][0][0]
    alphas = {errors: 1 + (ALPHA - 1) * (1 - errors / math.sqrt(side // 2) / 3) ** -3 for errors in ERRORS}
    alarms = dict.fromkeys(("hill", "ks"), 0)
    hits = {errors: {"true": 0, "fitted": 0} for errors in ERRORS if spectra == "sample"}
    for seed, weights in enumerate(models(count, layers, spectra)):
        for estimator in alarms:
            analysis = tb.analyze(weights, estimator=estimator, progress=False)
            alarms[estimator] += bool(outliers(analysis))
            for errors in hits if estimator == "hill" else ():
                sample, exact = pareto_sample(side, alphas[errors], seed=seed), pareto_quantiles(side, alphas[errors])
                hits[errors]["true"] += PLANTED in outliers(with_planted(analysis, sample))
                hits[errors]["fitted"] += PLANTED in outliers(with_planted(analysis, exact))
    common = {"layers": layers, "models": count}
    return (
        [common | {"spectra": spectra, "estimator": name, "with_outlier": n} for name, n in alarms.items()],
        [common | {"standard_errors": errors, **found} for errors, found in hits.items()],
    )


def main() -> None:
    """Write both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=int, default=200)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    alarms, found = [], []
    for layers in LAYOUTS:
        for spectra in ("sample", "random matrix"):
            more = measure(layers, spectra, arguments.models)
            print(*more[0], *more[1], sep="\n", flush=True)
            alarms += more[0]
            found += more[1]
    result = {
        "versions": {name: version(name) for name in ("tempbalance", "torch")},
        "false_alarms": alarms,
        "found": found,
    }
    (HERE / "outliers.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
