"""LoRA ranks under one budget of parameters, and as PEFT applies them."""

import dataclasses
import itertools
import math
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tempbalance as tb
from tempbalance.compress import Allocation, allocate_ranks, lora_config
from tempbalance.errors import AllocationError, MissingExtraError

ALPHAS = st.floats(1.1, 20.0) | st.sampled_from([math.nan, math.inf])
LAYERS = st.lists(st.tuples(ALPHAS, st.integers(1, 300), st.integers(1, 300)), min_size=1, max_size=20)
NAMES = [f"h.{i // 2}.{'ab'[i % 2]}.weight" for i in range(20)]


def parameters(plan: Allocation) -> int:
    return sum(layer.parameters for layer in plan.layers)


@given(
    layers=LAYERS,
    bounds=st.tuples(*[st.integers(1, 24)] * 3).map(sorted),
    beta=st.floats(0.0, 6.0),
    unit=st.sampled_from(["layer", "block"]),
)
def test_the_budget_is_never_exceeded_and_no_rank_fits_in(analysis_of, layers, bounds, beta, unit):
    alphas, rows, columns = zip(*layers, strict=True)
    low, rank, high = bounds
    shapes = list(zip(rows, columns, strict=True))
    analysis = analysis_of(NAMES[: len(layers)], alphas, shapes)
    plan = allocate_ranks(analysis, rank, low=low, high=high, beta=beta, unit=unit)
    left = rank * sum(map(sum, shapes)) - parameters(plan)
    assert left >= 0
    assert all(low <= value <= high for value in plan.values())
    costs: dict[str, int] = {}
    for layer in plan.layers:
        costs[layer.unit] = costs.get(layer.unit, 0) + sum(layer.shape)
    assert all(costs[layer.unit] > left for layer in plan.layers if layer.rank < high)


@given(alphas=st.lists(st.floats(1.1, 9.0), min_size=2, max_size=20, unique=True), beta=st.floats(0.5, 4.0))
def test_light_tails_get_higher_ranks_in_proportion(analysis_of, alphas, beta):
    analysis = analysis_of([f"h.{i}.a.weight" for i in range(len(alphas))], alphas, [(64, 64)] * len(alphas))
    plan = allocate_ranks(analysis, 16, beta=beta, high=16 * len(alphas), low=1)
    powers = [alpha**beta for alpha in alphas]
    ranks = list(plan.values())
    if min(ranks) > 1:  # no bound is met
        exact = [16 * len(alphas) * power / sum(powers) for power in powers]
        assert all(abs(a - b) < 1 + 1e-9 for a, b in zip(ranks, exact, strict=True))
    by_alpha = [rank for _, rank in sorted(zip(alphas, ranks, strict=True))]
    assert all(a <= b + 1 for a, b in itertools.pairwise(by_alpha))


def test_equal_alphas_are_uniform(analysis_of):
    shapes = [(64, 32 * (i + 1)) for i in range(8)]
    plan = allocate_ranks(analysis_of(NAMES[:8], [3.0] * 8, shapes), 8, unit="layer")
    assert set(plan.values()) == {8}


def test_modules_without_alpha_count_as_median(analysis_of):
    names, shapes = [f"h.{i}.a.weight" for i in range(3)], [(64, 64)] * 3
    plan = allocate_ranks(analysis_of(names, [2.0, math.nan, 6.0], shapes), 8)
    assert list(plan.values()) == list(allocate_ranks(analysis_of(names, [2.0, 4.0, 6.0], shapes), 8).values())
    assert set(allocate_ranks(analysis_of(names, [math.nan] * 3, shapes), 8).values()) == {8}


def test_modules_of_a_block_share_a_rank(analysis_of):
    analysis = analysis_of(NAMES[:6], [2.0, 3.0, 4.0, 5.0, 6.0, 7.0], [(64, 64)] * 6)
    ranks = list(allocate_ranks(analysis, 8).values())
    assert ranks[::2] == ranks[1::2]
    assert len(set(allocate_ranks(analysis, 8, unit="layer").values())) == 6


def test_a_fused_weight_is_one_module(analysis_of):
    names = ["h.0.qkv.weight:q", "h.0.qkv.weight:k", "h.0.qkv.weight:v"]
    plan = allocate_ranks(analysis_of(names, [2.0, 3.0, 4.0], [(64, 64), (16, 64), (16, 64)]), 8)
    assert dict(plan) == {"h.0.qkv": 8}
    assert (plan.layers[0].shape, plan.layers[0].alpha, plan.layers[0].parameters) == ((96, 64), 3.0, 8 * 160)


