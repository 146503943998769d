"""Allocation of sparsity: the published ratios where the published formula holds, and an exact budget everywhere."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

import tempbalance as tb
from tempbalance.errors import AllocationError
from tempbalance.testing import matrix_with_spectrum, pareto_quantiles

# By AlphaPruning's released code, from its alphas: LLaMA-7B, 70 %, epsilon 0.2.
LLAMA_7B = (
    *(0.570, 0.618, 0.632, 0.631, 0.653, 0.648, 0.630, 0.592, 0.597, 0.568, 0.587, 0.589, 0.599, 0.611, 0.619, 0.668),
    *(0.659, 0.716, 0.791, 0.744, 0.795, 0.825, 0.770, 0.763, 0.812, 0.852, 0.831, 0.841, 0.787, 0.830, 0.841, 0.732),
)
# hidden size, intermediate size, width of k and v
SHAPES = {"7b": (4096, 11008, 4096), "13b": (5120, 13824, 5120), "30b": (6656, 17920, 6656), "70b": (8192, 28672, 1024)}
NAMES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj", "up_proj")


def llama(alphas: np.ndarray, size: str) -> tb.Analysis:
    """An analysis with given alphas and the shapes of a LLaMA: seven weights per block."""
    h, m, kv = SHAPES[size]
    shapes = ((h, h), (kv, h), (kv, h), (h, h), (m, h), (h, m), (m, h))
    (row,) = tb.analyze({"w": torch.eye(4)}).layers
    rows = [
        dataclasses.replace(
            row, name=f"model.layers.{i // 7}.{NAMES[i % 7]}.weight", block=f"model.layers.{i // 7}",
            shape=shapes[i % 7], alpha=float(alpha), status=tb.types.Status.OK,
        )
        for i, alpha in enumerate(alphas)
    ]  # fmt: skip
    return tb.Analysis(source="llama", settings={}, layers=rows)


def published(alphas: np.ndarray, numels: np.ndarray, sparsity: float, epsilon: float) -> np.ndarray:
    """AlphaPruning's formula in float64: eta (1 - epsilon + 2 epsilon (q - min) / (max - min))."""
    q = alphas.reshape(-1, 7).mean(axis=1)
    phi = (q - q.min()) / (q.max() - q.min()) * 2 * epsilon + 1 - epsilon
    d = numels.reshape(-1, 7).sum(axis=1)
    return phi * sparsity * d.sum() / (phi * d).sum()


FILES = {
    "llama-7b-hf_peak": "7b",
    "llama2-7b-hf_peak": "7b",
    "llama-13b-hf_peak": "13b",
    "llama2-13b-hf_peak": "13b",
    "llama-30b-hf_peak": "30b",
    "llama2-70b-hf_peak": "70b",
    "llama-7b-hf_peak_farms_15x15": "7b",
}


@pytest.mark.parametrize("epsilon", [0.2, 0.3])
@pytest.mark.parametrize("sparsity", [0.7, 0.8])
@pytest.mark.parametrize("name", FILES)
def test_published_alphas_give_the_published_ratios_and_an_exact_budget(data_file, name, sparsity, epsilon):
    alphas = np.load(data_file(f"published_alphas/{name}.npy"))
    allocation = tb.allocate_sparsity(llama(alphas, FILES[name]), sparsity, epsilon, method="alpha")
    numels = np.array([layer.numel for layer in allocation.layers])
    assert sum(layer.zeros for layer in allocation.layers) == round(sparsity * int(numels.sum()))
    ours = np.array(list(allocation.values())).reshape(-1, 7)
    theirs = published(alphas, numels, sparsity, epsilon)
    assert np.abs(ours - ours[:, :1]).max() < 1e-6  # one ratio per block, to one weight
    if theirs.max() <= 1:
        assert ours[:, 0] == pytest.approx(theirs, abs=1e-6)
    else:
        assert ours.max() == 1.0
        below = ours[:, 0] < 1
        factor = ours[below, 0] / theirs[below]
        assert factor == pytest.approx(np.full(below.sum(), factor[0]), rel=1e-6)
        assert factor[0] > 1


