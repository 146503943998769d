import dataclasses
import json
import math

import pytest
import torch
from safetensors.torch import load_file

import tempbalance as tb
from tempbalance.analysis.findings import KINDS
from tempbalance.types import Severity

TWO_VALUES = torch.cat([torch.ones(40), torch.full((30,), 2.0), torch.full((30,), 5.0)])


def pareto(alpha=3.0, shape=(60, 60), seed=0):
    return tb.testing.matrix_with_spectrum(tb.testing.pareto_sample(min(shape), alpha, seed=seed), shape, seed=seed)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def similar(count=8, **others):
    """A model of layers of one role and alpha, and others."""
    return {f"h.{i}.fc.weight": pareto(seed=i) for i in range(count)} | {
        f"{name.replace('__', '.')}.weight": weight for name, weight in others.items()
    }


def found(tensors, **options):
    return {finding.kind: finding for finding in tb.analyze(tensors, **options).findings}


def test_a_model_of_similar_layers_has_no_finding():
    assert found(similar()) == {}


@pytest.mark.parametrize(
    ("kind", "severity", "weight"),
    [
        ("nan", "error", torch.full((60, 60), math.nan)),
        ("untrained", "warning", noise(60, 60)),
        ("random", "note", 3 * noise(60, 60)),
        ("constant", "warning", torch.zeros(60, 60)),
        ("constant", "warning", torch.eye(60)),
        ("collapsed", "warning", torch.ones(60, 60)),
        ("collapsed", "note", torch.ones(60, 60) + 4 * pareto(seed=30)),
        ("duplicated", "warning", pareto(seed=3).clone()),
        ("outlier", "warning", pareto(alpha=15.0, seed=30)),
        ("outlier", "note", pareto(alpha=1.3, seed=30)),
        ("poor_fit", "note", tb.testing.matrix_with_spectrum(TWO_VALUES, (100, 100))),
    ],
)
def test_one_bad_layer_is_found_with_its_name_numbers_and_next_step(kind, severity, weight):
    findings = found(similar(h__8__fc=weight))
    assert set(findings) >= {kind}
    assert not set(findings) - {kind, "outlier", "collapsed"}  # a collapsed layer has an extreme alpha, and the reverse
    finding = findings[kind]
    assert "h.8.fc.weight" in finding.layers
    assert finding.severity.value == severity
    assert "h.8.fc.weight" in finding.message
    assert finding.next_step
    assert kind in KINDS


def test_findings_are_ordered_by_severity():
    bad = {"h__8__fc": torch.full((60, 60), math.nan), "h__9__fc": noise(60, 60), "h__10__fc": torch.zeros(60, 60)}
    severities = [finding.severity for finding in tb.analyze(similar(**bad)).findings]
    assert severities == [Severity.ERROR, Severity.WARNING, Severity.WARNING]


def test_layers_of_a_new_model_all_look_untrained():
    model = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(3)))
    assert "all 3 layers look untrained" in found(model)["untrained"].message


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (torch.nn.Linear(64, 96), "PyTorch's default"),
        (torch.nn.Conv2d(32, 48, 3), "PyTorch's default"),
        (torch.nn.LSTM(32, 64), "PyTorch's default"),
        (torch.nn.init.normal_(torch.nn.Linear(64, 96).weight, std=0.02), "deviation 0.02"),
    ],
    ids=["linear", "convolution", "LSTM", "normal"],
)
def test_the_initialisation_of_an_untrained_layer_is_named(layer, name):
    torch.manual_seed(0)
    if isinstance(layer, torch.nn.Module):
        layer.apply(lambda module: getattr(module, "reset_parameters", list)())
    tensors = {"a.weight": layer} if isinstance(layer, torch.Tensor) else layer
    assert found(tensors)["untrained"].message.endswith(f"; the weights have the size of initial ones ({name})")


def test_only_the_layers_with_the_size_of_initial_values_are_named():
    tensors = similar(h__8__fc=noise(60, 60), h__9__fc=0.02 * noise(60, 60, seed=1))
    assert found(tensors)["untrained"].message.endswith(
        "; the weights of h.9.fc.weight have the size of initial ones (deviation 0.02)"
    )


def test_small_heads_and_updates_of_low_rank_have_not_collapsed():
    assert "collapsed" not in found(similar(head=noise(2, 60) + 1))
    update = {"a.lora_A.weight": noise(1, 64), "a.lora_B.weight": noise(64, 1, seed=1)}
    assert "collapsed" not in found(update, select=tb.Select(lora="update"))


def test_tied_layers_are_not_duplicated():
    shared = pareto()
    assert found({"h.0.fc.weight": shared, "h.1.fc.weight": shared}) == {}
    copied = found({"h.0.fc.weight": shared, "h.1.fc.weight": shared.clone()})["duplicated"]
    assert copied.layers == ("h.0.fc.weight", "h.1.fc.weight")


