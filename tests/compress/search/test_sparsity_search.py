"""search_sparsity and measure_sparsity: better than the simple methods on their text, and the model as before."""

import copy
import itertools
import json
import math
import re

import pytest
import torch
from torch.nn import functional as F

import tempbalance as tb
from tempbalance.compress import (
    Calibration,
    SearchSettings,
    SparsitySettings,
    measure_sparsity,
    score_allocations,
    search_bits,
    search_sparsity,
)
from tempbalance.compress.search import announcement, memory
from tempbalance.errors import AllocationError, CheckpointError, TokensError

FAST = SearchSettings(generations=4, children=4, tokens=200)


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def divergence(model, dense, text):
    """Mean KL of the next-token distribution, token by token in float64, and the perplexity."""
    model.eval()
    kls, losses = [], []
    for sequence in text:
        with torch.no_grad():
            p, q = (each(input_ids=sequence[None]).logits[0].double().log_softmax(-1) for each in (dense, model))
        kls += (p.exp() * (p - q)).sum(-1).tolist()
        losses += F.nll_loss(q[:-1], sequence[1:], reduction="none").tolist()
    return sum(kls) / len(kls), math.exp(sum(losses) / len(losses))


@pytest.mark.parametrize(("criterion", "unit"), [("magnitude", "layer"), ("wanda", "block"), ("sparsegpt", "layer")])
def test_the_search_is_better_than_every_simple_method_on_its_text(llama, text, criterion, unit):
    before = state(llama)
    found = search_sparsity(llama, 0.6, text, criterion, FAST, unit=unit, progress=False)
    scores = {score.method.partition(",")[0]: score for score in found.compared}
    assert set(scores) == {"search", "uniform", "owl", "atp", "alpha", "erk"}
    simple = [scores[name].kl for name in scores if name != "search" and (unit == "layer" or name != "erk")]
    assert scores["search"].kl < min(simple)
    assert [score.kl for score in found.compared] == sorted(score.kl for score in found.compared)
    assert sum(layer.zeros for layer in found.layers) == round(0.6 * found.covered)
    assert found.criterion == criterion
    assert len({layer.unit for layer in found.layers}) == (21 if unit == "layer" else 3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in llama.state_dict().items())
    assert llama.training


def test_the_layers_of_a_block_share_a_sparsity(llama, text):
    found = search_sparsity(llama, 0.6, text, settings=FAST, unit="block", progress=False)
    for unit in found.units:
        assert all(abs(layer.zeros - unit.value * layer.numel) <= 1 for layer in unit.layers)
    assert len({round(unit.value, 3) for unit in found.units}) > 1


def test_a_score_is_the_divergence_and_perplexity_of_the_model_that_prune_makes(llama, text):
    whole = SearchSettings(generations=2, children=3)  # so many tokens that no sequence is cut
    found = search_sparsity(llama, 0.6, text, settings=whole, progress=False)
    pruned = copy.deepcopy(llama)
    tb.prune(pruned, found, progress=False)
    (score,) = (score for score in found.compared if score.method == "search")
    assert (score.kl, score.perplexity) == pytest.approx(divergence(pruned, llama.eval(), text), rel=1e-5)


