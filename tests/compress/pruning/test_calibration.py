"""Input norms of linear layers over calibration tokens."""

import logging

import pytest
import torch
from torch import nn

from tempbalance.compress.pruning.calibration import input_norms, norms_by_block


def test_an_expert_that_no_token_reaches_any_more_has_equal_norms(caplog):
    used, left = nn.Linear(4, 3), nn.Linear(4, 3)
    with caplog.at_level(logging.WARNING):
        norms = input_norms({"used": used, "left": left}, lambda: used(2 * torch.ones(9, 4)))
    assert norms["used"].tolist() == [6.0] * 4
    assert norms["left"].tolist() == [1.0] * 4
    assert [record for record in caplog.records if "left" in record.message]


def test_arguments_of_blocks_that_depend_on_the_tokens_are_those_of_each_batch():
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, "Gemma4TextConfig"):
        pytest.skip("this version of Transformers has no Gemma 4")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = transformers.Gemma4TextConfig(
        vocab_size=64, vocab_size_per_layer_input=64, hidden_size_per_layer_input=8, num_hidden_layers=2, head_dim=16,
        global_head_dim=16, num_kv_shared_layers=0, layer_types=["sliding_attention", "full_attention"],
        pad_token_id=0, **sizes,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.Gemma4ForCausalLM(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.15)
    tokens = [torch.randint(3, 60, (12,)) for _ in range(20)]  # three batches
    layers = {f"model.layers.{i}": [f"model.layers.{i}.mlp.gate_proj"] for i in range(2)}
    modules = {name: model.get_submodule(name) for names in layers.values() for name in names}
    with torch.no_grad():
        expected = input_norms(modules, lambda: [model(input_ids=sequence[None]) for sequence in tokens])
    found = {name: norm for _, norms in norms_by_block(model, layers, tokens, False) for name, norm in norms.items()}
    assert found.keys() == expected.keys()
    for name, norm in found.items():
        torch.testing.assert_close(norm, expected[name])
