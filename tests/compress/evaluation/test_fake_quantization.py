"""Weights of a live model, rounded for a while as allocated."""

import dataclasses

import pytest
import torch
from torch import nn

import tempbalance as tb
from tempbalance.compress import allocate_bits, find_format, quantized
from tempbalance.errors import AllocationError


def test_the_perplexity_of_an_allocation_is_that_of_the_rounded_model(make_llama, tokens):
    model = make_llama()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    allocation = allocate_bits(tb.analyze(model, progress=False), 3, method="alpha", widths=("int2", "int4", "fp8"))
    assert len({layer.format for layer in allocation.layers}) > 1
    found = tb.perplexity(model, tokens, bits=allocation, progress=False)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    for layer in allocation.layers:
        weight = model.get_submodule(layer.name).weight
        weight.data = find_format(layer.format).round(weight)
    assert found == tb.perplexity(model, tokens, progress=False)


def test_more_bits_predict_stories_better(stories):
    folder, documents = stories
    model = tb.compress.load_causal_lm(folder)
    analysis = tb.analyze(model, progress=False)
    dense = float(tb.perplexity(model, documents[:4], progress=False))
    found = [
        float(tb.perplexity(model, documents[:4], bits=allocate_bits(analysis, bits, method="uniform"), progress=False))
        for bits in (3, 4, 8)
    ]
    assert found == sorted(found, reverse=True)
    assert found[-1] == pytest.approx(dense, rel=0.01)
    assert found[0] > 1.5 * dense


@pytest.mark.parametrize("format_name", ["int4", "int4_g8"])
def test_parts_of_fused_weights_and_weights_of_inputs_by_outputs_are_rounded_along_their_inputs(format_name):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    model = transformers.GPT2LMHeadModel(config)
    allocation = allocate_bits(tb.analyze(model, progress=False), 16, widths=(format_name,), method="uniform")
    weight = model.transformer.h[0].attn.c_attn.weight  # 16 inputs x 48 outputs
    expected = find_format(format_name).round(weight.detach().T).T
    with quantized(model, allocation):
        assert weight.equal(expected)
    assert not weight.equal(expected)


def test_an_allocation_for_a_state_dict_that_does_not_tell_inputs_from_outputs_is_refused():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    model = transformers.GPT2LMHeadModel(config)
    allocation = allocate_bits(tb.analyze(model.state_dict(), progress=False), 16, widths=("int4",), method="uniform")
    with pytest.raises(AllocationError, match=r"is stored as \(inputs, outputs\)"), quantized(model, allocation):
        pass


def test_experts_are_rounded_one_by_one():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 2}
    model = transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes, **heads))
    allocation = allocate_bits(tb.analyze(model, progress=False), 16, widths=("mxfp4",), method="uniform")
    experts = model.model.layers[0].mlp.experts
    expected = [find_format("mxfp4").round(each.detach()) for each in experts.down_proj]
    gates = [find_format("mxfp4").round(each.detach()[:64]) for each in experts.gate_up_proj]
    with quantized(model, allocation):
        assert all(a.equal(b) for a, b in zip(experts.down_proj, expected, strict=True))
        assert all(a[:64].equal(b) for a, b in zip(experts.gate_up_proj, gates, strict=True))


def test_weights_are_restored_if_the_block_raises(make_llama):
    model = make_llama()
    before = model.model.layers[0].mlp.up_proj.weight.detach().clone()
    allocation = allocate_bits(tb.analyze(model, progress=False), 4, method="uniform")
    with pytest.raises(KeyError), quantized(model, allocation):
        assert not model.model.layers[0].mlp.up_proj.weight.equal(before)
        raise KeyError
    assert model.model.layers[0].mlp.up_proj.weight.equal(before)


def test_an_allocation_of_another_model_or_quantity_is_refused_and_nothing_changes(make_llama, tokens):
    model, other = make_llama(), make_llama(hidden_size=64)
    analysis = tb.analyze(model, progress=False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    allocation = allocate_bits(analysis, 4, method="uniform")
    with pytest.raises(
        AllocationError, match=r"another model: model\.layers\.0\.self_attn\.q_proj, of shape \(32, 32\)"
    ):
        tb.perplexity(other, tokens, bits=allocation, progress=False)
    with pytest.raises(AllocationError, match="is not among 0"), quantized(nn.Sequential(nn.Linear(4, 4)), allocation):
        pass
    with pytest.raises(AllocationError, match="expected an allocation of bits, got one of sparsity"):
        tb.perplexity(model, tokens, bits=tb.allocate_sparsity(analysis, 0.5), progress=False)
    with pytest.raises(AllocationError, match="multiple of 64"), quantized(model, allocation, group_size=64):
        pass
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def test_a_plain_width_without_integers_is_refused(analysis_of):
    allocation = allocate_bits(analysis_of(["0.weight"], [2.0], [(4, 4)]), 1, widths=(1,))
    with (
        pytest.raises(AllocationError, match="0 has 1 bits and no format"),
        quantized(nn.Sequential(nn.Linear(4, 4)), allocation),
    ):
        pass


def test_a_weight_with_a_parametrization_is_refused(analysis_of):
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))
    (layer,) = allocate_bits(tb.analyze(model, progress=False), 4, method="uniform").layers
    allocation = allocate_bits(analysis_of(["0.weight"], [2.0], [(4, 4)]), 4, method="uniform")
    allocation = dataclasses.replace(allocation, layers=(layer,))
    with pytest.raises(AllocationError, match="is computed from other tensors"), quantized(model, allocation):
        pass
