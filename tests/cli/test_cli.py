import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

import tempbalance as tb
from command_line import check_error, run


@pytest.fixture
def model(trained, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(trained.state_dict(), path)
    return path


@pytest.mark.parametrize("command", [(), ("analyze",), ("compare",), ("demo",)])
def test_help_has_examples(command, capsys):
    assert run(*command, "--help") == 0
    text = capsys.readouterr().out
    assert "Example" in text or not command
    assert "Traceback" not in text


def test_analyze_prints_a_table(model, capsys):
    assert run("analyze", model) == 0
    text = capsys.readouterr().out
    assert "2.20" in text
    assert "\x1b[" not in text  # no colours when piped


def test_analyze_writes_every_format(model, tmp_path):
    outputs = [tmp_path / f"out.{ending}" for ending in ("json", "csv", "parquet", "html")]
    assert run("analyze", model, *(part for path in outputs for part in ("--out", path))) == 0
    assert all(path.stat().st_size > 100 for path in outputs)
    assert {path.name for path in tmp_path.iterdir()} == {model.name, *(path.name for path in outputs)}


@pytest.mark.parametrize(
    "name", ["hill", "averaged-hill", "peak", "ks", "hill-as-released", "peak-as-released", "ks-as-released"]
)
def test_every_estimator_can_be_chosen(name, model, tmp_path):
    assert run("analyze", model, "--estimator", name, "--out", tmp_path / "a.json", "--quiet") == 0
    chosen = json.loads((tmp_path / "a.json").read_text())["settings"]["estimator"]
    assert chosen.partition("(")[0].lower() == name.replace("-", "")


def test_select_and_exclude(model, tmp_path):
    assert run("analyze", model, "--select", "[0-2].*", "--exclude", "1.*", "-o", tmp_path / "a.json", "-q") == 0
    assert [row.name for row in tb.Analysis.load(tmp_path / "a.json").layers] == ["0.weight", "2.weight"]


def test_quiet_prints_nothing(model, capfd):
    assert run("analyze", model, "--quiet") == 0
    assert capfd.readouterr() == ("", "")


def test_compare_takes_analyses_and_models(model, tmp_path, capsys):
    run("analyze", model, "--out", tmp_path / "a.json", "--quiet")
    assert run("compare", tmp_path / "a.json", model, "--out", tmp_path / "c.csv") == 0
    assert "0 of 3 changed" in capsys.readouterr().out
    assert (tmp_path / "c.csv").exists()


def test_demo(minilm, tmp_path, capfd):
    pytest.importorskip("sklearn")
    out = tmp_path / "demo"
    assert run("demo", "--out", out, "--seeds", 2, "--examples", 4) == 0
    assert {path.name for path in out.iterdir()} == {
        *("report.html", "report_ks.html", "analysis.json"),
        *("balancing.html", "balancing.json"),
    }
    assert all(path.stat().st_size < 8e6 for path in out.iterdir())
    assert len(json.loads((out / "balancing.json").read_text())["seeds"]) == 2
    assert '"history":{"refreshes"' in (out / "balancing.html").read_text()
    text, progress = capfd.readouterr()
    assert "attention" in text
    assert "balanced - plain" in text
    assert progress == ""  # silent when piped


def test_demo_without_scikit_learn_is_noticed_before_the_work(minilm, tmp_path, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "sklearn" else find(name))
    assert run("demo", "--out", tmp_path / "demo") == 1
    assert "tempbalance[demo]" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


class TestErrorsAreOneLine:
    def test_missing_path(self, capsys, tmp_path):
        check_error(capsys, "analyze", tmp_path / "nowhere.safetensors", match="nowhere.safetensors")

    def test_unknown_pattern(self, capsys, model):
        check_error(capsys, "analyze", model, "--select", "*.nothing", match="no weight matches")

    def test_unknown_ending(self, capsys, model, tmp_path):
        check_error(capsys, "analyze", model, "--out", tmp_path / "x.xlsx", match=".json, .csv")

    def test_unwritable_folder_is_noticed_before_the_work(self, capsys, model, tmp_path, monkeypatch):
        monkeypatch.setattr("tempbalance.cli.diagnose.analyze", lambda *_args, **_kwargs: pytest.fail("worked in vain"))
        check_error(capsys, "analyze", model, "--out", tmp_path / "nowhere" / "x.json", match="cannot write")

    def test_missing_extra_is_noticed_before_the_work(self, capsys, model, tmp_path, monkeypatch):
        monkeypatch.setattr("tempbalance.cli.diagnose.analyze", lambda *_args, **_kwargs: pytest.fail("worked in vain"))
        monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
        check_error(capsys, "analyze", model, "--out", tmp_path / "x.html", match="tempbalance[report]")

    def test_not_an_analysis(self, capsys, tmp_path):
        (tmp_path / "a.json").write_text("{}")
        check_error(capsys, "compare", tmp_path / "a.json", tmp_path / "a.json", match="not an analysis")


def test_unknown_option_and_estimator(model):
    assert run("analyze", model, "--nonsense") == 2
    assert run("analyze", model, "--estimator", "magic") == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder(model, tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    assert run("analyze", model, "--out", folder / "x.json") == 1


def test_python_m_tempbalance(model):
    command = [sys.executable, "-m", "tempbalance", "analyze", str(model)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "looks untrained" in done.stdout


def test_nan_layer_is_shown_as_skipped(trained, tmp_path, capsys):
    with torch.no_grad():
        trained[1].weight[0, 0] = float("nan")
    save_file(trained.state_dict(), tmp_path / "m.safetensors")
    assert run("analyze", tmp_path / "m.safetensors") == 0
    assert "NaN" in capsys.readouterr().out
