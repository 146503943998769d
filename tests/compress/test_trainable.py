"""The layers that are trained: by signal-to-noise ratio, alpha or drift."""

import dataclasses
import math

import pytest
import torch
from torch import nn

import tempbalance as tb
from tempbalance.compress import Allocation, LayerAllocation, allocate_trainable, set_trainable, signal_to_noise
from tempbalance.errors import AllocationError

NAMES = [f"h.{i}.{part}.weight" for i in range(4) for part in ("a", "b")]


@pytest.fixture
def analysis(analysis_of):
    """Four blocks of two layers; alpha rises with depth in ``a`` and falls in ``b``."""
    return analysis_of(NAMES, [2.0, 5.0, 3.0, 4.0, 4.0, 3.0, 5.0, 2.0], [(8, 8)] * 8)


@pytest.mark.parametrize(("share", "count"), [(0, 0), (0.25, 1), (0.3, 1), (0.1, 1), (0.5, 2), (0.75, 3), (1, 4)])
def test_of_each_type_the_layers_with_the_highest_scores_are_trained(analysis, share, count):
    found = allocate_trainable(analysis, share, method="alpha")
    for part, order in (("a", (3, 2, 1, 0)), ("b", (0, 1, 2, 3))):
        assert [found[f"h.{i}.{part}.weight"] for i in order] == [1] * count + [0] * (4 - count)


def test_scores_decide_and_infinity_is_the_highest(analysis):
    scores = dict.fromkeys(NAMES, 0.0) | {"h.1.a.weight": math.inf, "h.2.b.weight": 1.0}
    found = allocate_trainable(analysis, 0.25, scores=scores)
    assert {name for name, value in found.items() if value} == {"h.1.a.weight", "h.2.b.weight"}


def test_a_layer_without_alpha_is_the_last(analysis):
    rows = [dataclasses.replace(row, alpha=math.nan) if row.name == "h.3.a.weight" else row for row in analysis.layers]
    found = allocate_trainable(dataclasses.replace(analysis, layers=rows), 0.75, method="alpha")
    assert [found[f"h.{i}.a.weight"] for i in range(4)] == [1, 1, 1, 0]


def test_it_is_saved_and_loaded_with_its_scores(analysis, tmp_path):
    found = allocate_trainable(analysis, 0.5, method="alpha")
    found.save(tmp_path / "trainable.json")
    loaded = Allocation.load(tmp_path / "trainable.json")
    assert loaded == found
    assert [layer.score for layer in loaded.layers] == [row.alpha for row in analysis.layers]


def naive_snr(weight: torch.Tensor) -> float:
    """Spectrum's ratio (arXiv:2406.06623), with the edge of Gavish and Donoho, by a float64 SVD.

    Their median of the quarter-circle law of a square matrix is sqrt(0.6528) of the square root of the side.
    """
    values = torch.linalg.svdvals(weight.double()).tolist()
    side = len(weight)
    sigma = (values[len(values) // 2 - 1] + values[len(values) // 2]) / 2 / math.sqrt(0.6528 * side)
    signal = sum(value for value in values if value > 2 * sigma * math.sqrt(side))
    return signal / (sum(values) - signal) / values[0]


def test_the_signal_is_above_the_edge_of_the_noise_at_any_scale():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(128, 128, generator=generator)
    spikes = torch.linalg.qr(torch.randn(128, 3, generator=generator)).Q
    signal = noise + spikes @ torch.diag(torch.tensor([60.0, 45.0, 30.0])) @ spikes.T
    found = signal_to_noise(
        {"noise": noise, "signal": signal, "small": signal / 1000, "zero": 0 * noise}, progress=False
    )
    assert found["noise"] == found["zero"] == 0
    assert found["signal"] == pytest.approx(naive_snr(signal), rel=1e-3)
    assert found["small"] == pytest.approx(1000 * found["signal"])  # it is divided by the largest singular value
    tall = torch.randn(256, 64, generator=generator)
    assert signal_to_noise({"tall": tall}, progress=False) == {"tall": 0}


def test_a_model_and_its_folder_have_the_same_ratios(make_llama, tmp_path):
    model = make_llama()
    model.save_pretrained(tmp_path)
    found = signal_to_noise(model, progress=False)
    assert found == signal_to_noise(tmp_path, progress=False)
    assert len(found) == 2 * 7 + 1


def test_drift_from_a_base_model_is_the_relative_change_of_compare(make_llama):
    base, model = make_llama(), make_llama()
    with torch.no_grad():
        model.model.layers[1].self_attn.q_proj.weight.mul_(1.5)
        model.model.layers[0].mlp.up_proj.weight.mul_(1.1)
    scores = {row.name: row.relative_change for row in tb.compare(base, model, progress=False).layers}
    found = allocate_trainable(tb.analyze(model, progress=False), 0.5, method="drift", scores=scores)
    assert found["model.layers.1.self_attn.q_proj.weight"] == found["model.layers.0.mlp.up_proj.weight"] == 1
    assert found["model.layers.0.self_attn.q_proj.weight"] == found["model.layers.1.mlp.up_proj.weight"] == 0


def test_other_parameters_are_frozen_and_biases_go_with_their_layers():
    model = nn.ModuleDict({"h": nn.ModuleList(nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64)) for _ in range(2))})
    model["head"] = nn.Linear(64, 8)
    analysis = tb.analyze(model, progress=False)
    scores = {"h.0.0.weight": 1.0, "h.1.0.weight": 2.0}
    count = set_trainable(model, allocate_trainable(analysis, 0.5, scores=scores))
    trained = {name for name, each in model.named_parameters() if each.requires_grad}
    assert trained == {"h.1.0.weight", "h.1.0.bias", "head.weight", "head.bias"}
    assert count == sum(each.numel() for each in model.parameters() if each.requires_grad)
    model["head"](model["h"][1](model["h"][0](torch.ones(2, 64)))).sum().backward()
    assert model["h"][0][0].weight.grad is None


