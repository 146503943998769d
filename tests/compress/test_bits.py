"""Allocation of bits: within the budget, and near the optimum of AlphaQ's integer programme."""

import dataclasses
import itertools
import json
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

import tempbalance as tb
from tempbalance.compress import Allocation, allocate_bits, find_format
from tempbalance.errors import AllocationError

ALPHAS = st.floats(1.1, 20.0) | st.sampled_from([math.nan, math.inf])
LAYERS = st.lists(st.tuples(ALPHAS, st.integers(1, 40), st.floats(1e-6, 10.0)), min_size=1, max_size=12)


def spent(allocation: Allocation) -> int:
    return sum(layer.numel * layer.bits for layer in allocation.layers)


def noises(analysis: tb.Analysis, widths: Sequence[int], gamma: float) -> np.ndarray:
    """Compute the terms of AlphaQ's objective: one row per layer, one column per width."""
    alphas = np.array([row.alpha for row in analysis.layers])
    energies = np.array([math.prod(row.shape) * row.mean_square for row in analysis.layers])
    return ((np.median(alphas) / alphas) ** gamma * energies)[:, None] * 2.0 ** (-2 * np.array(widths))


def total(table: np.ndarray, columns: Sequence[int]) -> float:
    return float(table[range(len(columns)), columns].sum())


@given(layers=LAYERS, part=st.floats(0.0, 1.0), gamma=st.floats(0.0, 10.0), unit=st.sampled_from(["layer", "block"]))
def test_the_budget_of_bits_is_kept_and_no_further_step_fits(analysis_of, layers, part, gamma, unit):
    alphas, rows, mean_squares = zip(*layers, strict=True)
    names = [f"h.{i // 2}.{'ab'[i % 2]}.weight" for i in range(len(layers))]
    bits = 2 + 6 * part
    allocation = allocate_bits(
        analysis_of(names, alphas, [(n, 7) for n in rows], mean_squares), bits, method="alpha", gamma=gamma, unit=unit
    )
    left = bits * sum(layer.numel for layer in allocation.layers) - spent(allocation)
    assert left >= 0
    sizes: dict[str, int] = {}
    for layer in allocation.layers:
        sizes[layer.unit] = sizes.get(layer.unit, 0) + layer.numel
    step = {2: 1, 3: 1, 4: 4, 8: math.inf}
    assert all(sizes[layer.unit] * step[layer.bits] > left for layer in allocation.layers)


@settings(deadline=None)  # it compares with up to 1,024 allocations
@given(
    layers=st.lists(st.tuples(st.floats(1.1, 9.0), st.integers(1, 9), st.floats(0.01, 3.0)), min_size=1, max_size=5),
    part=st.floats(0.0, 1.0),
)
def test_the_noise_is_within_one_step_of_the_minimum(analysis_of, layers, part):
    alphas, rows, mean_squares = zip(*layers, strict=True)
    widths, bits = [2, 3, 4, 8], 2 + 6 * part
    analysis = analysis_of([f"h.{i}.a.weight" for i in range(len(rows))], alphas, [(n, 5) for n in rows], mean_squares)
    table = noises(analysis, widths, 1.0)
    found = [widths.index(width) for width in allocate_bits(analysis, bits, method="alpha").values()]
    allocations = itertools.product(range(4), repeat=len(rows))
    allowed = [
        allocation for allocation in allocations if np.dot(np.take(widths, allocation), rows) <= bits * sum(rows)
    ]
    best = min(total(table, allocation) for allocation in allowed)
    step = max((table[i, at] - table[i, at + 1] for i, at in enumerate(found) if at < 3), default=0.0)
    assert best * (1 - 1e-9) <= total(table, found) <= best * (1 + 1e-9) + step


@settings(deadline=None)  # it compares with up to 4,096 allocations
@given(
    layers=st.lists(st.tuples(st.floats(1.1, 9.0), st.floats(0.01, 3.0)), min_size=1, max_size=6),
    part=st.floats(0.0, 1.0),
)
def test_the_noise_is_minimal_for_experts_of_one_size(analysis_of, layers, part):
    alphas, mean_squares = zip(*layers, strict=True)
    names = [f"h.0.experts.down_proj:{i}" for i in range(len(layers))]
    analysis = analysis_of(names, alphas, [(8, 8)] * len(layers), mean_squares)
    bits = 1 + 3 * part
    table = noises(analysis, (1, 2, 3, 4), 2.0)
    found = [
        width - 1 for width in allocate_bits(analysis, bits, widths=(1, 2, 3, 4), method="alpha", gamma=2.0).values()
    ]
    allocations = itertools.product(range(4), repeat=len(layers))
    best = min(
        total(table, allocation) for allocation in allocations if sum(allocation) + len(layers) <= bits * len(layers)
    )
    assert total(table, found) == pytest.approx(best, rel=1e-9)