@pytest.mark.parametrize("criterion", ["magnitude", "wanda"])
def test_fused_and_transposed_weights_are_searched_and_restored(text, criterion):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2))
    before = state(model)
    settings = SearchSettings(generations=1, children=2)
    found = search_sparsity(model, 0.6, text, criterion, settings, progress=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert any("c_attn" in name and not name.endswith(".weight") for name in found)  # parts of fused weights
    dense = copy.deepcopy(model)
    achieved = tb.prune(model, found, criterion, calibration=text, progress=False)
    assert achieved == pytest.approx(dict(found))
    if criterion == "magnitude":
        (score,) = (score for score in found.compared if score.method == "search")
        assert score.kl == pytest.approx(divergence(model, dense.eval(), text)[0], rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("criterion", ["magnitude", "wanda"])
def test_a_search_that_changes_weights_block_by_block_gives_the_same(llama, text, criterion, monkeypatch):
    whole = search_sparsity(llama, 0.6, text, criterion, FAST, progress=False)
    before = state(llama)
    monkeypatch.setattr(memory, "available_memory", lambda _: 1)
    assert search_sparsity(llama, 0.6, text, criterion, FAST, progress=False) == whole
    assert all(torch.equal(tensor, before[name]) for name, tensor in llama.state_dict().items())


def test_a_search_shows_and_saves_its_time_and_memory(llama, text, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes this for a terminal
    found = search_sparsity(llama, 0.6, text, settings=FAST)
    line = r"search of 4 generations on 1\d\d tokens: at most \d+ s, \d+ MiB of memory beside the model"
    assert re.search(line, " ".join(capsys.readouterr().err.split()))
    assert re.match(line, found.estimate)
    found.save(tmp_path / "a.json")
    assert tb.Allocation.load(tmp_path / "a.json").estimate == found.estimate


def test_measuring_simple_allocations_shows_its_time_before(llama, text, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    found = measure_sparsity(llama, 0.6, text)
    shown = " ".join(capsys.readouterr().err.split())
    assert re.search(r"measuring simple allocations: about \d+ s", shown)
    assert "search of" not in shown
    assert found["uniform"].estimate.startswith("search of 100 generations")


def test_less_time_is_shown_if_fewer_methods_are_measured(llama, text, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(announcement, "_duration", lambda seconds: f"{seconds:.9f} s")
    passes = []
    for unit in ("block", "layer"):
        found = measure_sparsity(llama, 0.6, text, unit=unit)
        shown = " ".join(capsys.readouterr().err.split())
        time = float(re.search(r"measuring simple allocations: about (\d+\.\d+) s", shown)[1])
        passes.append(time / float(re.search(r"at most (\d+\.\d+) s", found["uniform"].estimate)[1]))
    assert passes[1] < passes[0] / 3  # three methods of 14, and no outliers


def test_a_search_that_needs_more_memory_than_there_is_is_refused(llama, text, monkeypatch):
    before = state(llama)
    monkeypatch.setattr(announcement, "available_memory", lambda _: 1000)
    with pytest.raises(AllocationError, match=r"MiB of memory beside the model, of which .* are available: use fewer"):
        search_sparsity(llama, 0.6, text, settings=FAST, progress=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in llama.state_dict().items())


def test_an_allocation_of_another_model_is_not_scored(llama, text):
    other = tb.allocate_sparsity(tb.analyze({"h.0.fc.weight": torch.randn(16, 16)}, progress=False), 0.5)
    with pytest.raises(AllocationError, match=r"another model.*no h\.0\.fc\.weight"):
        score_allocations(llama, {"other": other}, text, progress=False)


def test_experts_are_searched_without_owl(text, monkeypatch):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 3}
    model = transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes, **heads))
    before, settings = state(model), SearchSettings(generations=1, children=3)
    found = search_sparsity(model, 0.6, text, settings=settings, progress=False)
    assert {score.method.partition(",")[0] for score in found.compared} == {"search", "uniform", "atp", "alpha", "erk"}
    bits = search_bits(model, 6, text, ["int2_g8", "int4_g8"], settings, progress=False)
    monkeypatch.setattr(memory, "available_memory", lambda _: 1)
    assert search_sparsity(model, 0.6, text, settings=settings, progress=False) == found
    assert search_bits(model, 6, text, ["int2_g8", "int4_g8"], settings, progress=False) == bits
    assert any("experts" in name for name in found)
    assert any("experts" in name for name in bits)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_search_with_a_folder_resumes_to_the_same_allocation(llama, text, tmp_path):
    settings = {"children": 4, "tokens": 200}
    whole = search_sparsity(llama, 0.5, text, settings=SearchSettings(generations=4, **settings), progress=False)
    for generations in (2, 4):
        folder = SearchSettings(generations=generations, folder=tmp_path / "new" / "search", **settings)
        resumed = search_sparsity(llama, 0.5, text, settings=folder, progress=False)
    assert resumed == whole


def test_the_folder_of_another_search_is_refused(llama, text, tmp_path):
    settings = SearchSettings(generations=1, children=2, tokens=200, folder=tmp_path)
    given = {"sparsity": 0.5, "calibration": text, "criterion": "magnitude", "settings": settings, "progress": False}
    search_sparsity(llama, **given)
    for change, message in (
        ({"sparsity": 0.6}, "another budget"),
        ({"criterion": "wanda"}, "another criterion"),
        ({"unit": "block"}, "another unit"),
        ({"calibration": text[::-1]}, "another text"),
    ):
        with pytest.raises(AllocationError, match=message):
            search_sparsity(llama, **{**given, **change})
    with torch.no_grad():
        llama.model.layers[1].mlp.up_proj.weight[0, 0] += 1
    with pytest.raises(AllocationError, match="another model"):
        search_sparsity(llama, **given)


def test_simple_methods_are_measured_and_atp_has_the_best_beta(llama, text):
    found = measure_sparsity(llama, 0.6, text, tokens=200, progress=False)
    kls = {score.method: score.kl for score in found["atp"].compared}
    assert list(found) == [method.partition(",")[0] for method in kls]
    analysis = tb.analyze(llama, progress=False)
    name, _, beta = found["atp"].method.rpartition(" ")
    assert name == "atp, beta"
    same = tb.allocate_sparsity(analysis, 0.6, method="atp", beta=float(beta))
    assert dict(same) == dict(found["atp"])
    blocks = [unit.value for unit in same.units]
    assert [b - a for a, b in itertools.pairwise(blocks)] == pytest.approx([float(beta)] * 2, abs=1e-3)


def test_models_and_texts_that_cannot_be_used_are_refused(llama, text):
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 40, "num_hidden_layers": 2}
    bert = transformers.BertForMaskedLM(transformers.BertConfig(**sizes, num_attention_heads=2))
    for model, tokens, message in (
        (llama.model, text, "LlamaModel has no head that predicts the next token"),
        (bert, text, "its outputs depend on the tokens that follow"),
        (llama, [], "there is no token"),
        (llama, [torch.tensor([3])], "at least two tokens"),
        (llama, [torch.tensor([3, 50])], "token 50 is not in the vocabulary of 50"),
        (llama, [torch.tensor([3, -1])], "negative"),
        (llama, [torch.tensor([0.5, 1.0])], "expected integers"),
    ):
        with pytest.raises(TokensError, match=message):
            search_sparsity(model, 0.5, tokens, settings=FAST, progress=False)


def test_a_folder_without_a_head_is_refused(llama, tmp_path):
    llama.model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"its weights have no lm_head\.weight"):
        tb.compress.load_causal_lm(tmp_path)


