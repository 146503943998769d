import json
import math
import os
import sys
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pytest
import torch

import tempbalance as tb
from tempbalance.errors import AnalysisError, MissingExtraError, UnknownLayerError


@pytest.fixture
def analysis(trained):
    with torch.no_grad():
        trained[1].weight[0, 0] = math.nan
    return tb.analyze(trained)


class TestFiles:
    def test_json_is_loaded_as_the_same_analysis(self, analysis, tmp_path):
        analysis.save(tmp_path / "a.json")
        assert repr(asdict(tb.Analysis.load(tmp_path / "a.json"))) == repr(asdict(analysis))

    def test_json_is_one_object_without_nan(self, analysis, tmp_path):
        analysis.save(tmp_path / "a.json")
        data = json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail)
        assert {"source", "settings", "imbalance", "block_imbalance", "layers", "skipped"} <= set(data)
        assert data["layers"][2]["alpha"] is None
        assert data["skipped"] == [{"name": "1.weight", "reason": "1 of 6400 weights are NaN or Inf"}]

    def test_csv_has_names_and_alphas(self, analysis, tmp_path):
        analysis.save(tmp_path / "a.csv")
        frame = pd.read_csv(tmp_path / "a.csv")
        assert frame["name"].tolist() == ["0.weight", "2.weight", "3.weight"]
        assert frame["alpha"][0] == analysis.layers[0].alpha

    def test_parquet_has_the_statuses(self, analysis, tmp_path):
        pytest.importorskip("pyarrow")
        analysis.save(tmp_path / "a.parquet")
        frame = pd.read_parquet(tmp_path / "a.parquet")
        assert frame["status"].tolist() == ["ok", "ok", "random"]

    def test_saving_as_html_writes_a_page(self, analysis, tmp_path):
        analysis.save(tmp_path / "a.html")
        assert "<html" in (tmp_path / "a.html").read_text()[:500]

    def test_the_data_frame_has_a_column_per_field(self, analysis):
        frame = analysis.to_pandas()
        assert set(frame.columns) == set(tb.types.LayerStats.__dataclass_fields__) - {"esd", "num_traps", "delta_erg"}
        assert len(frame) == 3

    def test_saving_with_an_unknown_suffix_raises(self, analysis, tmp_path):
        with pytest.raises(AnalysisError, match=r"\.json, \.csv, \.parquet, \.html"):
            analysis.save(tmp_path / "a.xlsx")

    def test_saving_a_history_in_another_format_raises(self, analysis, tmp_path):
        history = [tb.balance.Refresh(step=0, units=[], measured=0, seconds=0.0)]
        with pytest.raises(AnalysisError, match=r"only an \.html report"):
            analysis.save(tmp_path / "a.json", history=history)
        assert list(tmp_path.iterdir()) == []

    def test_saving_in_a_missing_folder_raises(self, analysis, tmp_path):
        with pytest.raises(AnalysisError, match="cannot write"):
            analysis.save(tmp_path / "nowhere" / "a.json")

    def test_parquet_without_pyarrow_names_the_extra(self, analysis, tmp_path, monkeypatch):
        for module in ("pyarrow", "fastparquet"):
            monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(MissingExtraError, match=r"tempbalance\[parquet\]"):
            analysis.save(tmp_path / "a.parquet")

    def test_a_failed_save_keeps_the_old_file(self, analysis, tmp_path, monkeypatch):
        path = tmp_path / "a.json"
        path.write_text("old")

        def no_space(*_args):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "replace", no_space)
        with pytest.raises(AnalysisError, match="No space left"):
            analysis.save(path)
        assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
        assert path.read_text() == "old"

    @pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema": 1}', '{"schema": 99, "layers": []}'])
    def test_loading_a_file_without_an_analysis_raises(self, text, tmp_path):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(AnalysisError, match=r"a\.json"):
            tb.Analysis.load(tmp_path / "a.json")

    def test_loading_a_missing_file_raises(self, tmp_path):
        with pytest.raises(AnalysisError, match="No such file"):
            tb.Analysis.load(tmp_path / "a.json")


