"""Errors of number formats in the layers of a model."""

import math

import pytest
import torch
from torch import nn

import tempbalance as tb
from tempbalance.compress import find_format, quantization_errors
from tempbalance.errors import AllocationError, TokensError


def test_errors_are_the_squared_distances_from_the_rounded_weights(make_llama):
    model = make_llama()
    errors = quantization_errors(model, ["int4", "nvfp4", "int3_g64"], progress=False)
    assert len(errors) == 2 * 7 + 1
    weight = model.model.layers[1].mlp.down_proj.weight.detach()  # 32 x 160
    distances = {
        name: float((weight.double() - find_format(name).round(weight).double()).square().sum())
        for name in ("int4", "nvfp4")
    }
    assert errors["model.layers.1.mlp.down_proj"] == pytest.approx(distances)  # 64 does not divide 160


def test_a_folder_has_the_errors_of_the_live_model(make_llama, tmp_path):
    model = make_llama()
    model.save_pretrained(tmp_path)
    live, stored = (quantization_errors(source, ["mxfp4"], progress=False) for source in (model, tmp_path))
    assert live == stored


def test_columns_are_the_inputs_also_where_weights_are_stored_as_inputs_by_outputs():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    model = transformers.GPT2LMHeadModel(config)
    errors = quantization_errors(model, ["int4"], progress=False)
    weight = model.transformer.h[0].mlp.c_fc.weight.detach()  # 16 x 64
    expected = float((find_format("int4").round(weight.T) - weight.T).square().sum())
    assert errors["transformer.h.0.mlp.c_fc"]["int4"] == pytest.approx(expected, rel=1e-5)
    assert "transformer.h.0.attn.c_attn" in errors


def test_routers_of_experts_are_not_measured_since_allocations_leave_them_out():
    names = ["mlp.gate", "mlp.experts.0.up_proj", "mlp.experts.1.up_proj"]
    state = {f"layers.{i}.{name}.weight": torch.randn(32, 64) for i in range(2) for name in names}
    allocation = tb.allocate_bits(tb.analyze(state, progress=False), bits=4, method="uniform")
    assert [*quantization_errors(state, ["int4"], progress=False)] == [*allocation]


def test_with_calibration_errors_are_weighted_by_the_divergence_that_noise_causes(make_llama, tokens):
    """A layer whose output is multiplied by zero has no effect on the predictions."""
    model = make_llama()
    for head in range(4):  # no output of the value projection reaches the output
        model.model.layers[0].self_attn.o_proj.weight.data[:, 8 * head : 8 * head + 8] = 0
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = quantization_errors(model, ["int4", "int8"], calibration=tokens[:4], measure="noise", progress=False)
    again = quantization_errors(model, ["int4", "int8"], calibration=tokens[:4], measure="noise", progress=False)
    assert found == again
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert found["model.layers.0.self_attn.v_proj"] == {"int4": 0.0, "int8": 0.0}
    assert found["model.layers.1.self_attn.v_proj"]["int4"] > 0
    plain = quantization_errors(model, ["int4", "int8"], progress=False)
    name = "model.layers.1.mlp.up_proj"
    assert found[name]["int4"] / found[name]["int8"] == pytest.approx(plain[name]["int4"] / plain[name]["int8"])


def test_the_predicted_divergence_is_that_of_noise_of_the_same_size(make_llama, tokens):
    """The linearity theorem of HIGGS: the divergence is in proportion to the squared relative error."""
    model = make_llama()
    name = "model.layers.1.mlp.up_proj"
    found = quantization_errors(model, ["int5"], calibration=tokens[:4], measure="noise", progress=False)[name]["int5"]
    weight = model.get_submodule(name).weight
    batch = tokens[1][None, :17]
    with torch.no_grad():
        dense = model(batch)["logits"].log_softmax(-1)
        weight.copy_(find_format("int5").round(weight))
        rounded = model(batch)["logits"].log_softmax(-1)
    measured = float((dense.exp() * (dense - rounded)).sum(-1).mean())
    assert found == pytest.approx(measured, rel=1)


def test_rounding_measures_the_divergence_of_each_format_itself(make_llama, tokens):
    model = make_llama()
    name = "model.layers.1.mlp.up_proj"
    found = quantization_errors(model, ["int3", "nvfp4"], calibration=tokens[:4], progress=False)
    weight, batches = model.get_submodule(name).weight, [each[None] for each in tokens[:4]]
    with torch.no_grad():
        dense = [model(batch)["logits"].log_softmax(-1) for batch in batches]
        weight.copy_(find_format("int3").round(weight))
        rounded = [model(batch)["logits"].log_softmax(-1) for batch in batches]
    total = sum(float((a.exp() * (a - b)).sum()) for a, b in zip(dense, rounded, strict=True))
    assert found[name]["int3"] == pytest.approx(total / sum(map(len, tokens[:4])), rel=1e-3)
    assert set(found[name]) == {"int3", "nvfp4"}
    with pytest.raises(AllocationError, match="measure must be"):
        quantization_errors(model, ["int3"], calibration=tokens, measure="loss")


@pytest.mark.parametrize(("formats", "match"), [(["int4", "int99"], "int99"), (["int4"], "0 is not finite")])
def test_unknown_formats_and_weights_that_are_not_finite_are_refused(formats, match):
    model = nn.Sequential(nn.Linear(8, 8))
    model[0].weight.data[0, 0] = math.inf
    with pytest.raises(AllocationError, match=match):
        quantization_errors(model, formats, progress=False)


def test_calibration_needs_a_live_model_and_tokens_of_its_vocabulary(make_llama):
    with pytest.raises(AllocationError, match="a live model, or its folder"):
        quantization_errors({"a.weight": torch.ones(4, 4)}, ["int4"], calibration=[torch.arange(4)])
    for wrong, match in (([torch.full((8,), 999)], "999"), ([], "there is no token")):
        with pytest.raises(TokensError, match=match):
            quantization_errors(make_llama(), ["int4"], calibration=wrong, progress=False)
    with pytest.raises(TokensError, match="LlamaModel has no head that predicts the next token"):
        quantization_errors(make_llama().model, ["int4"], calibration=[torch.arange(4)], progress=False)