def test_every_form_of_calibration_tokens_gives_the_same_search(llama, text):
    rows = [row[:20] for row in text if len(row) >= 20]
    forms = (rows, [row[None] for row in rows], torch.stack(rows), [row.tolist() for row in rows])
    forms += ([(row[None], row[None]) for row in rows], {"input_ids": torch.stack(rows)})
    settings = SearchSettings(generations=1, children=2, tokens=60)
    found = [search_sparsity(llama, 0.5, form, settings=settings, progress=False) for form in forms]
    assert all(each == found[0] for each in found)


@pytest.mark.parametrize("bad", [{"sparsity": 1.0}, {"unit": "row"}, {"criterion": "random"}])
def test_parameters_out_of_range_are_refused(llama, text, bad):
    given = {"sparsity": 0.5, "criterion": "magnitude", "unit": "layer"} | bad
    with pytest.raises(AllocationError, match="must be"):
        search_sparsity(llama, given.pop("sparsity"), text, **given, progress=False)


def test_prune_folder_searches_and_reports_what_each_method_gives(llama, text, tmp_path):
    llama.save_pretrained(tmp_path / "model")
    settings = SparsitySettings(sparsity=0.6, method="search", search=FAST)
    calibration = Calibration(tokens=text, samples=8, length=20)
    result = tb.compress.prune_folder(
        tmp_path / "model", tmp_path / "out", settings, "wanda", calibration=calibration, progress=False
    )
    sequences = tb.compress.draw_calibration(text, 8, 20, 0)
    expected = search_sparsity(llama, 0.6, sequences, "wanda", FAST, progress=False)
    assert dict(result.allocation) == dict(expected)
    assert tb.Allocation.load(tmp_path / "out" / "allocation.json") == result.allocation
    assert result.to_dict()["compared"][0]["method"] == "search"
    assert json.loads((tmp_path / "out" / "allocation.json").read_text())["compared"][0]["method"] == "search"