class TestCompare:
    def test_changes_of_alpha_are_also_in_units_of_their_standard_error(self, trained):
        before = tb.analyze(trained)
        with torch.no_grad():
            trained[0].weight += 0.3 * torch.randn(80, 80, generator=torch.Generator().manual_seed(1))
        after = tb.analyze(trained)
        rows = {row.name: row for row in tb.compare(before, after).layers}
        changed = rows["0.weight"]
        assert changed.delta == after.layers[0].alpha - before.layers[0].alpha != 0
        assert changed.stderr == math.hypot(before.layers[0].stderr, after.layers[0].stderr)
        assert changed.z == changed.delta / changed.stderr
        assert (rows["1.weight"].delta, rows["1.weight"].z) == (0.0, 0.0)
        assert math.isnan(rows["3.weight"].delta)

    def test_a_comparison_lists_layers_of_only_one_analysis(self, trained):
        whole, part = tb.analyze(trained), tb.analyze(trained, select="[0-1].weight")
        comparison = tb.compare(whole, part)
        assert comparison.only_before == ["2.weight", "3.weight"]
        assert comparison.only_after == []

    def test_a_comparison_is_saved_as_json_and_csv(self, trained, tmp_path):
        analysis = tb.analyze(trained)
        comparison = tb.compare(analysis, analysis)
        comparison.save(tmp_path / "c.csv")
        comparison.save(tmp_path / "c.json")
        assert pd.read_csv(tmp_path / "c.csv")["delta"][:3].tolist() == [0.0, 0.0, 0.0]
        assert len(json.loads((tmp_path / "c.json").read_text())["layers"]) == 4
        with pytest.raises(AnalysisError, match=r"\.csv or \.html"):
            comparison.save(tmp_path / "c.txt")

    def test_comparing_different_estimators_raises(self, trained):
        with pytest.raises(AnalysisError, match="different estimators"):
            tb.compare(tb.analyze(trained), tb.analyze(trained, estimator=tb.KS()))

    def test_comparing_analyses_without_a_common_layer_raises(self, trained):
        with pytest.raises(AnalysisError, match="no layer is in both"):
            tb.compare(tb.analyze(trained, select="0.*"), tb.analyze(trained, select="1.*"))


HOSTILE = "=cmd|' /C calc'!A0\ud800"


def test_hostile_names_are_written_to_every_format(tmp_path):
    pytest.importorskip("pyarrow")
    analysis = tb.analyze({HOSTILE: torch.randn(64, 48)})
    comparison = tb.compare(analysis, analysis)
    for ending in ("json", "csv", "parquet", "html"):
        analysis.save(tmp_path / f"a.{ending}")
    for ending in ("json", "csv", "html"):
        comparison.save(tmp_path / f"c.{ending}")
    assert tb.Analysis.load(tmp_path / "a.json").layers[0].name == HOSTILE
    for name in "ac":
        assert (tmp_path / f"{name}.csv").read_text().splitlines()[1].startswith("'=cmd|' /C calc'!A0\\ud800,")


SAVED = Path(__file__).parent / "files_before" / "hill.json"


def check_refused(data, tmp_path, message):
    (tmp_path / "a.json").write_text(data if isinstance(data, str) else json.dumps(data))
    with pytest.raises(AnalysisError, match=rf"a\.json is not an analysis saved by tempbalance: .*{message}"):
        tb.Analysis.load(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("schema", "1"),
        ("source", None),
        ("settings", "Hill()"),
        ("settings", {"estimator": {"a": {"b": {}}}}),
        ("layers", {}),
        ("layers", [None]),
        ("skipped", [{"name": "a"}]),
        ("size", {"parameters": 1.5, "weights": 1, "block_weights": 1}),
    ],
)
def test_a_damaged_analysis_is_refused_with_the_field(tmp_path, field, value):
    check_refused(json.loads(SAVED.read_text()) | {field: value}, tmp_path, rf"\$\.{field}")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("name", 3, r"\.name"),
        ("block", [], r"\.block"),
        ("shape", [60], r"\.shape"),
        ("shape", [60, -1], r"\.shape"),
        ("status", "fine", r"\.status"),
        ("alpha", "2.0", r"\.alpha"),
        ("alpha", None, "alpha nan with status ok"),
        ("num_tail", -1, r"\.num_tail"),
        ("num_tail", 10**30, r"\.num_tail"),
        ("esd", None, r"\.esd"),
        ("esd", {"eigenvalues": [-1.0], "ranks": [1]}, r"\.esd\.eigenvalues"),
        ("esd", {"eigenvalues": [1.0], "ranks": []}, "numbers of eigenvalues and ranks"),
    ],
)
def test_a_damaged_layer_is_refused_with_the_field(tmp_path, field, value, message):
    data = json.loads(SAVED.read_text())
    data["layers"][0][field] = value
    check_refused(data, tmp_path, message)


