"""search_bits: within the budget, no worse than the allocations it starts from, and the model as before."""

import math

import pytest
import torch

import tempbalance as tb
from tempbalance.compress import SearchSettings, quantized, search_bits
from tempbalance.errors import AllocationError, TokensError

FORMATS = ("int2_g8", "int3_g8", "int4_g8", "int8_g8")  # 4, 5, 6 and 10 bits with scales
FAST = SearchSettings(generations=5, children=6, tokens=200)


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("unit", ["layer", "block"])
def test_the_search_is_no_worse_than_the_simple_allocations_on_its_text(llama, text, unit):
    before = state(llama)
    found = search_bits(llama, 5.5, text, FORMATS, FAST, unit=unit, progress=False)
    scores = {score.method: score.kl for score in found.compared}
    assert set(scores) == {"search", "uniform", "error", "error on text", "alpha"}
    assert scores["search"] <= min(kl for name, kl in scores.items() if name != "search")
    assert list(scores.values()) == sorted(scores.values())
    assert found.quantity == "bits"
    assert math.fsum(layer.bits * layer.numel for layer in found.layers) <= 5.5 * found.covered
    assert len({(layer.unit, layer.format) for layer in found.layers}) == (21 if unit == "layer" else 3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in llama.state_dict().items())
    assert llama.training


def test_a_score_is_the_divergence_of_the_quantized_model(llama, text):
    found = search_bits(llama, 5.5, text, FORMATS, SearchSettings(generations=1, children=2), progress=False)
    llama.eval()
    kls = []
    for sequence in text:
        with torch.no_grad():
            p = llama(input_ids=sequence[None]).logits[0].double().log_softmax(-1)
            with quantized(llama, found):
                q = llama(input_ids=sequence[None]).logits[0].double().log_softmax(-1)
        kls += (p.exp() * (p - q)).sum(-1).tolist()
    (score,) = (score for score in found.compared if score.method == "search")
    assert score.kl == pytest.approx(sum(kls) / len(kls), rel=1e-4)


def test_transposed_and_fused_weights_are_searched_and_restored(text):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2))
    before = state(model)
    settings = SearchSettings(generations=1, children=2)
    for bits, formats in ((7, ["int2_g4", "int4_g4"]), (5, ["int2", "int4"])):  # the second: a scale for each output
        found = search_bits(model, bits, text, formats, settings, progress=False)
        assert "transformer.h.0.attn.c_attn" in found
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_search_resumes_and_another_one_is_refused(llama, text, tmp_path):
    settings, formats = {"children": 4, "tokens": 60}, ("int2_g8", "int4_g8")
    whole = search_bits(llama, 5, text, formats, SearchSettings(generations=4, **settings), progress=False)
    for generations in (2, 4):
        folder = SearchSettings(generations=generations, folder=tmp_path, **settings)
        resumed = search_bits(llama, 5, text, formats, folder, progress=False)
    assert resumed == whole
    for bits, names, message in ((5.5, formats, "another budget"), (5, ("int2_g8", "int8_g8"), "another formats")):
        with pytest.raises(AllocationError, match=message):
            search_bits(llama, bits, text, names, folder, progress=False)
    with pytest.raises(AllocationError, match="another budget"):
        tb.compress.search_sparsity(llama, 0.5, text, settings=folder, progress=False)


def test_a_folder_is_searched_as_its_model(llama, text, tmp_path):
    llama.save_pretrained(tmp_path)
    one, other = (search_bits(each, 5, text, FORMATS[:2], FAST, progress=False) for each in (llama, tmp_path))
    assert dict(one) == dict(other)


def test_bad_input_is_refused(llama, text):
    for given, error, message in (
        ({"formats": "int4"}, AllocationError, "several names"),
        ({"formats": []}, AllocationError, "several names"),
        ({"formats": ["int4_g8", "fp3"]}, AllocationError, "unknown format 'fp3'"),
        ({"formats": ["nvfp4"]}, AllocationError, "no format fits"),
        ({"bits": 3.9}, AllocationError, "bits must be at least 4"),
        ({"unit": "row"}, AllocationError, "unit must be"),
        ({"calibration": []}, TokensError, "there is no token"),
        ({"calibration": [[3, 50]]}, TokensError, "token 50 is not in the vocabulary"),
        ({"model": llama.model}, TokensError, "no head that predicts the next token"),
        ({"analysis": tb.analyze({"a.weight": torch.randn(16, 16)}, progress=False)}, AllocationError, "no error of"),
    ):
        arguments = {"model": llama, "bits": 6, "calibration": text, "formats": FORMATS} | given
        with pytest.raises(error, match=message):
            search_bits(**arguments, settings=FAST, progress=False)