def test_prune_folder_compares_its_allocation_with_the_simple_methods_on_the_text(llama, text, tmp_path, caplog):
    llama.save_pretrained(tmp_path / "model")

    def compared(length=20, **changes):
        """The scores by method."""
        settings = SparsitySettings(sparsity=0.6, method="owl", epsilon=0.2, **changes)
        calibration = Calibration(tokens=text, samples=8, length=length)
        options = {"calibration": calibration, "progress": False}
        found = tb.compress.prune_folder(tmp_path / "model", tmp_path / "out", settings, "wanda", **options)
        return {score.method: score for score in found.allocation.compared}

    scores = compared()
    assert {name.partition(",")[0] for name in scores} == {"uniform", "erk", "owl", "alpha", "atp"}
    assert scores["owl, epsilon 0.2"] != scores["owl, epsilon 0.08"]
    simple = measure_sparsity(llama, 0.6, tb.compress.draw_calibration(text, 8, 20, 0), "wanda", progress=False)
    assert {score.method for score in simple["owl"].compared} == set(scores) - {"owl, epsilon 0.2"}
    assert compared(compare=False) == {}
    assert not caplog.records
    assert compared(length=1) == {}
    assert (
        "not compared on the calibration text: allocations are measured on sequences of at least two tokens"
        in caplog.text
    )


def test_prune_folder_chooses_the_beta_of_atp_on_the_text(llama, text, tmp_path):
    llama.save_pretrained(tmp_path / "model")
    calibration = Calibration(tokens=text, samples=8, length=20)
    settings = SparsitySettings(sparsity=0.6, method="atp")
    found = tb.compress.allocate_folder(tmp_path / "model", settings, calibration=calibration, progress=False)
    sequences = tb.compress.draw_calibration(text, 8, 20, 0)
    assert dict(found) == dict(measure_sparsity(llama, 0.6, sequences, progress=False)["atp"])


@pytest.mark.parametrize("method", ["search", "atp"])
def test_methods_that_measure_need_calibration_text_and_a_model(llama, text, method, tmp_path):
    with pytest.raises(TokensError, match="need calibration text"):
        tb.compress.prune_folder(tmp_path / "no", tmp_path / "out", SparsitySettings(sparsity=0.5, method=method))
    with pytest.raises(AllocationError, match="search_sparsity" if method == "search" else "needs beta"):
        tb.allocate_sparsity(tb.analyze(llama, progress=False), 0.5, method=method)
    with pytest.raises(AllocationError, match="needs the model itself"):
        tb.compress.allocate_folder(
            tb.analyze(llama, progress=False),
            SparsitySettings(sparsity=0.5, method=method),
            calibration=Calibration(tokens=text),
        )
    with pytest.raises(AllocationError, match="unstructured"):
        SparsitySettings(sparsity=0.5, method=method, group=8)
    with pytest.raises(AllocationError, match="no effect"):
        SparsitySettings(sparsity=0.5, method="uniform", search=FAST)


@pytest.mark.parametrize("sparsity", [0.3, 0.6])
def test_the_largest_beta_of_atp_is_allowed_on_small_models(text, sparsity):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 48, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=64, num_hidden_layers=6, **sizes)
    found = measure_sparsity(transformers.LlamaForCausalLM(config), sparsity, text, tokens=100, progress=False)
    assert any(method.startswith("atp") for method in found)


def test_the_order_of_allocations_does_not_change_their_scores(llama, text):
    analysis = tb.analyze(llama, progress=False)
    allocations = {method: tb.allocate_sparsity(analysis, 0.7, method=method) for method in ("uniform", "depth")}
    backwards = dict(reversed(allocations.items()))
    one, other = (score_allocations(llama, each, text, "wanda", tokens=200) for each in (allocations, backwards))
    assert one == other
