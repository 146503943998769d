"""Bits under one budget: within it, as AlphaQ's programme would have it, and as llm-compressor applies them."""

import dataclasses
import itertools
import json
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

import tempbalance as tb
from tempbalance.compress import Allocation, allocate_bits, export_llmcompressor
from tempbalance.errors import AllocationError

ALPHAS = st.floats(1.1, 20.0) | st.sampled_from([math.nan, math.inf])
LAYERS = st.lists(st.tuples(ALPHAS, st.integers(1, 40), st.floats(1e-6, 10.0)), min_size=1, max_size=12)


def spent(plan: Allocation) -> int:
    return sum(layer.numel * layer.bits for layer in plan.layers)


def noises(analysis: tb.Analysis, widths: Sequence[int], gamma: float) -> np.ndarray:
    """The terms of AlphaQ's objective, restated: one row per layer, one column per width."""
    alphas = np.array([row.alpha for row in analysis.layers])
    energies = np.array([math.prod(row.shape) * row.mean_square for row in analysis.layers])
    return ((np.median(alphas) / alphas) ** gamma * energies)[:, None] * 2.0 ** (-2 * np.array(widths))


def total(table: np.ndarray, columns: Sequence[int]) -> float:
    return float(table[range(len(columns)), columns].sum())


@given(layers=LAYERS, part=st.floats(0.0, 1.0), gamma=st.floats(0.0, 10.0), unit=st.sampled_from(["layer", "block"]))
def test_the_budget_is_never_exceeded_and_nothing_more_fits(analysis_of, layers, part, gamma, unit):
    alphas, rows, mean_squares = zip(*layers, strict=True)
    names = [f"h.{i // 2}.{'ab'[i % 2]}.weight" for i in range(len(layers))]
    bits = 2 + 6 * part
    plan = allocate_bits(analysis_of(names, alphas, [(n, 7) for n in rows], mean_squares), bits, gamma=gamma, unit=unit)
    left = bits * sum(layer.numel for layer in plan.layers) - spent(plan)
    assert left >= 0
    sizes: dict[str, int] = {}
    for layer in plan.layers:
        sizes[layer.unit] = sizes.get(layer.unit, 0) + layer.numel
    step = {2: 1, 3: 1, 4: 4, 8: math.inf}
    assert all(sizes[layer.unit] * step[layer.bits] > left for layer in plan.layers)


@given(
    layers=st.lists(st.tuples(st.floats(1.1, 9.0), st.integers(1, 9), st.floats(0.01, 3.0)), min_size=1, max_size=5),
    part=st.floats(0.0, 1.0),
)
def test_within_one_step_of_the_best_plan(analysis_of, layers, part):
    alphas, rows, mean_squares = zip(*layers, strict=True)
    widths, bits = [2, 3, 4, 8], 2 + 6 * part
    analysis = analysis_of([f"h.{i}.a.weight" for i in range(len(rows))], alphas, [(n, 5) for n in rows], mean_squares)
    table = noises(analysis, widths, 1.0)
    found = [widths.index(width) for width in allocate_bits(analysis, bits).values()]
    plans = itertools.product(range(4), repeat=len(rows))
    allowed = [plan for plan in plans if np.dot(np.take(widths, plan), rows) <= bits * sum(rows)]
    best = min(total(table, plan) for plan in allowed)
    step = max((table[i, at] - table[i, at + 1] for i, at in enumerate(found) if at < 3), default=0.0)
    assert best * (1 - 1e-9) <= total(table, found) <= best * (1 + 1e-9) + step


@given(
    layers=st.lists(st.tuples(st.floats(1.1, 9.0), st.floats(0.01, 3.0)), min_size=1, max_size=6),
    part=st.floats(0.0, 1.0),
)
def test_the_best_plan_for_experts_of_one_size(analysis_of, layers, part):
    alphas, mean_squares = zip(*layers, strict=True)
    names = [f"h.0.experts.down_proj:{i}" for i in range(len(layers))]
    analysis = analysis_of(names, alphas, [(8, 8)] * len(layers), mean_squares)
    bits = 1 + 3 * part
    table = noises(analysis, (1, 2, 3, 4), 2.0)
    found = [width - 1 for width in allocate_bits(analysis, bits, widths=(1, 2, 3, 4), gamma=2.0).values()]
    plans = itertools.product(range(4), repeat=len(layers))
    best = min(total(table, plan) for plan in plans if sum(plan) + len(layers) <= bits * len(layers))
    assert total(table, found) == pytest.approx(best, rel=1e-9)