def unreadable(layer, rows):
    """A weight in a quantised format that is not read."""
    return {f"{layer}.codes": torch.ones(rows, 60, dtype=torch.int8), f"{layer}.codebooks": torch.ones(9)}


class TestNotCovered:
    def test_weights_that_cannot_be_analysed_are_reported_with_the_reason(self):
        finding = found(similar() | unreadable("h.9.fc", 400))["not_covered"]
        assert finding.layers == ("h.9.fc.codes",)
        assert "24,000 of 52,800 weights (45%)" in finding.message
        assert "AQLM" in finding.message

    def test_an_analysis_of_nothing_is_an_error(self):
        finding = found(unreadable("a", 400))["not_covered"]
        assert finding.severity is Severity.ERROR

    @pytest.mark.parametrize("name", ["embed_tokens.weight", "fc.bias_k"])
    def test_a_file_without_a_weight_matrix_is_an_error(self, name):
        finding = found({name: noise(40, 60)})["not_covered"]
        assert finding.severity is Severity.ERROR
        assert name in finding.message

    def test_depthwise_convolutions_have_no_spectrum_in_any_checkpoint(self):
        depthwise = {"h.9.conv.weight": noise(6000, 1, 9)}
        assert found(similar() | depthwise) == {}
        assert found(depthwise)["not_covered"].severity is Severity.ERROR
        assert set(found(similar() | depthwise | unreadable("h.9.fc", 400))) == {"not_covered"}

    def test_embeddings_and_a_small_share_are_not_reported(self):
        assert found(similar() | {"embed_tokens.weight": noise(5000, 60)}) == {}
        assert found(similar() | unreadable("x", 30)) == {}


def test_quantised_weights_are_noted_with_their_formats():
    spectrum = tb.testing.pareto_sample(60, alpha=3.0, seed=1)
    matrix = tb.testing.matrix_with_spectrum(spectrum, (60, 60))
    stored = {"h.9.fc.weight": matrix.to(torch.float8_e5m2), "h.9.fc.weight_scale": torch.ones(60, 1)}
    finding = found(similar() | stored)["quantised"]
    assert finding.layers == ("h.9.fc.weight",)
    assert finding.severity is Severity.NOTE
    assert "(1: float8_e5m2 with scales, 8 bits): alpha is that of the rounded weights" in finding.message


def test_every_format_of_a_file_with_several_is_named():
    types = ("float8_e5m2", "float8_e4m3fn", "float8_e5m2fnuz", "float8_e4m3fnuz")
    stored = {f"h.{i}.fc.weight": pareto(seed=i).to(getattr(torch, name)) for i, name in enumerate(types)}
    stored |= {f"{name}_scale": torch.ones(60, 1) for name in list(stored)}
    message = found(stored)["quantised"].message
    assert all(f"1: {name} with scales" in message for name in types)


def test_in_minilm_the_untrained_pooler_and_a_layer_that_is_initialised_again_are_found(minilm):
    weights = load_file(minilm / "model.safetensors")
    assert found(weights)["untrained"].layers == ("pooler.dense.weight",)
    name = "encoder.layer.2.attention.self.key.weight"
    again = torch.nn.init.normal_(torch.empty(384, 384), std=0.02, generator=torch.Generator().manual_seed(0))
    assert found(weights | {name: again})["untrained"].layers == (name, "pooler.dense.weight")


class TestSaved:
    def test_a_file_has_the_findings_and_a_loaded_analysis_derives_them(self, tmp_path):
        analysis = tb.analyze(similar(h__8__fc=noise(60, 60)))
        analysis.save(tmp_path / "a.json")
        (saved,) = json.loads((tmp_path / "a.json").read_text())["findings"]
        assert saved["kind"] == "untrained"
        assert (saved["severity"], saved["layers"]) == ("warning", ["h.8.fc.weight"])
        assert tb.Analysis.load(tmp_path / "a.json").findings == analysis.findings

    def test_a_file_of_an_older_version_has_findings(self, tmp_path):
        tb.analyze(similar(h__8__fc=noise(60, 60))).save(tmp_path / "a.json")
        old = json.loads((tmp_path / "a.json").read_text())
        del old["findings"], old["size"]
        (tmp_path / "old.json").write_text(json.dumps(old))
        assert [finding.kind for finding in tb.Analysis.load(tmp_path / "old.json").findings] == ["untrained"]

    def test_findings_without_a_spectrum_or_layers(self):
        analysis = tb.analyze(similar(h__8__fc=noise(60, 60)))
        bare = [dataclasses.replace(layer, esd=tb.types.ESD((), ())) for layer in analysis.layers]
        assert [each.kind for each in dataclasses.replace(analysis, layers=bare).findings] == ["untrained"]
        assert [each.kind for each in dataclasses.replace(analysis, layers=[]).findings] == ["not_covered"]
