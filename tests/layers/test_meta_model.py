"""The architecture of a configuration: built without data, and without doing what a file says."""

import logging
import socket
import sys
import time

import pytest

from tempbalance.layers.meta_model import build_on_meta

transformers = pytest.importorskip("transformers")
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "intermediate_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100,
}  # fmt: skip


@pytest.fixture
def reasons(caplog):
    """The logged reasons."""
    caplog.set_level(logging.INFO, "tempbalance")
    return caplog


def test_the_class_in_architectures_is_built_without_data():
    model = build_on_meta(LLAMA, 20)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_a_configuration_without_architectures_is_the_base_model():
    assert type(build_on_meta(LLAMA | {"architectures": None}, 20)).__name__ == "LlamaModel"


@pytest.mark.parametrize("name", ["pipeline", "AutoModel", "LlamaConfig", "Trainer", "NotAModel", "logging.sys"])
def test_only_model_classes_of_transformers_are_called(name, reasons):
    assert build_on_meta(LLAMA | {"architectures": [name]}, 20) is None
    assert "no model class" in reasons.text


@pytest.mark.parametrize(
    "change", [{"hidden_size": "x"}, {"model_type": "nothing"}, {"model_type": 3}, {"architectures": [7]}]
)
def test_a_configuration_that_cannot_be_built_is_logged(change, reasons):
    assert build_on_meta(LLAMA | change, 20) is None
    assert "cannot be built" in reasons.text


def test_code_and_kernels_that_a_file_names_are_not_used(monkeypatch):
    monkeypatch.setattr(socket, "socket", None)
    named = {
        "auto_map": {"AutoModel": "someone/else--modeling.Model"},
        "attn_implementation": "someone/kernels",
        "_attn_implementation": "someone/kernels",
        "trust_remote_code": True,
        "quantization_config": {"quant_method": "gptq", "bits": 4},
    }
    assert type(build_on_meta(LLAMA | named, 20)).__name__ == "LlamaForCausalLM"


def test_a_backbone_of_the_hub_is_not_fetched(monkeypatch, reasons):
    def refuse(*_, **__):
        raise AssertionError("the network is used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    start = time.monotonic()
    config = {
        "model_type": "maskformer",
        "architectures": ["MaskFormerModel"],
        "backbone": "someone/backbone",
        "use_timm_backbone": False,
    }
    assert build_on_meta(config, 300) is None
    assert "cannot be built" in reasons.text
    assert "the network is used" not in reasons.text
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"num_hidden_layers": 60_000}, "too many for its checkpoint"),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers is 1000000000000"),
        ({"num_labels": 10**10}, "num_labels is"),
        ({"text_config": {"sizes": [1, 10**10]}}, "sizes is"),
        ({"num_hidden_layers": 2**24}, "num_hidden_layers is"),
        ({"layer_types": ["full_attention"] * 10**6}, "layer_types has 1000000 items"),
        ({"model_type": "gemma3n_vision", "architectures": None, "num_classes": 2**24}, "num_classes is"),
        ({"model_type": "videomae", "architectures": None, "num_frames": 2**24}, "takes too long"),
    ],
)
def test_a_configuration_that_would_take_long_is_not_built(change, reason, reasons):
    profile, start = sys.getprofile(), time.process_time()
    assert build_on_meta(LLAMA | change, 20) is None
    assert reason in reasons.text
    assert time.process_time() - start < 20  # with an import of its module
    assert sys.getprofile() is profile


def test_infinite_settings_are_read_as_transformers_writes_them():
    config = transformers.Mamba2Config(
        hidden_size=32, num_hidden_layers=1, num_heads=4, head_dim=16, state_size=8, n_groups=1, vocab_size=50
    )
    written = config.to_dict() | {
        "architectures": ["Mamba2Model"], "time_step_limit": [0.0, {"__float__": "Infinity"}],
    }  # fmt: skip
    assert build_on_meta(written, 20) is not None