def test_biases_of_attention_and_of_experts_go_with_their_weights():
    model = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(64, 4, 64, batch_first=True), 2, enable_nested_tensor=False
    )
    model.layers[1].experts = nn.ParameterDict({"up": torch.ones(2, 4), "up_bias": torch.ones(2)})
    names = ["layers.1.self_attn.in_proj_weight", "layers.1.experts.up"]
    shapes = [(192, 64), (2, 4)]
    rows = [LayerAllocation(name=n, unit=n, shape=s, trainable=1) for n, s in zip(names, shapes, strict=True)]
    head = {"source": "model", "quantity": "trainable", "budget": 1.0, "method": "by hand", "unit": "layer"}
    set_trainable(model, tb.Allocation(**head, layers=tuple(rows)))
    trained = {name for name, each in model.named_parameters() if each.requires_grad}
    assert trained == {*names, "layers.1.self_attn.in_proj_bias", "layers.1.experts.up_bias"}


def test_fused_weights_and_experts_are_one_parameter_with_the_mean_score():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 2}
    model = transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes, **heads))
    analysis = tb.analyze(model, progress=False)
    scores = {row.name: float(i) for i, row in enumerate(analysis.layers)}
    found = allocate_trainable(analysis, 0.5, scores=scores)
    set_trainable(model, found)
    name = "model.layers.1.mlp.experts.gate_up_proj"
    own = [score for row, score in scores.items() if row.startswith(f"{name}:")]
    (layer,) = (layer for layer in found.layers if layer.name == name)
    assert layer.score == sum(own) / len(own)
    assert model.get_parameter(name).requires_grad
    assert not model.get_parameter(name.replace("1", "0")).requires_grad


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"share": 1.1}, r"share must be in \[0, 1\]"),
        ({"share": math.nan}, r"share must be in \[0, 1\]"),
        ({"method": "random"}, "method must be one of 'alpha', 'snr', 'drift'"),
        ({"method": "snr"}, "method 'snr' needs scores"),
        ({"method": "alpha", "scores": {}}, "'alpha' takes no scores"),
        ({"scores": dict.fromkeys(NAMES[1:], 1.0)}, r"scores has no score of h\.0\.a\.weight"),
        ({"scores": dict.fromkeys(NAMES, math.nan)}, r"scores has no score of h\.0\.a\.weight"),
    ],
)
def test_parameters_out_of_range_and_missing_scores_are_refused(analysis, options, match):
    with pytest.raises(AllocationError, match=match):
        allocate_trainable(analysis, **({"share": 0.5} | options))


def test_a_model_without_blocks_has_no_types_to_choose_from():
    analysis = tb.analyze({"weight": torch.randn(8, 8)}, progress=False)
    with pytest.raises(AllocationError, match="no blocks"):
        allocate_trainable(analysis, 0.5, method="alpha")


def test_an_allocation_of_another_model_changes_nothing(analysis):
    allocation = allocate_trainable(analysis, 0.5, method="alpha")
    for model in (
        nn.Linear(8, 8),
        nn.ModuleDict({"h": nn.ModuleList(nn.ModuleDict({"a": nn.Linear(4, 4)}) for _ in "1")}),
    ):
        with pytest.raises(AllocationError, match=r"another model: h\.0\.a\.weight"):
            set_trainable(model, allocation)
        assert all(each.requires_grad for each in model.parameters())