def test_the_noise_of_a_7b_model_is_within_half_a_percent_of_the_relaxed_minimum(analysis_of):
    rng = np.random.default_rng(0)
    shapes = [(4096, 4096)] * 4 + [(11008, 4096)] * 2 + [(4096, 11008)]
    names = [f"h.{i // 7}.{i % 7}.weight" for i in range(224)]
    analysis = analysis_of(names, rng.uniform(2, 6, 224).tolist(), shapes * 32, rng.uniform(1, 9, 224).tolist())
    widths = [2, 3, 4, 8]
    table = noises(analysis, widths, 1.0)
    found = [widths.index(width) for width in allocate_bits(analysis, 3.5, method="alpha").values()]
    numels = np.array([math.prod(row.shape) for row in analysis.layers])
    one_width = LinearConstraint(np.kron(np.eye(224), np.ones(4)), 1, 1)
    budget = LinearConstraint(np.kron(numels, widths)[None] / numels.sum(), -np.inf, 3.5)
    relaxed = milp(table.ravel() / table.sum(), bounds=Bounds(0, 1), constraints=[one_width, budget])
    assert total(table, found) / table.sum() <= relaxed.fun * 1.005  # a lower bound of all allocations


def test_layers_with_heavier_tails_get_more_bits(analysis_of):
    names = [f"h.{i}.a.weight" for i in range(4)]
    analysis = analysis_of(names, [5.0, 2.0, 4.0, 3.0], [(8, 8)] * 4)
    assert list(allocate_bits(analysis, 3, method="alpha", gamma=10).values()) == [2, 4, 2, 4]


def test_equal_alphas_and_variances_give_equal_bits(analysis_of):
    analysis = analysis_of([f"h.{i}.a.weight" for i in range(6)], [3.0] * 6, [(8, 8)] * 6)
    assert set(allocate_bits(analysis, 3, method="alpha").values()) == {3}


def test_a_module_without_alpha_gets_the_bits_of_median_alpha(analysis_of):
    names = [f"h.{i}.a.weight" for i in range(3)]
    shapes = [(8, 8)] * 3
    neutral = allocate_bits(analysis_of(names, [2.0, math.nan, 6.0], shapes), 3, method="alpha", gamma=9)
    assert list(neutral.values()) == list(
        allocate_bits(analysis_of(names, [2.0, 4.0, 6.0], shapes), 3, method="alpha", gamma=9).values()
    )
    assert math.isnan(neutral.layers[1].alpha)
    assert set(allocate_bits(analysis_of(names, [math.nan] * 3, shapes), 3, method="alpha").values()) == {3}


def test_the_parts_of_a_fused_weight_get_one_width(analysis_of):
    names = ["h.0.qkv.weight:q", "h.0.qkv.weight:k", "h.0.qkv.weight:v", "h.0.fc.weight"]
    allocation = allocate_bits(analysis_of(names, [2.0, 3.0, 4.0, 3.0], [(8, 8), (4, 8), (4, 8), (8, 8)]), 3)
    assert list(allocation) == ["h.0.qkv", "h.0.fc"]
    assert (allocation.layers[0].shape, allocation.layers[0].numel, allocation.layers[0].alpha) == ((16, 8), 128, 3.0)


def test_bits_go_to_linear_layers_and_experts_inside_blocks_only(analysis_of):
    analysis = analysis_of(["h.0.a.weight", "h.0.b.weight", "h.0.c.weight"], [2.0] * 3, [(8, 8)] * 3)
    first, second, third = analysis.layers
    rows = [first, dataclasses.replace(second, kind="conv2d"), dataclasses.replace(third, block=None)]
    assert list(allocate_bits(dataclasses.replace(analysis, layers=rows), 3)) == ["h.0.a"]
    assert list(allocate_bits(dataclasses.replace(analysis, layers=[rows[2]]), 3)) == ["h.0.c"]