def test_half_a_percent_from_any_plan_for_a_7b_model(analysis_of):
    rng = np.random.default_rng(0)
    shapes = [(4096, 4096)] * 4 + [(11008, 4096)] * 2 + [(4096, 11008)]
    names = [f"h.{i // 7}.{i % 7}.weight" for i in range(224)]
    analysis = analysis_of(names, rng.uniform(2, 6, 224).tolist(), shapes * 32, rng.uniform(1, 9, 224).tolist())
    widths = [2, 3, 4, 8]
    table = noises(analysis, widths, 1.0)
    found = [widths.index(width) for width in allocate_bits(analysis, 3.5).values()]
    numels = np.array([math.prod(row.shape) for row in analysis.layers])
    one_width = LinearConstraint(np.kron(np.eye(224), np.ones(4)), 1, 1)
    budget = LinearConstraint(np.kron(numels, widths)[None] / numels.sum(), -np.inf, 3.5)
    relaxed = milp(table.ravel() / table.sum(), bounds=Bounds(0, 1), constraints=[one_width, budget])
    assert total(table, found) / table.sum() <= relaxed.fun * 1.005  # which no plan is below


def test_heavy_tails_get_more_bits(analysis_of):
    names = [f"h.{i}.a.weight" for i in range(4)]
    analysis = analysis_of(names, [5.0, 2.0, 4.0, 3.0], [(8, 8)] * 4)
    assert list(allocate_bits(analysis, 3, gamma=10).values()) == [2, 4, 2, 4]


def test_equal_alphas_and_variances_are_uniform(analysis_of):
    analysis = analysis_of([f"h.{i}.a.weight" for i in range(6)], [3.0] * 6, [(8, 8)] * 6)
    assert set(allocate_bits(analysis, 3).values()) == {3}


def test_a_module_without_alpha_counts_as_one_of_median_alpha(analysis_of):
    names = [f"h.{i}.a.weight" for i in range(3)]
    shapes = [(8, 8)] * 3
    neutral = allocate_bits(analysis_of(names, [2.0, math.nan, 6.0], shapes), 3, gamma=9)
    assert list(neutral.values()) == list(
        allocate_bits(analysis_of(names, [2.0, 4.0, 6.0], shapes), 3, gamma=9).values()
    )
    assert math.isnan(neutral.layers[1].alpha)
    assert set(allocate_bits(analysis_of(names, [math.nan] * 3, shapes), 3).values()) == {3}


def test_parts_of_a_fused_weight_share_a_width(analysis_of):
    names = ["h.0.qkv.weight:q", "h.0.qkv.weight:k", "h.0.qkv.weight:v", "h.0.fc.weight"]
    plan = allocate_bits(analysis_of(names, [2.0, 3.0, 4.0, 3.0], [(8, 8), (4, 8), (4, 8), (8, 8)]), 3)
    assert list(plan) == ["h.0.qkv", "h.0.fc"]
    assert (plan.layers[0].shape, plan.layers[0].numel, plan.layers[0].alpha) == ((16, 8), 128, 3.0)


def test_only_linear_layers_and_experts_in_blocks(analysis_of):
    analysis = analysis_of(["h.0.a.weight", "h.0.b.weight", "h.0.c.weight"], [2.0] * 3, [(8, 8)] * 3)
    first, second, third = analysis.layers
    rows = [first, dataclasses.replace(second, kind="conv2d"), dataclasses.replace(third, block=None)]
    assert list(allocate_bits(dataclasses.replace(analysis, layers=rows), 3)) == ["h.0.a"]
    assert list(allocate_bits(dataclasses.replace(analysis, layers=[rows[2]]), 3)) == ["h.0.c"]


