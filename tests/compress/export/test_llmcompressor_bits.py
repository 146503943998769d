"""Real llm-compressor reads our recipes: every module gets the width that the plan says, and the folder loads again."""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import tempbalance as tb
from tempbalance.compress import Allocation, allocate_bits, export_llmcompressor

pytest.importorskip("llmcompressor", reason="needs llm-compressor")
transformers = pytest.importorskip("transformers", reason="needs transformers")

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs
SIZES = {"vocab_size": 32, "hidden_size": 64, "intermediate_size": 96, "max_position_embeddings": 32}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """It writes a log folder where it is called, and changes the environment."""
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def plan_for(model: torch.nn.Module) -> Allocation:
    """The untrained model has no alphas: its rows get some, all different."""
    analysis = tb.analyze(model, progress=False)
    rows = [dataclasses.replace(row, alpha=2 + 0.1 * (i % 23)) for i, row in enumerate(analysis.layers)]
    return allocate_bits(dataclasses.replace(analysis, layers=rows), 4, gamma=6)


def widths(model: torch.nn.Module) -> dict[str, int]:
    """Of every module that has a quantization scheme."""
    schemes = {name: getattr(module, "quantization_scheme", None) for name, module in model.named_modules()}
    return {name: scheme.weights.num_bits for name, scheme in schemes.items() if scheme is not None}


def test_every_module_gets_its_width_and_the_folder_loads():
    """Twelve layers: ``layers.1`` is not ``layers.10``."""
    from llmcompressor import oneshot

    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, **HEADS, num_hidden_layers=12)
    transformers.LlamaForCausalLM(config).save_pretrained("dense")
    model = transformers.LlamaForCausalLM.from_pretrained("dense")
    plan = plan_for(model)
    assert set(plan.values()) == {2, 3, 4, 8}
    export_llmcompressor(plan, "recipe.yaml", modifier="QuantizationModifier", group_size=32)
    oneshot(model=model, recipe="recipe.yaml", output_dir="quantized")
    assert widths(model) == dict(plan)
    loaded = transformers.LlamaForCausalLM.from_pretrained("quantized")
    for layer in plan.layers:
        packed = loaded.get_submodule(layer.name).weight_packed
        assert packed.element_size() * 8 * packed.numel() == layer.bits * layer.numel


def test_gptq_takes_the_same_groups():
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.recipe import Recipe

    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, **HEADS, num_hidden_layers=2))
    plan = plan_for(model)
    export_llmcompressor(plan, "recipe.yaml", group_size=32)
    (modifier,) = Recipe.create_instance("recipe.yaml").modifiers
    assert isinstance(modifier, GPTQModifier)
    groups = modifier.resolved_config.config_groups.values()
    assert {name: group.weights.num_bits for group in groups for name in group.targets} == dict(plan)


def test_experts_get_the_widths_of_their_own_projections():
    from llmcompressor import oneshot
    from llmcompressor.modeling.moe.linearize import linearize_moe

    torch.manual_seed(0)
    config = transformers.MixtralConfig(**SIZES, **HEADS, num_hidden_layers=2, num_local_experts=4)
    transformers.MixtralForCausalLM(config).save_pretrained("dense")
    model = transformers.MixtralForCausalLM.from_pretrained("dense")
    plan = plan_for(model)
    stack = "model.layers.1.mlp.experts"
    assert len(set(plan.values())) > 1
    export_llmcompressor(plan, "recipe.yaml", modifier="QuantizationModifier", group_size=32)
    linearize_moe(model)
    oneshot(model=model, recipe="recipe.yaml")
    found = widths(model)
    assert len(found) == len(plan)
    for i in range(4):
        assert found[f"{stack}.{i}.gate_proj"] == plan[f"{stack}.gate_up_proj:{i}:gate"]
        assert found[f"{stack}.{i}.up_proj"] == plan[f"{stack}.gate_up_proj:{i}:up"]
        assert found[f"{stack}.{i}.down_proj"] == plan[f"{stack}.down_proj:{i}"]
