"""Correlation traps and the ERG threshold, against naive code, planted traps, and WeightWatcher 0.7.7 on MiniLM."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import torch

import tempbalance as tb
from tempbalance.errors import WindowError
from tempbalance.testing import matrix_with_spectrum, pareto_quantiles
from tempbalance.traps import count_traps, delta_erg

GOLDEN = json.loads((Path(__file__).parent / "golden" / "weightwatcher_traps.json").read_text())["results"]


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def naive_count(matrix, seed):
    """Johnstone 2001, section 1.2; the law's median by numerical integration."""
    entries = (matrix - matrix.mean()).astype(np.float64).flatten()
    np.random.default_rng(seed).shuffle(entries)
    values = np.linalg.svd(entries.reshape(matrix.shape), compute_uv=False) ** 2
    n, p = max(matrix.shape), min(matrix.shape)
    low, high = (math.sqrt(n) - math.sqrt(p)) ** 2, (math.sqrt(n) + math.sqrt(p)) ** 2

    def below(x):
        return scipy.integrate.quad(lambda y: math.sqrt((high - y) * (y - low)) / (2 * math.pi * p * y), low, x)[0]

    median = scipy.optimize.brentq(lambda x: below(x) - 0.5, low + 1e-9, high)
    a, b = math.sqrt(n - 1), math.sqrt(p)
    edge = (a + b) ** 2 + (1.5 * math.log(1000)) ** (2 / 3) * (a + b) * (1 / a + 1 / b) ** (1 / 3)
    return int((values > np.median(values) / median * edge).sum())


@pytest.mark.parametrize(("shape", "huge"), [((90, 70), 0), ((90, 70), 1), ((60, 200), 4)])
def test_planted_huge_entries_are_traps(shape, huge):
    weight = noise(*shape)
    for i in range(huge):
        weight[3 * i, 5 * i] = 60.0
    assert count_traps(weight[None]) == huge == naive_count(weight.numpy(), 0)


def test_heavy_tailed_entries_are_counted_as_by_naive_code():
    weight = torch.from_numpy(np.random.default_rng(0).standard_t(2.5, (80, 120)))
    assert count_traps(weight[None], seed=7) == naive_count(weight.numpy(), 7) > 0


def test_correlations_are_no_traps():
    """A spike of low rank, a heavy-tailed spectrum, and a mean: all vanish in the shuffled matrix."""
    low_rank = noise(100, 80) + 3 * noise(100, 2, seed=1) @ noise(2, 80, seed=2)
    heavy = matrix_with_spectrum(pareto_quantiles(80, 1.8), (100, 80)).float()
    assert tb.analyze({"a": low_rank}).layers[0].num_spikes >= 2
    assert [count_traps(weight[None]) for weight in (low_rank, heavy, noise(100, 80) + 1)] == [0, 0, 0]


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_number_does_not_depend_on_the_scale_or_dtype(scale):
    weight = noise(80, 80, seed=3)
    weight[2, 2] = weight[5, 9] = 40.0
    assert count_traps(weight.double()[None] * scale) == count_traps(weight.bfloat16()[None]) == 2


def test_each_matrix_of_a_batch_is_shuffled_for_itself():
    weight = noise(9, 32, 32)
    weight[0, 3, 4] = weight[8, 1, 1] = 50.0
    assert count_traps(weight) == 2


def test_complex_weights_and_constant_ones_have_no_traps():
    assert count_traps(torch.complex(noise(1, 60, 60), noise(1, 60, 60, seed=1))) == 0
    assert count_traps(torch.ones(1, 60, 60)) == 0


def test_few_eigenvalues_are_not_compared():
    assert count_traps(noise(1, 49, 300)) is None


@pytest.mark.parametrize("alpha", [1.8, 3.0, 6.0])
def test_delta_erg_is_that_of_products_one_by_one(alpha):
    values = pareto_quantiles(100, alpha).double()
    scaled = values / values.mean()
    index = next(i for i in range(99, 0, -1) if float(scaled[i:].prod()) < 1)
    assert delta_erg(values, 2.0) == pytest.approx(float(scaled[index]) - 2 / float(values.mean()), rel=1e-12)
    assert delta_erg(1e-9 * values, 2e-9) == pytest.approx(delta_erg(values, 2.0), rel=1e-9)


def test_delta_erg_is_unknown_without_a_threshold():
    low_rank = torch.cat([torch.zeros(90), torch.ones(10)]).double()  # the product of the positive ones is 10^10
    assert math.isnan(delta_erg(low_rank, 1.0))
    assert math.isnan(delta_erg(torch.zeros(5), math.nan))
    assert math.isnan(delta_erg(pareto_quantiles(50, 3.0), math.nan))


class TestAnalyze:
    def test_it_is_off_unless_asked_for(self):
        analysis = tb.analyze({"a": noise(60, 60)})
        row = analysis.layers[0]
        assert row.num_traps is None
        assert math.isnan(row.delta_erg)
        assert not {"num_traps", "delta_erg"} & {*analysis.to_pandas().columns, *analysis.to_dict()["layers"][0]}

    def test_rows_tables_files_and_findings_have_them(self, tmp_path):
        heavy = matrix_with_spectrum(pareto_quantiles(60, 3.0), (60, 60)).float()
        huge = heavy.clone()
        huge[3, 4] = 100 * heavy.std()
        weights = {"a.weight": heavy, "b.weight": huge, "c.weight": noise(60, 70), "d.weight": noise(20, 20)}
        analysis = tb.analyze(weights, traps=True)
        assert [row.num_traps for row in analysis] == [0, 1, 0, None]
        assert [math.isfinite(row.delta_erg) for row in analysis] == [True, True, False, True]
        assert analysis.to_pandas()["num_traps"].dropna().tolist() == [0, 1, 0]
        finding = next(each for each in analysis.findings if each.kind == "traps")
        assert (finding.layers, finding.evidence["traps"]) == (("b.weight",), 1)
        analysis.save(tmp_path / "a.json")
        loaded = tb.Analysis.load(tmp_path / "a.json")
        assert [row.num_traps for row in loaded] == [0, 1, 0, None]
        assert [row.delta_erg for row in loaded] == pytest.approx([row.delta_erg for row in analysis], nan_ok=True)

    def test_windows_are_refused(self):
        with pytest.raises(WindowError, match="full matrices"):
            tb.analyze({"a": noise(60, 60)}, windows=tb.FARMS(), traps=True)


def test_minilm_has_the_traps_and_thresholds_of_weightwatcher(minilm):
    rows = {row.name.removesuffix(".weight"): row for row in tb.analyze(minilm, estimator=tb.KS(), traps=True)}
    different = {name for name, golden in GOLDEN.items() if rows[name].num_traps != golden["num_traps"]}
    # Its largest shuffled eigenvalue is 1 % above their bulk, and their allowance is wider than Tracy and Widom's.
    assert different <= {"encoder.layer.0.attention.output.dense"}
    assert sum(golden["num_traps"] for golden in GOLDEN.values()) == 6
    assert len(GOLDEN) == 37
    for name in GOLDEN.keys() - {"pooler.dense"}:  # it is untrained: no xmin here
        golden, row = GOLDEN[name], rows[name]
        mean = row.mean_square * row.shape[0] * row.shape[1] / row.num_eigenvalues
        assert row.delta_erg == pytest.approx((golden["detX_val"] - golden["xmin"]) / mean, rel=1e-9), name