def test_experts_are_not_adapted(analysis_of):
    names = ["h.0.a.weight", "h.0.experts.down_proj:0"]
    assert list(allocate_ranks(analysis_of(names, [2.0, 3.0], [(8, 8)] * 2), 2)) == ["h.0.a"]


@pytest.mark.parametrize("bad", [{"rank": 0}, {"rank": 8, "low": 0}, {"rank": 8, "low": 9}, {"rank": 8, "high": 7}])
def test_ranks_out_of_range(analysis_of, bad):
    with pytest.raises(AllocationError, match="low <= rank <= high"):
        allocate_ranks(analysis_of(["h.0.a.weight"], [2.0], [(8, 8)]), **bad)


@pytest.mark.parametrize("beta", [-1.0, 51.0, math.nan, math.inf])
def test_impossible_beta(analysis_of, beta):
    with pytest.raises(AllocationError, match="beta"):
        allocate_ranks(analysis_of(["h.0.a.weight"], [2.0], [(8, 8)]), 8, beta=beta)


def test_nothing_to_adapt():
    with pytest.raises(AllocationError, match="no weight of kind linear"):
        allocate_ranks(tb.Analysis(source="x", settings={}, layers=[]), 8)


def test_a_plan_survives_its_file(analysis_of, tmp_path):
    plan = allocate_ranks(analysis_of(NAMES[:2], [2.0, math.nan], [(64, 64)] * 2), 8)
    plan.save(tmp_path / "ranks.json")
    assert Allocation.load(tmp_path / "ranks.json") == plan


def with_alphas(analysis: tb.Analysis) -> tb.Analysis:
    """The untrained models of these tests have no alphas: give the rows some, all different."""
    rows = [dataclasses.replace(row, alpha=2 + 0.1 * i) for i, row in enumerate(analysis.layers)]
    return dataclasses.replace(analysis, layers=rows)


def adapted(model: torch.nn.Module) -> dict[str, tuple[int, float]]:
    """Rank and factor of every LoRA layer of a PEFT model, by the name that it had before."""
    return {
        name.removeprefix("base_model.model."): (module.r["default"], module.scaling["default"])
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
    }


OF_PEFT = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # it reads it


@OF_PEFT
@pytest.mark.parametrize("unit", ["layer", "block"])
def test_peft_gives_every_module_its_rank_and_one_factor(unit):
    """Twelve layers: a pattern for ``layers.1`` must not match ``layers.10`` or ``layers.11``."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 12}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads))
    analysis = with_alphas(tb.analyze(model, progress=False))
    plan = allocate_ranks(analysis, 4, unit=unit)
    assert len(plan) == 12 * 7
    assert len(set(plan.values())) > 4
    found = adapted(peft.get_peft_model(model, lora_config(plan, scaling=2.0, lora_dropout=0.1)))
    assert found == {name: (rank, 2.0) for name, rank in plan.items()}


@OF_PEFT
def test_peft_trains_as_many_parameters_as_the_plan_says():
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    )
    plan = allocate_ranks(with_alphas(tb.analyze(model, progress=False)), 4)
    assert list(plan)[:2] == ["transformer.h.0.attn.c_attn", "transformer.h.0.attn.c_proj"]
    adapted_model = peft.get_peft_model(model, lora_config(plan, fan_in_fan_out=True))
    trained = sum(weight.numel() for weight in adapted_model.parameters() if weight.requires_grad)
    assert trained == parameters(plan) <= 4 * sum(sum(layer.shape) for layer in plan.layers)


def test_names_that_end_like_another_name(analysis_of):
    """``fc`` is adapted, ``inner.fc`` is not."""
    peft = pytest.importorskip("peft")
    model = torch.nn.ModuleDict(
        {"fc": torch.nn.Linear(8, 8), "inner": torch.nn.ModuleDict({"fc": torch.nn.Linear(8, 8)})}
    )
    plan = allocate_ranks(analysis_of(["fc.weight"], [2.0], [(8, 8)]), 2)
    assert adapted(peft.get_peft_model(model, lora_config(plan))) == {"fc": (2, 1.0)}


def test_without_peft(analysis_of, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    plan = allocate_ranks(analysis_of(["fc.weight"], [2.0], [(8, 8)]), 2)
    with pytest.raises(MissingExtraError, match=r"tempbalance\[peft\]"):
        lora_config(plan)
