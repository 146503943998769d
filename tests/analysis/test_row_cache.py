"""Rows of weights that were analysed before: by content, and only with the same settings."""

import dataclasses
import json

import pytest
import torch

import tempbalance as tb
from command_line import run
from tempbalance.errors import AnalysisError, ArgumentTypeError, OutputError


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def weights():
    return {f"h.{i}.fc.weight": noise(40, 30, seed=i) * torch.linspace(0.1, 3, 30) for i in range(3)}


def files(folder):
    return sorted(folder.rglob("*.json"))


def mark(folder):
    """Change the alphas in a cache, so that rows from it can be told from new ones."""
    for file in files(folder):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"alpha": 77.0}))


def alphas(source, folder, **options):
    return [row.alpha for row in tb.analyze(source, cache=folder, **options)]


def test_a_second_analysis_has_the_same_rows_and_computes_none(weights, tmp_path):
    first = tb.analyze(weights, cache=tmp_path / "rows")
    assert first.layers == tb.analyze(weights).layers == tb.analyze(weights, cache=tmp_path / "rows").layers
    assert len(files(tmp_path / "rows")) == 3
    mark(tmp_path / "rows")
    assert alphas(weights, tmp_path / "rows") == [77.0] * 3


def test_a_weight_is_known_in_another_model_under_its_name_there(weights, tmp_path):
    expected = tb.analyze({"other.weight": weights["h.1.fc.weight"]}).layers[0]
    tb.analyze(weights, cache=tmp_path)
    mark(tmp_path)
    row = tb.analyze({"other.weight": weights["h.1.fc.weight"]}, cache=tmp_path).layers[0]
    assert row == dataclasses.replace(expected, alpha=77.0)


@pytest.mark.parametrize(
    "options",
    [{"estimator": "ks"}, {"windows": tb.FARMS()}, {"dtype": "float32"}, {"device": "cpu"}, {"traps": True}],
)
def test_other_settings_have_other_rows(weights, tmp_path, options):
    expected = [row.alpha for row in tb.analyze(weights, **options)]
    alphas(weights, tmp_path)
    mark(tmp_path)
    assert alphas(weights, tmp_path, **options) == expected


def test_a_weight_that_changed_in_one_entry_is_computed_again(weights, tmp_path):
    alphas(weights, tmp_path)
    mark(tmp_path)
    weights["h.1.fc.weight"][3, 4] += 1e-3
    found = alphas(weights, tmp_path)
    assert [alpha == 77.0 for alpha in found] == [True, False, True]


def test_the_same_values_in_another_dtype_or_shape_are_another_weight(tmp_path):
    weight = noise(40, 30).bfloat16()
    alphas({"a.weight": weight}, tmp_path)
    alphas({"a.weight": weight.float()}, tmp_path)
    alphas({"a.weight": weight.view(30, 40)}, tmp_path)
    assert len(files(tmp_path)) == 3


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"name": "x", "reason": "y"}', '{"alpha": 1}'])
def test_a_damaged_file_is_made_again(weights, tmp_path, content):
    expected = alphas(weights, tmp_path)
    for file in files(tmp_path):
        file.write_text(content)
    assert alphas(weights, tmp_path) == expected
    mark(tmp_path)
    assert alphas(weights, tmp_path) == [77.0] * 3


def test_a_weight_that_is_skipped_is_not_kept(tmp_path):
    for _ in range(2):
        analysis = tb.analyze({"a.weight": torch.full((20, 20), torch.nan)}, cache=tmp_path)
        assert "NaN" in analysis.skipped[0].reason
    assert files(tmp_path) == []


def test_compare_and_track_use_it(weights, tmp_path):
    changed = {name: 1.1 * weight for name, weight in weights.items()}
    tb.compare(weights, changed, cache=tmp_path)
    assert len(files(tmp_path)) == 6
    mark(tmp_path)
    assert {row.alpha_after for row in tb.compare(weights, changed, cache=tmp_path).layers} == {77.0}
    tracked = tb.track([weights, changed], cache=tmp_path)
    assert {layer.alpha for checkpoint in tracked.checkpoints for layer in checkpoint.layers} == {77.0}


def test_the_command_line_has_it(weights, tmp_path, capsys):
    torch.save(weights, tmp_path / "model.pt")
    folder = tmp_path / "new" / "rows"
    assert run("analyze", tmp_path / "model.pt", "--cache", folder, "--quiet") == 0
    mark(folder)
    capsys.readouterr()
    assert run("analyze", tmp_path / "model.pt", "--cache", folder, "--json") == 0
    assert [layer["alpha"] for layer in json.loads(capsys.readouterr().out)["layers"]] == [77.0] * 3


def test_a_cache_that_cannot_be_used_is_refused(weights, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write to the cache"):
        tb.analyze(weights, cache=tmp_path / "file")
    with pytest.raises(ArgumentTypeError, match="cache must be a path"):
        tb.analyze(weights, cache=3)

    class Mine(tb.Hill):
        pass

    with pytest.raises(AnalysisError, match="rows of Mine cannot be kept in a cache"):
        tb.analyze(weights, estimator=Mine(), cache=tmp_path)
    with pytest.raises(AnalysisError, match="cache has no effect on two analyses"):
        tb.compare(tb.analyze(weights), tb.analyze(weights), cache=tmp_path)
