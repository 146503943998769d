"""Settings of an adapter from a file: wrong types, and patterns that would take very long."""

import json

import pytest
import torch
from safetensors.torch import save_file

import tempbalance as tb
from tempbalance.errors import CorruptFileError
from tempbalance.layers.adapter_settings import check_settings

LAYER = "base_model.model.layers.0.up_proj"


def write(folder, settings):
    tensors = {f"{LAYER}.lora_A.weight": torch.randn(4, 24), f"{LAYER}.lora_B.weight": torch.randn(32, 4)}
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8} | settings))
    return folder


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("r", "four"),
        ("r", -1),
        ("r", True),
        ("peft_type", ["LORA"]),
        ("lora_alpha", "8"),
        ("rank_pattern", [2]),
        ("rank_pattern", {"up_proj": "two"}),
        ("alpha_pattern", {"(": 2}),
        ("alpha_pattern", {"up_proj": -1}),
        ("target_parameters", 5),
        ("modules_to_save", "lm_head"),
        ("auto_mapping", "x"),
        ("target_modules", 3),
        ("target_modules", "(a+)+b"),
        ("exclude_modules", "(?:a*)*b"),
        ("rank_pattern", {"((a+))+b": 2}),
        ("target_modules", ".*a.*a.*a.*a.*a.*a.*a.*b"),
        ("layers_pattern", "a" * 5000),
    ],
    ids=repr,
)
def test_a_setting_of_a_wrong_type_or_a_slow_pattern_is_refused_by_name(key, value, tmp_path):
    with pytest.raises(CorruptFileError, match=key):
        tb.analyze(write(tmp_path, {key: value}))


@pytest.mark.parametrize(
    "pattern",
    [
        r".*\.(q_proj|v_proj)$",
        r"^(?!.*visual).*(?:q_proj|k_proj).*",
        r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:k_proj|v_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.up)",
        "all-linear",
        "up_proj",
    ],
)
def test_patterns_of_training_tools_are_accepted(pattern):
    check_settings({"target_modules": pattern})


@pytest.mark.parametrize(
    ("settings", "scale"),
    [({}, 2), ({"use_rslora": True}, 4), ({"alpha_pattern": {"up_proj": 4}}, 1), ({"alpha_pattern": {"proj": 4}}, 2)],
    ids=repr,
)
def test_the_scale_of_an_update_follows_the_settings(settings, scale, tmp_path):
    torch.manual_seed(0)
    folder = write(tmp_path, settings)
    torch.manual_seed(0)
    a, b = torch.randn(4, 24).double(), torch.randn(32, 4).double()
    (row,) = tb.analyze(folder).layers
    assert row.lambda_max == pytest.approx(float(torch.linalg.matrix_norm(scale * b @ a, 2)) ** 2, rel=1e-6)
