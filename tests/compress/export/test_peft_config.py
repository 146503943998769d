"""LoRA ranks as PEFT applies them."""

import copy
import dataclasses
import json
import sys

import pytest
import torch

import tempbalance as tb
from tempbalance.compress import allocate_ranks, export_peft, lora_config
from tempbalance.errors import MissingExtraError

OF_PEFT = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # by PEFT


def with_alphas(analysis: tb.Analysis) -> tb.Analysis:
    """Give the rows made-up alphas, because untrained models have none."""
    rows = [dataclasses.replace(row, alpha=2 + 0.1 * i) for i, row in enumerate(analysis.layers)]
    return dataclasses.replace(analysis, layers=rows)


def adapted(model: torch.nn.Module) -> dict[str, tuple[int, float]]:
    """Return rank and factor of every LoRA layer of a PEFT model, by its original name."""
    return {
        name.removeprefix("base_model.model."): (module.r["default"], module.scaling["default"])
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
    }


@OF_PEFT
@pytest.mark.parametrize("unit", ["layer", "block"])
def test_peft_gives_every_module_its_rank_and_one_factor(unit, tmp_path):
    """Twelve layers: a pattern for ``layers.1`` must not match ``layers.10`` or ``layers.11``."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 12}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads))
    analysis = with_alphas(tb.analyze(model, progress=False))
    allocation = allocate_ranks(analysis, 4, unit=unit)
    assert len(allocation) == 12 * 7
    assert len(set(allocation.values())) > 4
    expected = {name: (rank, 2.0) for name, rank in allocation.items()}
    export_peft(allocation, tmp_path / "lora.json", scaling=2)
    saved = peft.LoraConfig(**json.loads((tmp_path / "lora.json").read_text()), lora_dropout=0.1)
    assert adapted(peft.get_peft_model(copy.deepcopy(model), saved)) == expected
    assert adapted(peft.get_peft_model(model, lora_config(allocation, scaling=2.0, lora_dropout=0.1))) == expected


@OF_PEFT
def test_peft_trains_the_allocated_number_of_parameters():
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    )
    allocation = allocate_ranks(with_alphas(tb.analyze(model, progress=False)), 4)
    assert list(allocation)[:2] == ["transformer.h.0.attn.c_attn", "transformer.h.0.attn.c_proj"]
    adapted_model = peft.get_peft_model(model, lora_config(allocation, fan_in_fan_out=True))
    trained = sum(weight.numel() for weight in adapted_model.parameters() if weight.requires_grad)
    assert (
        trained
        == sum(layer.parameters for layer in allocation.layers)
        <= 4 * sum(sum(layer.shape) for layer in allocation.layers)
    )


def test_a_module_whose_name_ends_like_an_allocated_one_is_not_adapted(analysis_of):
    peft = pytest.importorskip("peft")
    model = torch.nn.ModuleDict(
        {"fc": torch.nn.Linear(8, 8), "inner": torch.nn.ModuleDict({"fc": torch.nn.Linear(8, 8)})}
    )
    allocation = allocate_ranks(analysis_of(["fc.weight"], [2.0], [(8, 8)]), 2)
    assert adapted(peft.get_peft_model(model, lora_config(allocation))) == {"fc": (2, 1.0)}


def test_without_peft_the_extra_is_named(analysis_of, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    allocation = allocate_ranks(analysis_of(["fc.weight"], [2.0], [(8, 8)]), 2)
    with pytest.raises(MissingExtraError, match=r"tempbalance\[peft\]"):
        lora_config(allocation)
