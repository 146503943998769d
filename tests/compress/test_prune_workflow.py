"""prune_folder: from a checkpoint to a pruned folder with its allocation and perplexities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import tempbalance as tb
from tempbalance.compress import Calibration, SparsitySettings, allocate_folder, prune_folder
from tempbalance.errors import AllocationError, CheckpointError, SelectionError, TokensError

NOTHING = Path("nowhere")


@pytest.fixture
def model(trained: nn.Sequential, tmp_path: Path) -> Path:
    save_file(trained.state_dict(), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_a_file_is_pruned_to_a_sparsity(model: Path, tmp_path: Path):
    result = prune_folder(model, tmp_path / "out", 0.5)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert result.achieved == {name: float((weights[name] == 0).double().mean()) for name in result.allocation}
    assert (result.zeros, result.weights) == (12_800, 25_600)
    assert result.allocation.source == str(model)
    assert tb.Allocation.load(tmp_path / "out" / "allocation.json") == result.allocation
    assert (result.calibration, result.perplexity) == (None, None)


def test_an_allocation_passed_to_prune_folder_is_used_unchanged(model: Path, tmp_path: Path):
    first = prune_folder(model, tmp_path / "a", SparsitySettings(sparsity=0.3, method="uniform", unit="layer"))
    assert prune_folder(model, tmp_path / "b", first.allocation) == first


def test_settings_choose_the_analysis_and_the_allocation(model: Path, tmp_path: Path):
    settings = SparsitySettings(sparsity=0.4, method="alpha", epsilon=0.1, estimator="ks", windows=tb.FARMS(windows=4))
    allocation = prune_folder(model, tmp_path / "out", settings).allocation
    analysis = tb.analyze(model, estimator="ks", windows=tb.FARMS(windows=4), progress=False)
    assert allocation == tb.allocate_sparsity(analysis, 0.4, 0.1, method="alpha")


@pytest.fixture
def text(tokens: list[Tensor]) -> Calibration:
    return Calibration(tokens=tokens, samples=4, length=16)


def allocate(folder: Path, text: Calibration, **settings: Any) -> tb.Allocation:
    return allocate_folder(folder, SparsitySettings(**{"sparsity": 0.5, **settings}), calibration=text, progress=False)


@pytest.fixture
def llama(make_llama: Any, tmp_path: Path) -> Path:
    make_llama().save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def test_the_best_simple_allocation_on_the_text_is_the_default(llama: Path, text: Calibration):
    model = tb.compress.load_causal_lm(llama)
    sequences = tb.compress.draw_calibration(text.tokens, text.samples, text.length or 0, text.seed)
    measured = tb.compress.measure_sparsity(model, 0.5, sequences, progress=False)
    first = next(iter(measured.values()))
    assert (dict(allocate(llama, text)), first.method) == (dict(first), allocate(llama, text).method)
    best_of_blocks = next(each for each in measured.values() if each.unit == "block")
    assert allocate(llama, text, unit="block").method == best_of_blocks.method


@pytest.mark.parametrize("criterion", ["magnitude", "wanda"])
def test_with_a_sparsity_per_layer_the_best_of_the_methods_that_give_one_is_the_default(
    llama: Path, text: Calibration, criterion: Any
):
    settings = SparsitySettings(sparsity=0.5, unit="layer")
    found = allocate_folder(llama, settings, criterion, calibration=text, progress=False)
    assert sorted(score.method for score in found.compared) == ["alpha, epsilon 0.3", "erk", "uniform"]
    assert (found.method, found.unit) == (found.compared[0].method, "layer")
    assert len(found.units) == len(found)
    assert allocate(llama, text, unit="layer", compare=False).method == "uniform"


def test_without_anything_to_remove_the_best_is_uniform(llama: Path, text: Calibration):
    assert allocate(llama, text, sparsity=0.0, method="best").method == "uniform"


def test_where_nothing_can_be_measured_on_the_text_the_default_is_owl_with_a_warning(
    tokens: list[Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    config = transformers.BertConfig(**sizes, num_attention_heads=2, initializer_range=0.5)
    transformers.BertLMHeadModel(config).save_pretrained(tmp_path / "bert")  # every token sees all others
    text = Calibration(tokens=[each % 50 for each in tokens], samples=4, length=16)
    assert allocate(tmp_path / "bert", text).method == "owl, epsilon 0.08"
    assert "method 'owl' is used, because allocations cannot be compared on the calibration text" in caplog.text
    assert allocate(tmp_path / "bert", text, unit="layer").method == "uniform"
    with pytest.raises(TokensError, match="no causal language model"):
        allocate(tmp_path / "bert", text, method="best")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epsilon": 0.1}, r"epsilon has no effect without a method that has one: choose method='owl', 'alpha'"),
        ({"beta": 0.1}, r"beta has no effect without a method that has one: choose method='atp'"),
        ({"method": "atp", "unit": "layer"}, "gives each block one sparsity: leave out unit"),
        ({"unit": "blok"}, "unit must be 'layer' or 'block', got 'blok'"),
        ({"method": "best", "group": 8}, "method 'best' needs unstructured sparsity: leave out group$"),
    ],
)
def test_settings_without_effect_or_of_another_method_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises(AllocationError, match=message):
        SparsitySettings(sparsity=0.5, **settings)


def test_owl_measures_outliers_on_the_calibration_text(make_llama: Any, tokens: list[Tensor], tmp_path: Path):
    make_llama().save_pretrained(tmp_path / "model")
    settings = SparsitySettings(sparsity=0.5, method="owl")
    calibration = Calibration(tokens=tokens, samples=8, length=16, seed=3)
    result = prune_folder(
        tmp_path / "model", tmp_path / "out", settings, "wanda", calibration=calibration, evaluate=tokens, length=16
    )
    live = tb.compress.load_causal_lm(tmp_path / "model")
    sequences = tb.compress.draw_calibration(tokens, 8, 16, 3)
    outliers = tb.compress.outlier_ratios(live, sequences)
    analysis = tb.analyze(live, progress=False)
    expected = tb.allocate_sparsity(analysis, 0.5, 0.08, method="owl", outliers=outliers)
    assert dict(result.allocation) == dict(expected)
    assert result.calibration == {"samples": 8, "length": 16, "seed": 3}
    assert result.perplexity is not None
    before = float(tb.perplexity(live, tokens, length=16))
    tb.prune(live, expected, "wanda", calibration=sequences)
    saved = tb.compress.load_causal_lm(tmp_path / "out")
    assert all(torch.equal(a, b) for a, b in zip(live.parameters(), saved.parameters(), strict=True))
    assert tuple(map(float, result.perplexity)) == pytest.approx(
        (before, float(tb.perplexity(live, tokens, length=16)))
    )


def test_calibration_text_without_effect_is_reported(
    model: Path, tokens: list[Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    settings = SparsitySettings(sparsity=0.5, method="uniform")
    prune_folder(model, tmp_path / "out", settings, calibration=Calibration(tokens=tokens))
    assert "the calibration text has no effect" in caplog.text


def test_an_analysis_is_allocated_like_its_model(model: Path):
    settings = SparsitySettings(sparsity=0.5, method="alpha", unit="layer")
    from_analysis = allocate_folder(tb.analyze(model, progress=False), settings)
    assert dict(from_analysis) == dict(allocate_folder(model, settings))


def test_owl_is_refused_for_an_analysis(model: Path, tokens: list[Tensor]):
    with pytest.raises(AllocationError, match="needs the model itself"):
        allocate_folder(tb.analyze(model, progress=False), 0.5, calibration=Calibration(tokens=tokens))


def test_n_of_m_sparsity_loads_the_model(make_llama: Any, tmp_path: Path):
    make_llama().save_pretrained(tmp_path / "model")
    result = prune_folder(tmp_path / "model", tmp_path / "out", SparsitySettings(sparsity=0.5, group=8))
    weight = tb.compress.load_causal_lm(tmp_path / "out").get_parameter(next(iter(result.allocation)))
    assert len((weight == 0).view(-1, 8).sum(dim=1).unique()) == 1


def test_an_earlier_output_is_measured_before_it_is_replaced(stories: tuple[Path, list[Tensor]], tmp_path: Path):
    folder, documents = stories
    prune_folder(folder, tmp_path / "out", 0.1)
    result = prune_folder(tmp_path / "out", tmp_path / "out", 0.6, evaluate=documents[:1])
    assert result.perplexity is not None
    before, after = map(float, result.perplexity)
    assert before < after


@pytest.mark.parametrize(
    ("allocation", "method"),
    [(0.5, "wanda"), (0.5, "sparsegpt"), (SparsitySettings(sparsity=0.5, method="owl"), "magnitude")],
)
def test_a_missing_calibration_is_refused_before_the_model_is_read(allocation: Any, method: Any, tmp_path: Path):
    with pytest.raises(TokensError, match=r"Calibration\(tokens=\.\.\.\)"):
        prune_folder(NOTHING, tmp_path / "out", allocation, method)


@pytest.mark.parametrize(
    "wrong", [{"sparsity": 1.0}, {"sparsity": 0.5, "epsilon": 2.0, "method": "alpha"}, {"sparsity": 0.5, "method": "x"}]
)
def test_invalid_sparsity_settings_are_refused_when_they_are_made(wrong: dict[str, Any]):
    with pytest.raises(AllocationError, match="must be"):
        SparsitySettings(**wrong)


def test_an_unknown_estimator_is_refused_when_the_settings_are_made():
    with pytest.raises(SelectionError, match="hull"):
        SparsitySettings(sparsity=0.5, estimator="hull")


def test_an_unknown_criterion_is_refused_before_the_model_is_read(tmp_path: Path):
    with pytest.raises(AllocationError, match="magnitude, wanda, sparsegpt"):
        prune_folder(NOTHING, tmp_path / "out", 0.5, "random")  # type: ignore[arg-type]


def test_an_output_folder_that_is_not_an_earlier_output_is_refused_before_the_model_is_read(tmp_path: Path):
    (tmp_path / "keep.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="choose another folder"):
        prune_folder(NOTHING, tmp_path, 0.5)