def test_llama_7b_gets_the_ratios_of_the_released_code(data_file):
    alphas = np.load(data_file("published_alphas/llama-7b-hf_peak.npy"))
    allocation = tb.allocate_sparsity(llama(alphas, "7b"), 0.7, 0.2, method="alpha")
    assert list(allocation.values())[::7] == pytest.approx(LLAMA_7B, abs=6e-4)


@pytest.fixture
def analysis() -> tb.Analysis:
    """Four blocks of two weights of different sizes, alphas 2 to 5; a matrix outside the blocks."""
    weights = {"head.weight": torch.randn(70, 60, generator=torch.Generator().manual_seed(0))}
    for i in range(4):
        for name, rows in (("a", 64), ("b", 96)):
            weights[f"h.{i}.{name}.weight"] = matrix_with_spectrum(pareto_quantiles(64, 2.0 + i), (rows, 64), seed=i)
    return tb.analyze(weights, progress=False)


@pytest.mark.parametrize("method", ["alpha", "uniform", "erk", "depth"])
@pytest.mark.parametrize("unit", ["layer", "block"])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.85, 0.999])
def test_every_method_meets_the_budget_to_one_zero(analysis, sparsity, unit, method):
    allocation = tb.allocate_sparsity(analysis, sparsity, unit=unit, method=method)
    total = sum(layer.numel for layer in allocation.layers)
    assert sum(layer.zeros for layer in allocation.layers) == round(sparsity * total)
    assert all(0 <= value <= 1 for value in allocation.values())


@pytest.mark.parametrize("beta", [0.0, 0.05, 0.2])
def test_atp_is_the_published_arithmetic_progression(analysis, beta):
    allocation = tb.allocate_sparsity(analysis, 0.6, method="atp", beta=beta)
    assert list(allocation.values())[::2] == pytest.approx([0.6 - 1.5 * beta + i * beta for i in range(4)], abs=1e-3)
    assert sum(layer.zeros for layer in allocation.layers) == round(0.6 * allocation.covered)
    assert allocation.method == f"atp, beta {beta}"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "atp"}, "needs beta"),
        ({"method": "atp", "beta": 0.1, "unit": "layer"}, "unit='block'"),
        ({"method": "atp", "beta": 0.3}, r"\[0, 0.2667\]"),
        ({"method": "atp", "beta": -0.1}, r"\[0, 0.2667\]"),
        ({"method": "atp", "beta": math.nan}, r"\[0, 0.2667\]"),
        ({"method": "uniform", "beta": 0.1}, "beta has no effect"),
        ({"method": "uniform", "outliers": {}}, "outliers have no effect"),
    ],
)
def test_parameters_that_cannot_be_used_are_refused(analysis, given, message):
    with pytest.raises(AllocationError, match=message):
        tb.allocate_sparsity(analysis, 0.6, **given)


def test_blocks_with_heavier_tails_are_pruned_less(analysis):
    values = list(tb.allocate_sparsity(analysis, 0.5, method="alpha").values())[::2]  # one of each block
    assert values == sorted(values)
    assert values[0] < 0.5 < values[-1]


def test_weights_outside_blocks_are_not_pruned(analysis):
    assert all(name.startswith("h.") for name in tb.allocate_sparsity(analysis, 0.5))


def test_equal_alphas_give_a_uniform_sparsity(analysis):
    rows = [dataclasses.replace(row, alpha=3.0) for row in analysis.layers]
    allocation = tb.allocate_sparsity(dataclasses.replace(analysis, layers=rows), 0.5, method="alpha")
    assert list(allocation.values()) == pytest.approx([0.5] * 8, abs=1e-3)


def test_a_block_without_alpha_gets_the_middle_of_the_spread(analysis):
    rows = [dataclasses.replace(row, alpha=math.nan) if row.block == "h.1" else row for row in analysis.layers]
    allocation = tb.allocate_sparsity(dataclasses.replace(analysis, layers=rows), 0.5, epsilon=0.4, method="alpha")
    smallest, largest = allocation["h.0.a.weight"], allocation["h.3.a.weight"]
    assert allocation["h.1.a.weight"] == pytest.approx((smallest + largest) / 2, abs=1e-3)