def test_the_mean_square_of_windows_is_that_of_the_weight():
    weight = torch.randn(96, 160, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for windows in (None, tb.FARMS()):
        (row,) = tb.analyze({"w": weight}, windows=windows, progress=False).layers
        assert row.mean_square == pytest.approx(float((weight**2).mean()), rel=0.02 if windows else 1e-6)


@pytest.mark.parametrize(
    "bad", [{"bits": 1.9}, {"bits": 8.1}, {"bits": math.nan}, {"bits": 3, "widths": ()}, {"bits": 0, "widths": (0, 4)}]
)
def test_budgets_out_of_range(analysis_of, bad):
    with pytest.raises(AllocationError, match="of the widths"):
        allocate_bits(analysis_of(["h.0.a.weight"], [2.0], [(8, 8)]), **bad)


@pytest.mark.parametrize("gamma", [-1.0, 51.0, math.nan, math.inf])
def test_impossible_gamma(analysis_of, gamma):
    with pytest.raises(AllocationError, match="gamma"):
        allocate_bits(analysis_of(["h.0.a.weight"], [2.0], [(8, 8)]), 3, gamma=gamma)


def test_nothing_to_quantize():
    with pytest.raises(AllocationError, match="no weight of kind experts or linear"):
        allocate_bits(tb.Analysis(source="x", settings={}, layers=[]), 3)


def test_an_analysis_of_an_older_version(analysis_of):
    with pytest.raises(AllocationError, match=r"h\.0\.a.*analyse the model again"):
        allocate_bits(analysis_of(["h.0.a.weight"], [2.0], [(8, 8)], [math.nan]), 3)


@pytest.fixture
def plan(analysis_of) -> Allocation:
    names = [f"h.{i}.a.weight" for i in range(3)]
    return allocate_bits(analysis_of(names, [2.0, math.nan, 6.0], [(64, 64)] * 3), 3, gamma=9)


def test_a_plan_survives_its_file(plan, tmp_path):
    plan.save(tmp_path / "bits.json")
    assert Allocation.load(tmp_path / "bits.json") == plan


@pytest.mark.parametrize("content", ["", "[]", '{"schema": 99}', '{"schema": 1, "layers": [{}]}'])
def test_files_that_are_no_plans(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(AllocationError, match=r"x\.json"):
        Allocation.load(tmp_path / "x.json")


def test_a_recipe_names_every_module_once(plan, tmp_path):
    export_llmcompressor(plan, tmp_path / "recipe.yaml", modifier="QuantizationModifier", group_size=32)
    (stage,) = json.loads((tmp_path / "recipe.yaml").read_text()).values()
    groups = stage["quantization_modifiers"]["QuantizationModifier"]["config_groups"].values()
    assert {name: group["weights"]["num_bits"] for group in groups for name in group["targets"]} == dict(plan)
    assert sum(len(group["targets"]) for group in groups) == len(plan)
    assert all(group["weights"]["group_size"] == 32 for group in groups)


def test_columns_that_groups_do_not_divide(plan, tmp_path):
    with pytest.raises(AllocationError, match=r"h\.0\.a has 64 columns.*group_size=128"):
        export_llmcompressor(plan, tmp_path / "recipe.yaml")


def test_one_bit_cannot_be_exported(analysis_of, tmp_path):
    plan = allocate_bits(analysis_of(["h.0.a.weight"], [2.0], [(8, 8)]), 1, widths=(1, 2))
    with pytest.raises(AllocationError, match="2 to 8 bits"):
        export_llmcompressor(plan, tmp_path / "recipe.yaml")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["h.0.experts.w1:3", "h.0.experts.gate_up_proj:3"])
def test_experts_that_llm_compressor_does_not_take_apart(analysis_of, tmp_path, name):
    with pytest.raises(AllocationError, match=name):
        export_llmcompressor(allocate_bits(analysis_of([name], [2.0], [(8, 8)]), 3), tmp_path / "recipe.yaml")
