import dataclasses
import functools
import math

import pytest
import torch

import tempbalance as tb
from tempbalance.analysis.deviations import LEVEL, compare_similar, holm
from tempbalance.metrics import thin

SIDE, BLOCKS = 64, 12
SHAPES = {"attn.q": (SIDE, SIDE), "mlp.up": (3 * SIDE, SIDE)}


@functools.cache
def example():
    """A row, to be copied with other numbers."""
    weight = tb.testing.matrix_with_spectrum(tb.testing.pareto_quantiles(SIDE, 3.0), (SIDE, SIDE))
    return tb.analyze({"h.0.fc.weight": weight}).layers[0]


def models(count, estimator, planted=None):
    """Analyses of models whose layers have samples of one power law; the third layer may have a given spectrum."""
    generator = torch.Generator().manual_seed(1)
    places = [(block, role) for block in range(BLOCKS) for role in SHAPES]
    for seed in range(count):
        uniform = 1 - torch.rand(len(places), SIDE, generator=generator, dtype=torch.float64)
        spectra = (uniform**-0.5).sort(dim=1).values  # alpha = 3
        if planted is not None:
            spectra[2] = planted[seed % len(planted)]
        rows = [
            dataclasses.replace(
                example(),
                name=f"h.{block}.{role}.weight",
                block=f"h.{block}",
                shape=SHAPES[role],
                esd=thin(spectrum),
                **dataclasses.asdict(fit),
            )
            for (block, role), spectrum, fit in zip(places, spectra, estimator.fit_batch(spectra), strict=True)
        ]
        yield tb.Analysis(source="", settings={"estimator": repr(estimator)}, layers=rows)


def outliers(analysis):
    return [finding.layers[0] for finding in analysis.findings if finding.kind == "outlier"]


@pytest.mark.parametrize("estimator", [tb.Hill(), tb.KS()])
def test_at_most_5_percent_of_200_models_with_equal_alphas_have_an_outlier(estimator):
    assert sum(bool(outliers(analysis)) for analysis in models(200, estimator)) <= 10


def test_a_layer_that_is_fitted_4_standard_errors_off_is_found_in_95_percent_of_200_models():
    # In the scale of its standard error, 1 / sqrt(tail) of alpha - 1. Sampling noise of its own layer: see
    # benchmarks/outliers.py.
    alphas = [1 + 2 * (1 - errors / math.sqrt(SIDE // 2) / 3) ** -3 for errors in (-4, 4)]
    planted = [tb.testing.pareto_quantiles(SIDE, alpha) for alpha in alphas]
    hits = sum("h.1.attn.q.weight" in outliers(analysis) for analysis in models(200, tb.Hill(), planted))
    assert hits >= 190


def rows_like(alphas, role="fc", **fields):
    return [
        dataclasses.replace(
            example(), name=f"h.{i}.{role}.weight", block=f"h.{i}", alpha=a, stderr=(a - 1) / math.sqrt(32), **fields
        )
        for i, a in enumerate(alphas)
    ]


def test_layers_that_differ_by_more_than_their_errors_are_compared_with_their_spread():
    alphas = [2.0 + 0.5 * (i % 7) for i in range(28)]
    rows = compare_similar(rows_like(alphas))
    assert rows[0].spread > 1.4
    assert min(row.p for row in rows) > LEVEL
    planted = compare_similar(rows_like([*alphas, 1.1]))
    assert planted[-1].p <= LEVEL
    assert min(row.p for row in planted[:-1]) > LEVEL


def test_the_reference_is_the_other_layers_without_outliers():
    rows = compare_similar(rows_like([3.0] * 6 + [30.0, 40.0]))
    assert rows[0].reference == pytest.approx(3.0)
    assert rows[-1].reference == pytest.approx(3.0)
    assert (rows[0].others, rows[0].in_common) == (7, "kind, role and shape")


def test_layers_of_a_rare_role_are_compared_with_those_of_their_shape():
    rows = compare_similar([*rows_like([3.0] * 6), *rows_like([3.2, 3.1], role="out")])
    assert [row.in_common for row in rows] == ["kind, role and shape"] * 6 + ["kind and shape"] * 2
    assert rows[-1].others == 7


def test_layers_of_different_shapes_are_compared_with_windows_only():
    rows = rows_like([3.0] * 4) + rows_like([3.0] * 4, role="out", shape=(256, 64))
    assert compare_similar(rows) == []
    assert [row.in_common for row in compare_similar(rows, windows=True)] == ["kind"] * 8


def test_tails_of_searched_thresholds_are_compared_at_one_share():
    rows = rows_like([3.0] * 8)
    jumped = dataclasses.replace(rows[0], alpha=9.0, stderr=8 / math.sqrt(9), num_tail=9)
    compared = compare_similar([jumped, *rows[1:]])
    assert compared[0].alpha == pytest.approx(rows[0].alpha, rel=0.03)
    assert min(row.p for row in compared) > LEVEL


def test_holm_multiplies_the_smallest_probability_by_the_number_of_tests():
    assert holm([]) == []
    assert holm([0.5, 0.001, 0.9]) == pytest.approx([1.0, 0.003, 1.0])