@pytest.mark.parametrize(
    "bad", [{"sparsity": 1.0}, {"sparsity": 1.2}, {"sparsity": -0.1}, {"sparsity": 0.5, "epsilon": 1.5}]
)
def test_a_sparsity_or_epsilon_out_of_range_is_refused(analysis, bad):
    with pytest.raises(AllocationError, match=r"\[0, 1\]"):
        tb.allocate_sparsity(analysis, **bad)


def test_an_unknown_allocation_method_is_refused(analysis):
    with pytest.raises(AllocationError, match="'erk'"):
        tb.allocate_sparsity(analysis, 0.5, method="magic")


def test_an_analysis_without_weights_is_refused():
    with pytest.raises(AllocationError, match="no weight"):
        tb.allocate_sparsity(tb.Analysis(source="x", settings={}, layers=[]), 0.5)


class TestWarnings:
    """An allocation that is likely to harm logs a warning."""

    def logged(self, analysis_of, caplog, alphas, stderr=0.01, **options):
        names = [f"h.{i}.fc.weight" for i in range(len(alphas))]
        analysis = analysis_of(names, alphas, [(64, 64)] * len(alphas))
        rows = [dataclasses.replace(row, stderr=stderr) for row in analysis.layers]
        with caplog.at_level("WARNING", logger="tempbalance"):
            tb.allocate_sparsity(dataclasses.replace(analysis, layers=rows), 0.7, **{"method": "alpha", **options})
        return caplog.text

    def test_a_block_that_loses_all_weights_is_named(self, analysis_of, caplog):
        assert "all weights of h.0 to zero" in self.logged(
            analysis_of, caplog, [1.91, 1.72, 1.71, 1.72, 1.74, 1.7], epsilon=0.4
        )

    def test_alphas_that_differ_by_no_more_than_their_standard_errors_are_reported(self, analysis_of, caplog):
        assert "no more than their standard errors" in self.logged(analysis_of, caplog, [2.15, 2.2, 2.18], stderr=0.1)

    @pytest.mark.parametrize("options", [{}, {"method": "uniform"}, {"method": "depth"}])
    def test_alphas_that_differ_clearly_log_nothing(self, analysis_of, caplog, options):
        assert not self.logged(analysis_of, caplog, [2.0, 3.0, 4.0], **options)

    def test_the_allocation_has_what_is_logged_as_findings_also_loaded(self, analysis_of, tmp_path):
        analysis = analysis_of([f"h.{i}.fc.weight" for i in range(3)], [2.15, 2.2, 2.18], [(64, 64)] * 3)
        rows = [dataclasses.replace(row, stderr=0.1) for row in analysis.layers]
        analysis = dataclasses.replace(analysis, layers=rows)
        allocation = tb.allocate_sparsity(analysis, 0.5, method="alpha")
        (finding,) = allocation.findings
        assert (finding.kind, finding.severity.value) == ("noise", "warning")
        allocation.save(tmp_path / "allocation.json")
        assert tb.Allocation.load(tmp_path / "allocation.json").findings == allocation.findings
        assert json.loads((tmp_path / "allocation.json").read_text())["findings"][0]["kind"] == "noise"
        assert tb.allocate_sparsity(analysis, 0.5, method="uniform").findings == ()

    def test_a_uniform_allocation_does_not_warn_about_alphas(self, analysis_of, caplog):
        assert not self.logged(analysis_of, caplog, [2.15, 2.2, 2.18], stderr=0.1, method="uniform")


def mixture_of_experts() -> dict[str, torch.Tensor]:
    """The weights of two blocks with a router and two experts each."""
    generator = torch.Generator().manual_seed(0)
    return {
        f"layers.{block}.mlp.{name}": torch.randn(64, 64, generator=generator)
        for block in range(2)
        for name in ("gate.weight", "experts.0.up.weight", "experts.1.up.weight")
    }


def test_routers_of_experts_are_pruned_only_on_request():
    analysis = tb.analyze(mixture_of_experts())
    assert len(analysis.layers) == 6
    allocation = tb.allocate_sparsity(analysis, 0.5, method="uniform")
    assert [name for name in allocation if "gate" in name] == []
    assert len(tb.allocate_sparsity(analysis, 0.5, method="uniform", routers=True)) == 6