def test_a_layer_without_a_field_and_two_of_one_name_are_refused(tmp_path):
    data = json.loads(SAVED.read_text())
    check_refused(data | {"layers": data["layers"][:1] * 2}, tmp_path, "two layers have the same name")
    del data["layers"][0]["xmin"]
    check_refused(data, tmp_path, "xmin")


@pytest.mark.parametrize("content", ["[" * 100_000, '{"schema": ' + "9" * 5000 + "}", "[]", '{"schema": NaN}', "\x00"])
def test_other_json_is_refused(tmp_path, content):
    check_refused(content, tmp_path, "")


class TestInPython:
    def test_the_repr_is_one_short_line(self, analysis):
        assert repr(analysis).startswith("Analysis(Sequential, 3 layers, median alpha ")
        assert repr(analysis).endswith(", 2 findings)")
        assert len(repr(analysis)) < 200
        assert len(repr(analysis.layers[0])) < 1500
        assert repr(analysis.layers[0].esd).startswith("ESD(80 eigenvalues from ")

    def test_layers_are_found_by_name_and_number(self, analysis):
        assert len(analysis) == 3
        assert [layer.name for layer in analysis] == ["0.weight", "2.weight", "3.weight"]
        assert analysis["2.weight"] is analysis["2"] is analysis[1] is analysis.layers[1]
        assert analysis[-1] is analysis.layers[-1]
        assert "2.weight" in analysis
        assert "2" in analysis
        assert "1.weight" not in analysis

    @pytest.mark.parametrize(
        ("layer", "message"),
        [
            ("1.weight", r"no layer '1.weight' was analysed: 1 of 6400 weights are NaN or Inf"),
            ("0.weigth", r"no layer '0.weigth' was analysed; did you mean 0.weight"),
            (3, "there is no layer 3: 3 were analysed"),
        ],
    )
    def test_a_layer_that_is_not_there_is_an_error_with_the_reason(self, analysis, layer, message):
        with pytest.raises(UnknownLayerError, match=message):
            analysis[layer]
        with pytest.raises(LookupError):
            analysis[layer]

    def test_the_summary_has_the_numbers_of_the_rows(self, analysis):
        summary = analysis.summary()
        alphas = [layer.alpha for layer in analysis.layers[:2]]
        assert (summary["layers"], summary["with_alpha"], summary["untrained"], summary["skipped"]) == (3, 2, 1, 1)
        assert summary["alpha_mean"] == pytest.approx(sum(alphas) / 2)
        assert (summary["alpha_min"], summary["alpha_max"]) == (min(alphas), max(alphas))
        assert summary["stable_rank"] == pytest.approx(sum(layer.stable_rank for layer in analysis) / 3)
        assert summary["alpha_hat"] == pytest.approx(sum(layer.alpha_hat for layer in analysis.layers[:2]) / 2)
        assert summary["parameters"] == analysis.size.parameters
        assert (summary["error"], summary["warning"], summary["note"]) == (1, 1, 0)

    def test_the_summary_without_layers_has_nan(self, analysis):
        summary = tb.Analysis(source="x", settings={}, layers=[]).summary()
        assert (summary["layers"], summary["parameters"]) == (0, None)
        assert math.isnan(summary["alpha_median"])
        assert math.isnan(summary["stable_rank"])

    def test_a_notebook_shows_the_summary_and_the_first_rows_with_names_escaped(self, trained):
        names = [f"<img src=x onerror=alert(1)>.{i}.weight" for i in range(12)]
        analysis = tb.analyze({name: trained[0].weight.detach().clone() for name in names})
        view = analysis._repr_html_()
        assert "12 of 12 weight matrices have a fitted tail: median alpha " in view
        assert "Findings: " in view
        assert "<img" not in view
        assert view.count("<tr") == 1 + 10
        assert "2 more layers: .to_pandas() has all." in view


def test_a_number_that_is_too_large_is_refused(tmp_path):
    data = json.loads(SAVED.read_text())
    data["layers"][0]["alpha"] = 12345.5
    (tmp_path / "a.json").write_text(json.dumps(data).replace("12345.5", "1e400"))
    with pytest.raises(AnalysisError, match="1e400 is too large"):
        tb.Analysis.load(tmp_path / "a.json")
