"""Names on disk as names of the model, with the conversions of Transformers and without a list of them."""

import sys

import pytest
import torch

from tempbalance.layers.conversion import convert_names
from tempbalance.layers.meta_model import build_on_meta
from tempbalance.layers.names import StateDict

pytest.importorskip("transformers")
BERT = {
    "model_type": "bert", "architectures": ["BertForMaskedLM"], "hidden_size": 8, "num_hidden_layers": 1,
    "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 20,
}  # fmt: skip
QUERY = "bert.encoder.layer.0.attention.self.query.weight"


@pytest.fixture(params=[True, False], ids=["conversions", "no conversions"])
def model(request, monkeypatch):
    if not request.param:
        monkeypatch.setitem(sys.modules, "transformers.conversion_mapping", None)
    return build_on_meta(BERT, 40)


def sources(model, *names):
    """The stored names of each parameter of the model."""
    tensors = StateDict({name: torch.zeros(8, 8) for name in names}).tensors
    found = convert_names(model, tensors)
    return {live: [source.name for source in node.walk() if source.name] for live, node in found.nodes.items()}


@pytest.mark.parametrize("name", [QUERY, QUERY.removeprefix("bert."), f"module.{QUERY}", f"_orig_mod.module.{QUERY}"])
def test_a_prefix_of_the_base_model_or_of_a_wrapper_is_added_or_left_out(model, name):
    assert sources(model, name) == {QUERY: [name]}


def test_tensors_that_the_model_does_not_have_are_outside(model):
    tensors = StateDict({"bert.adapter.weight": torch.zeros(8, 8)}).tensors
    found = convert_names(model, tensors)
    assert found.nodes == {}
    assert list(found.outside) == ["bert.adapter.weight"]


def test_patterns_of_a_model_class_rename_where_there_is_no_list_of_conversions(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers.conversion_mapping", None)
    model = build_on_meta(BERT, 40)
    model._checkpoint_conversion_mapping = {"^text_model": "bert"}
    assert sources(model, QUERY.replace("bert.", "text_model.")) == {QUERY: [QUERY.replace("bert.", "text_model.")]}


def test_a_module_that_is_called_like_a_wrapper_keeps_its_tensors():
    transformers = pytest.importorskip("transformers")
    config = transformers.LevitConfig(hidden_sizes=[16, 16, 16], num_attention_heads=[2, 2, 2], depths=[1, 1, 1])
    model = build_on_meta(config.to_dict() | {"architectures": ["LevitModel"]}, 400)
    names = [name for name, _ in model.named_parameters()]
    assert any(".module." in name for name in names)
    assert sources(model, *names) == {name: [name] for name in names}
