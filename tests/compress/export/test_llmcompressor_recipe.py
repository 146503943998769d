"""Plans for other tools: what they make of them is what the plan says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

import tempbalance as tb
from tempbalance.compress import Allocation, LayerAllocation, export_llmcompressor, export_npy, export_torch
from tempbalance.errors import AllocationError, AnalysisError


def plan_of(zeros: dict[str, int], shapes: dict[str, tuple[int, ...]], group: int | None = None) -> Allocation:
    layers = [
        LayerAllocation(name=n, unit=n, shape=shapes[n], alpha=3.0, stderr=0.1, zeros=z) for n, z in zeros.items()
    ]
    total = sum(layer.zeros for layer in layers) / sum(layer.numel for layer in layers)
    return Allocation(source="m", budget=total, method="alpha", unit="layer", layers=tuple(layers), group=group)


def plan_for(model: nn.Module, share: Any = lambda place, numel: numel * (place + 1) // 20) -> Allocation:
    """A plan in which every linear layer of a block has another sparsity."""
    shapes = {f"{n}.weight": tuple(m.weight.shape) for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    shapes.pop("lm_head.weight", None)
    zeros = {name: share(place, int(np.prod(shape))) for place, (name, shape) in enumerate(shapes.items())}
    return plan_of(zeros, shapes)


def zeros_of(model: nn.Module, plan: Allocation) -> dict[str, int]:
    return {name: int((model.get_parameter(name) == 0).sum()) for name in plan}


def run_recipe(model: Any, path: Path, tokens: list[Tensor]) -> None:
    """What a user does with a recipe."""
    datasets, tokenizers = pytest.importorskip("datasets"), pytest.importorskip("tokenizers")
    llmcompressor = pytest.importorskip("llmcompressor")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0}, unk_token="?"))  # it asks for one, for nothing
    rows = {"input_ids": [t.tolist() for t in tokens], "attention_mask": [[1] * len(t) for t in tokens]}
    transformers = pytest.importorskip("transformers")
    llmcompressor.oneshot(
        model=model, recipe=str(path), dataset=datasets.Dataset.from_dict(rows), pipeline="sequential",
        num_calibration_samples=len(tokens), max_seq_length=24, shuffle_calibration_samples=False,
        processor=transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="?"),
    )  # fmt: skip


@pytest.fixture
def saved_llama(make_llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A model that came from a folder: oneshot asks for its configuration there."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    make_llama().save_pretrained(tmp_path / "model")
    return type(make_llama()).from_pretrained(tmp_path / "model")


def test_llm_compressor_makes_of_a_sparsegpt_recipe_what_the_plan_says(
    saved_llama: Any, tokens: list[Tensor], tmp_path: Path
):
    plan = plan_for(saved_llama, lambda place, numel: (0, 1, numel)[place] if place < 3 else numel * (place + 1) // 20)
    export_llmcompressor(plan, tmp_path / "recipe.yaml")
    run_recipe(saved_llama, tmp_path / "recipe.yaml", tokens)
    made, wanted = zeros_of(saved_llama, plan), {layer.name: layer.zeros for layer in plan.layers}
    blocks = {layer.name: -(-layer.shape[1] // 128) for layer in plan.layers}
    assert all(wanted[name] - blocks[name] < made[name] <= wanted[name] for name in plan)


def test_llm_compressor_makes_of_a_wanda_recipe_what_the_plan_says(
    saved_llama: Any, tokens: list[Tensor], tmp_path: Path
):
    plan = plan_for(saved_llama)
    export_llmcompressor(plan, tmp_path / "recipe.yaml", modifier="WandaPruningModifier")
    run_recipe(saved_llama, tmp_path / "recipe.yaml", tokens)
    rows = {layer.name: layer.shape for layer in plan.layers}
    assert zeros_of(saved_llama, plan) == {n: rows[n][0] * int(rows[n][1] * plan[n]) for n in plan}


def test_llm_compressor_makes_n_of_m_of_a_plan_with_groups(saved_llama: Any, tokens: list[Tensor], tmp_path: Path):
    plan = replace(plan_for(saved_llama, lambda place, numel: numel * (place % 5) // 8), group=8)
    export_llmcompressor(plan, tmp_path / "recipe.yaml", modifier="WandaPruningModifier")
    run_recipe(saved_llama, tmp_path / "recipe.yaml", tokens)
    for place, name in enumerate(plan):
        each = (saved_llama.get_parameter(name).reshape(-1, 8) == 0).sum(dim=1)
        assert each.unique().tolist() == [place % 5], name


@settings(max_examples=25, deadline=None)
@given(
    names=st.lists(st.text(min_size=1, max_size=12).filter(str.isprintable), min_size=1, max_size=5, unique=True),
    data=st.data(),
)
def test_a_recipe_is_read_back_with_its_names_and_sparsities(
    names: list[str], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
):
    recipe = pytest.importorskip("llmcompressor.recipe")
    weights = [f"{name}.weight" for name in names]
    zeros = {name: data.draw(st.integers(1, 10**7)) for name in weights}
    plan = plan_of(zeros, dict.fromkeys(weights, (2500, 4000)))
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    export_llmcompressor(plan, path, modifier="WandaPruningModifier")
    modifiers = recipe.Recipe.create_instance(str(path)).modifiers
    assert {f"{m.targets[0]}.weight": m.sparsity for m in modifiers} == dict(plan)
    assert all(len(m.targets) == 1 for m in modifiers)


def test_an_array_has_the_order_of_the_model(make_llama: Any, tmp_path: Path):
    plan = plan_for(make_llama())
    export_npy(plan, tmp_path / "ratios.npy")
    array = np.load(tmp_path / "ratios.npy", allow_pickle=False)
    assert (array.dtype, array.tolist()) == (np.float64, list(plan.values()))


@pytest.mark.parametrize("name", ["h.0.attn.c_attn.weight:q", "h.0.experts.down_proj:3", "h.0.experts.down_proj"])
@pytest.mark.parametrize("export", [export_llmcompressor, export_npy])
def test_a_part_of_a_parameter_is_refused_by_name(name: str, export: Any, tmp_path: Path):
    plan = plan_of({"h.0.fc.weight": 8, name: 8}, {"h.0.fc.weight": (4, 4), name: (4, 4)})
    with pytest.raises(AllocationError, match=name):
        export(plan, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_method_is_refused(tmp_path: Path):
    with pytest.raises(AllocationError, match="magnitude"):
        export_llmcompressor(plan_of({"a.weight": 8}, {"a.weight": (4, 4)}), tmp_path / "out", modifier="magnitude")  # type: ignore[arg-type]


@pytest.mark.parametrize("export", [export_llmcompressor, export_npy])
def test_a_file_that_cannot_be_written_is_an_error(export: Any, tmp_path: Path):
    with pytest.raises(AnalysisError):
        export(plan_of({"a.weight": 8}, {"a.weight": (4, 4)}), tmp_path / "missing" / "out")


def test_masks_keep_the_zeros_through_training(trained: nn.Sequential):
    plan = tb.allocate_sparsity(tb.analyze(trained, progress=False), sparsity=0.6, unit="layer")
    tb.compress.prune(trained, plan, progress=False)
    export_torch(plan, trained)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        trained(torch.randn(8, 80, generator=torch.Generator().manual_seed(0))).square().sum().backward()
        optimizer.step()
    for layer in trained:
        torch_prune.remove(layer, "weight")
    assert zeros_of(trained, plan) == {layer.name: layer.zeros for layer in plan.layers}


def test_parts_of_one_parameter_share_its_mask():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    model = transformers.GPT2LMHeadModel(config)
    name = "transformer.h.0.attn.c_attn.weight"
    plan = plan_of({f"{name}:q": 64, f"{name}:v": 192}, {f"{name}:q": (16, 16), f"{name}:v": (16, 16)})
    tb.compress.prune(model, plan, progress=False)
    export_torch(plan, model)
    mask = model.transformer.h[0].attn.c_attn.weight_mask
    assert [int((part == 0).sum()) for part in mask.split(16, dim=1)] == [64, 0, 192]


def test_a_model_that_is_not_pruned_yet_gets_no_mask(trained: nn.Sequential):
    plan = tb.allocate_sparsity(tb.analyze(trained, progress=False), sparsity=0.6, unit="layer")
    before = list(trained.state_dict())
    with pytest.raises(AllocationError, match="prune the model first"):
        export_torch(plan, trained)
    assert list(trained.state_dict()) == before


def test_a_plan_for_another_model_is_refused(trained: nn.Sequential):
    plan = plan_of({"0.weight": 8}, {"0.weight": (4, 4)})
    with pytest.raises(AllocationError, match="another model"):
        export_torch(plan, trained)