def test_the_mean_square_over_windows_is_that_of_the_weight():
    weight = torch.randn(96, 160, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for windows in (None, tb.FARMS()):
        (row,) = tb.analyze({"w": weight}, windows=windows, progress=False).layers
        assert row.mean_square == pytest.approx(float((weight**2).mean()), rel=0.02 if windows else 1e-6)


@pytest.mark.parametrize(
    "bad", [{"bits": 1.9}, {"bits": 8.1}, {"bits": math.nan}, {"bits": 3, "widths": ()}, {"bits": 0, "widths": (0, 4)}]
)
def test_a_number_of_bits_out_of_range_is_refused(analysis_of, bad):
    with pytest.raises(AllocationError, match="of the widths"):
        allocate_bits(analysis_of(["h.0.a.weight"], [2.0], [(8, 8)]), **bad)


@pytest.mark.parametrize("gamma", [-1.0, 51.0, math.nan, math.inf])
def test_a_gamma_out_of_range_is_refused(analysis_of, gamma):
    with pytest.raises(AllocationError, match="gamma"):
        allocate_bits(analysis_of(["h.0.a.weight"], [2.0], [(8, 8)]), 3, method="alpha", gamma=gamma)


def test_an_analysis_without_linear_layers_is_refused():
    with pytest.raises(AllocationError, match="no weight of kind experts or linear"):
        allocate_bits(tb.Analysis(source="x", settings={}, layers=[]), 3)


def test_an_analysis_without_mean_squares_is_refused(analysis_of):
    with pytest.raises(AllocationError, match=r"h\.0\.a.*analyse the model again"):
        allocate_bits(analysis_of(["h.0.a.weight"], [2.0], [(8, 8)], [math.nan]), 3, method="alpha")


@pytest.mark.parametrize(
    ("field", "value"), [("bits", 4), ("format", "int4"), ("format", "fp5"), ("format", "int4_g48")]
)
def test_a_saved_format_that_is_unknown_or_costs_other_bits_is_refused(analysis_of, tmp_path, field, value):
    found = allocate_bits(analysis_of(["h.0.a.weight"], [2.0], [(64, 64)]), 5, widths=("nvfp4",))
    data = found.to_dict()
    data["layers"][0][field] = value
    (tmp_path / "bits.json").write_text(json.dumps(data))
    with pytest.raises(AllocationError, match=r"unknown format|which is not what .* costs"):
        Allocation.load(tmp_path / "bits.json")


FORMATS = ("int2", "int3_g8", "int4", "nvfp4", "int8", "bf16")


def test_with_formats_the_budget_counts_every_scale_and_the_loss_is_minimal(analysis_of):
    """Against all allocations; the second layer cannot have nvfp4."""
    names, shapes = [f"h.{i}.a.weight" for i in range(3)], [(6, 32), (4, 24), (10, 16)]
    errors = {f"h.{i}.a": {name: (i + 1) * 4.0 ** -find_format(name).bits for name in FORMATS} for i in range(3)}
    analysis = analysis_of(names, [2.0, 3.0, 4.0], shapes)
    total = sum(map(math.prod, shapes))
    for bits in (4.5, 5.3, 7.7):
        allocation = allocate_bits(analysis, bits, widths=FORMATS, method="error", errors=errors)
        costs = {layer.name: find_format(layer.format).cost(layer.shape) for layer in allocation.layers}
        sizes = {layer.name: layer.numel for layer in allocation.layers}
        assert allocation == pytest.approx({name: cost / sizes[name] for name, cost in costs.items()})
        fitting = [[find_format(name) for name in FORMATS if find_format(name).fits(shape)] for shape in shapes]
        best = min(
            sum(errors[f"h.{i}.a"][one.name] for i, one in enumerate(chosen))
            for chosen in itertools.product(*fitting)
            if sum(one.cost(shape) for one, shape in zip(chosen, shapes, strict=True)) <= bits * total
        )
        assert sum(costs.values()) <= bits * total
        assert sum(errors[layer.name][layer.format] for layer in allocation.layers) == pytest.approx(best)


def test_alpha_weights_the_errors_of_formats_and_is_their_noise_without_them(analysis_of):
    names = [f"h.{i}.a.weight" for i in range(3)]
    analysis = analysis_of(names, [2.0, 4.0, 8.0], [(64, 64)] * 3)
    widths = ("int2", "int4", "int8")
    assert [x.format for x in allocate_bits(analysis, 5, widths=widths, method="alpha", gamma=4).layers] == [
        "int8",
        "int4",
        "int2",
    ]
    errors = {f"h.{i}.a": {"int2": 1.0, "int4": 0.1, "int8": 0.01} for i in range(3)}
    weighted = allocate_bits(analysis, 5, widths=widths, method="alpha", gamma=9, errors=errors)
    assert [layer.format for layer in weighted.layers] == ["int8", "int4", "int2"]


def test_uniform_gives_one_width_or_format_the_largest_within_the_budget(analysis_of):
    names = [f"h.{i}.a.weight" for i in range(3)]
    analysis = analysis_of(names, [2.0, 4.0, 8.0], [(64, 64), (64, 32), (64, 64)])
    assert set(allocate_bits(analysis, 3.9, method="uniform").values()) == {3}
    found = allocate_bits(analysis, 4.6, widths=("nvfp4", "int4", "fp8"), method="uniform")
    assert {layer.format for layer in found.layers} == {"nvfp4"}


def test_the_layers_of_a_block_share_a_format_that_fits_all_of_them(analysis_of):
    names = ["h.0.a.weight", "h.0.b.weight", "h.1.a.weight"]
    analysis = analysis_of(names, [2.0, 2.0, 4.0], [(64, 64), (64, 40), (64, 64)])
    found = allocate_bits(analysis, 8, widths=("nvfp4", "int2"), unit="block", method="alpha")
    assert [layer.format for layer in found.layers] == ["int2", "int2", "nvfp4"]


def test_an_allocation_of_formats_is_saved_and_loaded(analysis_of, tmp_path):
    found = allocate_bits(analysis_of(["h.0.a.weight"], [2.0], [(64, 64)]), 5, widths=("nvfp4",))
    found.save(tmp_path / "bits.json")
    loaded = Allocation.load(tmp_path / "bits.json")
    assert (loaded, loaded.layers[0].format, loaded["h.0.a"]) == (found, "nvfp4", 4.5 + 32 / 64**2)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"bits": 2, "widths": ("nvfp4", "int4")}, "bits must be at least 4.33333, the cost of the cheapest formats"),
        ({"bits": math.nan, "widths": ("int4",)}, "bits must be at least"),
        ({"widths": ("int4", "fp5")}, "unknown format 'fp5'"),
        ({"widths": ("int4", 4)}, "all integers or all names"),
        ({"widths": "int4"}, "all integers or all names"),
        (
            {"widths": ("mxfp4", "int4_g64")},
            r"h\.0\.a: no format fits.*\(6, 48\).*mxfp4 \(32\), int4_g64 \(64\); int4_g16 fits",
        ),
        ({"widths": ("int4",), "method": "error"}, "quantization_errors"),
        ({"widths": ("int4",), "method": "error", "errors": {"h.9.a": {"int4": 1.0}}}, r"no error of int4 in h\.0\.a"),
        ({"widths": ("int4",), "method": "error", "errors": {"h.0.a": {"int4": math.nan}}}, "no error of int4"),
        ({"method": "error"}, "errors are of formats"),
        ({"widths": ("int4",), "method": "uniform", "errors": {}}, "errors have no effect with method 'uniform'"),
        ({"method": "search"}, "method must be one of 'alpha', 'error', 'uniform'"),
    ],
)
def test_formats_and_errors_that_do_not_fit_are_refused(analysis_of, options, match):
    analysis = analysis_of(["h.0.a.weight"], [2.0], [(6, 48)])
    with pytest.raises(AllocationError, match=match):
        allocate_bits(analysis, **({"bits": 5} | options))


def test_the_columns_of_weights_that_are_stored_as_inputs_by_outputs_are_their_inputs(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 64, "n_positions": 32, "bos_token_id": 0, "eos_token_id": 0}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=48, n_inner=96, n_layer=1, n_head=2, **sizes))
    model.save_pretrained(tmp_path / "gpt2")
    analysis = tb.analyze(model, progress=False)
    analysis.save(tmp_path / "analysis.json")
    for source in (
        analysis,
        tb.analyze(tmp_path / "gpt2", progress=False),
        tb.Analysis.load(tmp_path / "analysis.json"),
    ):
        allocation = allocate_bits(source, 9, widths=["int4_g16", "int8_g16"])
        shapes = {layer.name.partition(".h.0.")[2]: layer.shape for layer in allocation.layers}
        assert shapes == {
            "attn.c_attn": (144, 48),
            "attn.c_proj": (48, 48),
            "mlp.c_fc": (96, 48),
            "mlp.c_proj": (48, 96),
        }
        with pytest.raises(AllocationError, match="int4_g16 fits all layers"):
            allocate_bits(source, 9, widths=["int4_g96", "int4_g32"])  # 96 divides the outputs of c_attn and c_fc only
