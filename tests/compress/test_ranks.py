"""Allocation of LoRA ranks under one budget of parameters."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tempbalance as tb
from tempbalance.compress import Allocation, allocate_bits, allocate_ranks
from tempbalance.errors import AllocationError

ALPHAS = st.floats(1.1, 20.0) | st.sampled_from([math.nan, math.inf])
LAYERS = st.lists(st.tuples(ALPHAS, st.integers(1, 300), st.integers(1, 300)), min_size=1, max_size=20)
NAMES = [f"h.{i // 2}.{'ab'[i % 2]}.weight" for i in range(20)]


def parameters(allocation: Allocation) -> int:
    return sum(layer.parameters for layer in allocation.layers)


@given(
    layers=LAYERS,
    bounds=st.tuples(*[st.integers(1, 24)] * 3).map(sorted),
    beta=st.floats(0.0, 6.0),
    unit=st.sampled_from(["layer", "block"]),
)
def test_the_budget_of_parameters_is_kept_and_no_further_rank_fits(analysis_of, layers, bounds, beta, unit):
    alphas, rows, columns = zip(*layers, strict=True)
    low, rank, high = bounds
    shapes = list(zip(rows, columns, strict=True))
    analysis = analysis_of(NAMES[: len(layers)], alphas, shapes)
    allocation = allocate_ranks(analysis, rank, low=low, high=high, beta=beta, unit=unit)
    left = rank * sum(map(sum, shapes)) - parameters(allocation)
    assert left >= 0
    assert all(low <= value <= high for value in allocation.values())
    costs: dict[str, int] = {}
    for layer in allocation.layers:
        costs[layer.unit] = costs.get(layer.unit, 0) + sum(layer.shape)
    assert all(costs[layer.unit] > left for layer in allocation.layers if layer.rank < high)


@given(alphas=st.lists(st.floats(1.1, 9.0), min_size=2, max_size=20, unique=True), beta=st.floats(0.5, 4.0))
def test_ranks_are_in_proportion_to_a_power_of_alpha(analysis_of, alphas, beta):
    analysis = analysis_of([f"h.{i}.a.weight" for i in range(len(alphas))], alphas, [(64, 64)] * len(alphas))
    allocation = allocate_ranks(analysis, 16, beta=beta, high=16 * len(alphas), low=1)
    powers = [alpha**beta for alpha in alphas]
    ranks = list(allocation.values())
    if min(ranks) > 1:  # no bound is met
        exact = [16 * len(alphas) * power / sum(powers) for power in powers]
        assert all(abs(a - b) < 1 + 1e-9 for a, b in zip(ranks, exact, strict=True))
    by_alpha = [rank for _, rank in sorted(zip(alphas, ranks, strict=True))]
    assert all(a <= b + 1 for a, b in itertools.pairwise(by_alpha))


def test_equal_alphas_give_a_uniform_rank(analysis_of):
    shapes = [(64, 32 * (i + 1)) for i in range(8)]
    allocation = allocate_ranks(analysis_of(NAMES[:8], [3.0] * 8, shapes), 8, unit="layer")
    assert set(allocation.values()) == {8}


def test_a_module_without_alpha_gets_the_rank_of_median_alpha(analysis_of):
    names, shapes = [f"h.{i}.a.weight" for i in range(3)], [(64, 64)] * 3
    allocation = allocate_ranks(analysis_of(names, [2.0, math.nan, 6.0], shapes), 8)
    assert list(allocation.values()) == list(allocate_ranks(analysis_of(names, [2.0, 4.0, 6.0], shapes), 8).values())
    assert set(allocate_ranks(analysis_of(names, [math.nan] * 3, shapes), 8).values()) == {8}


def test_the_modules_of_a_block_get_one_rank(analysis_of):
    analysis = analysis_of(NAMES[:6], [2.0, 3.0, 4.0, 5.0, 6.0, 7.0], [(64, 64)] * 6)
    ranks = list(allocate_ranks(analysis, 8).values())
    assert ranks[::2] == ranks[1::2]
    assert len(set(allocate_ranks(analysis, 8, unit="layer").values())) == 6


def test_the_parts_of_a_fused_weight_get_one_rank(analysis_of):
    names = ["h.0.qkv.weight:q", "h.0.qkv.weight:k", "h.0.qkv.weight:v"]
    allocation = allocate_ranks(analysis_of(names, [2.0, 3.0, 4.0], [(64, 64), (16, 64), (16, 64)]), 8)
    assert dict(allocation) == {"h.0.qkv": 8}
    assert (allocation.layers[0].shape, allocation.layers[0].alpha, allocation.layers[0].parameters) == (
        (96, 64),
        3.0,
        8 * 160,
    )


def test_experts_get_no_rank(analysis_of):
    names = ["h.0.a.weight", "h.0.experts.down_proj:0"]
    assert list(allocate_ranks(analysis_of(names, [2.0, 3.0], [(8, 8)] * 2), 2)) == ["h.0.a"]


@pytest.mark.parametrize("bad", [{"rank": 0}, {"rank": 8, "low": 0}, {"rank": 8, "low": 9}, {"rank": 8, "high": 7}])
def test_a_rank_out_of_range_is_refused(analysis_of, bad):
    with pytest.raises(AllocationError, match="low <= rank <= high"):
        allocate_ranks(analysis_of(["h.0.a.weight"], [2.0], [(8, 8)]), **bad)


@pytest.mark.parametrize("beta", [-1.0, 51.0, math.nan, math.inf])
def test_a_beta_out_of_range_is_refused(analysis_of, beta):
    with pytest.raises(AllocationError, match="beta"):
        allocate_ranks(analysis_of(["h.0.a.weight"], [2.0], [(8, 8)]), 8, beta=beta)


def test_an_analysis_without_linear_layers_is_refused():
    with pytest.raises(AllocationError, match="no weight of kind linear"):
        allocate_ranks(tb.Analysis(source="x", settings={}, layers=[]), 8)


def test_by_error_ranks_go_to_the_largest_singular_values_that_are_left():
    """Against a float64 SVD: the kept ranks have the least truncation error of all with the same parameters."""
    generator = torch.Generator().manual_seed(0)
    weights = {f"h.{i}.a.weight": torch.randn(24, 24, generator=generator) * 2.0**i for i in range(3)}
    allocation = allocate_ranks(tb.analyze(weights, progress=False), 4, method="error", high=8)
    squares = {name: torch.linalg.svdvals(w.double()).square() for name, w in weights.items()}
    left = {
        ranks: sum(float(values[rank:].sum()) for values, rank in zip(squares.values(), ranks, strict=True))
        for ranks in itertools.product(range(1, 9), repeat=3)
        if sum(ranks) <= 12
    }
    assert left[tuple(allocation.values())] == pytest.approx(min(left.values()))
    assert sum(allocation.values()) == 12


def test_uniform_is_the_rank_itself(analysis_of):
    analysis = analysis_of(NAMES[:4], [2.0, 3.0, 4.0, 5.0], [(64, 32)] * 4)
    assert set(allocate_ranks(analysis, 5, method="uniform").values()) == {5}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"method": "error", "high": 65}, "ranks of at most 64, got high 65"),
        ({"method": "error", "rank": 80}, "ranks of at most 64, got high 80"),
        ({"method": "svd"}, "method must be one of"),
    ],
)
def test_ranks_beyond_the_known_eigenvalues_are_refused(analysis_of, options, match):
    with pytest.raises(AllocationError, match=match):
        allocate_ranks(analysis_of(["h.0.a.weight"], [2.0], [(96, 96)]), **({"rank": 8} | options))


def test_by_error_windows_and_parts_of_fused_weights_are_refused(analysis_of):
    names = ["h.0.qkv.weight:q", "h.0.qkv.weight:k"]
    with pytest.raises(AllocationError, match="whole weights"):
        allocate_ranks(analysis_of(names, [2.0, 3.0], [(64, 64)] * 2), 4, method="error")
    windows = tb.analyze({"h.0.a.weight": torch.randn(96, 192)}, windows=tb.FARMS(), progress=False)
    with pytest.raises(AllocationError, match="whole weights"):
        allocate_ranks(windows, 4, method="error")


@pytest.mark.parametrize(
    ("allocate", "expected"), [(allocate_ranks, ["q"]), (allocate_bits, ["q", "moe.experts.0.up"])]
)
def test_routers_of_experts_get_no_value(allocate, expected, analysis_of):
    names = [f"h.{i}.{name}.weight" for i in range(2) for name in ("q", "moe.gate", "moe.experts.0.up")]
    allocation = allocate(analysis_of(names, [2.0] * 6, [(64, 64), (8, 64), (64, 64)] * 2), 4)
    assert {name.removesuffix(".weight") for name in allocation} == {f"h.{i}.{n}" for i in range(2) for n in expected}
