import functools
import importlib.util
import inspect
import json
import os
import re
import runpy
import sys
from importlib.metadata import version

import pytest
import torch
from safetensors.torch import load_file, save_file

import tempbalance as tb
import tempbalance.demo
from command_line import check_error, run
from tempbalance.cli.demo import demo_command


@pytest.fixture
def model(trained, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(trained.state_dict(), path)
    return path


@pytest.mark.parametrize("command", [(), ("analyze",), ("compare",), ("track",), ("demo",)])
def test_help_of_every_command_has_examples(command, capsys):
    assert run(*command, "--help") == 0
    text = capsys.readouterr().out
    assert "Example" in text or not command
    assert "Traceback" not in text


def test_analyze_prints_a_table(model, capsys):
    assert run("analyze", model) == 0
    text = capsys.readouterr().out
    assert "2.20" in text
    assert "\x1b[" not in text  # no colours when piped


def test_names_are_whole_in_a_pipe(tmp_path, capsys):
    name = "a_very_long_name." * 12
    save_file({f"{name}{i}.weight": torch.randn(64, 64) for i in range(2)}, tmp_path / "model.safetensors")
    assert run("allocate", tmp_path / "model.safetensors", "--sparsity", 0.5) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(f"{name}0" in line and "50.0%" in line for line in lines)


def test_a_shell_completes_commands(capsys, monkeypatch):
    for name, value in {
        "_TEMPBALANCE_COMPLETE": "complete_bash",
        "COMP_WORDS": "tempbalance a",
        "COMP_CWORD": "1",
    }.items():
        monkeypatch.setenv(name, value)
    assert run() == 0
    assert capsys.readouterr().out.split() == ["analyze", "allocate"]


def test_analyze_writes_every_format(model, tmp_path):
    pytest.importorskip("pyarrow")
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


class TestFailOn:
    @pytest.mark.parametrize("wanted", ["untrained", "nan,untrained", "warning", "note", "any"])
    def test_a_finding_of_the_kind_or_severity_ends_with_status_3(self, wanted, model, tmp_path, capsys):
        assert run("analyze", model, "--fail-on", wanted, "--out", tmp_path / "a.json") == 3
        out, err = capsys.readouterr()
        assert "Findings: 1 warning" in out
        assert err == "error: findings of --fail-on: untrained\n"
        assert (tmp_path / "a.json").exists()

    @pytest.mark.parametrize("wanted", [("nan",), ("error",), ("nan", "--fail-on", "outlier")])
    def test_other_findings_do_not(self, wanted, model):
        assert run("analyze", model, "--quiet", "--fail-on", *wanted) == 0

    @pytest.mark.parametrize("wanted", ["untraind", "", "nan,"])
    def test_an_unknown_kind_is_a_usage_error_before_any_work(self, wanted, tmp_path, capsys):
        assert run("analyze", tmp_path / "missing", "--fail-on", wanted) == 2
        assert "untrained" in capsys.readouterr().err


def test_analyze_prints_json_with_the_findings(model, tmp_path, capsys):
    assert run("analyze", model, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert [finding["kind"] for finding in printed["findings"]] == ["untrained"]
    assert run("analyze", model, "--out", "-", "--out", tmp_path / "a.csv") == 0
    assert json.loads(capsys.readouterr().out) == printed


def test_select_and_exclude_choose_weights_by_glob(model, tmp_path):
    assert run("analyze", model, "--select", "[0-2].*", "--exclude", "1.*", "-o", tmp_path / "a.json", "-q") == 0
    assert [row.name for row in tb.Analysis.load(tmp_path / "a.json").layers] == ["0.weight", "2.weight"]


def test_key_chooses_a_state_dict_of_a_training_checkpoint(tmp_path):
    weight = torch.randn(64, 64)
    torch.save({"model": {"fc.weight": weight}, "ema": {"fc.weight": 3 * weight}}, tmp_path / "last.pt")
    assert run("analyze", tmp_path / "last.pt", "--key", "ema", "-q", "--out", tmp_path / "ema.json") == 0
    assert run("analyze", tmp_path / "last.pt", "-q", "--out", tmp_path / "model.json") == 0
    chosen, default = (tb.Analysis.load(tmp_path / f"{name}.json").layers[0] for name in ("ema", "model"))
    assert chosen.lambda_max == pytest.approx(9 * default.lambda_max)


def test_analyze_quiet_prints_nothing(model, capfd):
    assert run("analyze", model, "--quiet") == 0
    assert capfd.readouterr() == ("", "")


def test_compare_takes_saved_analyses_and_models(model, tmp_path, capsys):
    run("analyze", model, "--out", tmp_path / "a.json", "--quiet")
    assert run("compare", tmp_path / "a.json", model, "--out", tmp_path / "c.csv") == 0
    assert "alpha did not change in any of 3 layers" in capsys.readouterr().out
    assert (tmp_path / "c.csv").exists()


def test_demo_finds_the_damaged_layer_and_writes_its_reports(minilm, tmp_path, capfd, monkeypatch):
    pytest.importorskip("sklearn")
    short = functools.partial(tempbalance.demo.Settings, epochs=4, pretrain_epochs=2)
    monkeypatch.setattr("tempbalance.demo.Settings", short)
    whole = tempbalance.demo.train_language_model

    def briefly(seed, method, lr):
        return whole(seed, method, lr, steps=2)

    monkeypatch.setattr("tempbalance.demo.train_language_model", briefly)
    out = tmp_path / "demo"
    assert run("demo", "--out", out, "--seeds", 2, "--examples", 1) == 0
    assert {path.name for path in out.iterdir()} == {
        *("report.html", "analysis.json", "damaged.html"),
        *("finetuned.html", "balancing.html", "balancing.json", "language"),
    }
    assert all(path.stat().st_size < 2e6 for path in out.glob("*.html"))
    assert len(json.loads((out / "balancing.json").read_text())["seeds"]) == 2
    assert 'id="history"' in (out / "balancing.html").read_text()
    text, progress = capfd.readouterr()
    assert re.search(r"encoder.layer.3.attention.self.query.weight, pooler.dense.weight .* look untrained", text)
    assert "moved_most" in text
    assert "balanced - plain" in text
    assert "control: queries and keys instead" in text
    assert "tempbalance study --task" in text
    assert progress == ""  # silent when piped


def test_demo_defaults_are_those_of_its_settings():
    parameters = inspect.signature(demo_command).parameters
    settings = tempbalance.demo.Settings()
    assert (parameters["seeds"].default, parameters["examples"].default) == (settings.seeds, settings.examples)


def test_demo_without_scikit_learn_fails_before_it_writes(minilm, tmp_path, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "sklearn" else find(name))
    assert run("demo", "--out", tmp_path / "demo") == 1
    assert "tempbalance[demo]" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


class TestErrorsAreOneLine:
    def test_analyze_of_a_missing_path_prints_one_line(self, capsys, tmp_path):
        check_error(capsys, "analyze", tmp_path / "nowhere.safetensors", match="nowhere.safetensors")

    def test_select_without_a_match_prints_one_line(self, capsys, model):
        check_error(capsys, "analyze", model, "--select", "*.nothing", match="no weight matches")

    def test_an_output_with_an_unknown_suffix_is_refused(self, capsys, model, tmp_path):
        check_error(capsys, "analyze", model, "--out", tmp_path / "x.xlsx", match=".json, .csv")

    def test_an_unwritable_folder_is_reported_before_the_source_is_opened(self, capsys, tmp_path):
        check_error(capsys, "analyze", "missing.pt", "--out", tmp_path / "nowhere" / "x.json", match="cannot write")

    def test_a_missing_extra_is_reported_before_the_source_is_opened(self, capsys, tmp_path, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
        check_error(capsys, "analyze", "missing.pt", "--out", tmp_path / "x.parquet", match="tempbalance[parquet]")

    def test_compare_refuses_a_json_file_that_is_not_an_analysis(self, capsys, tmp_path):
        (tmp_path / "a.json").write_text("{}")
        check_error(capsys, "compare", tmp_path / "a.json", tmp_path / "a.json", match="not an analysis")


@pytest.mark.skipif(getattr(os, "geteuid", int)() == 0, reason="root may write everywhere")
def test_an_output_in_a_read_only_folder_is_refused(model, tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    assert run("analyze", model, "--out", folder / "x.json") == 1


def test_python_m_tempbalance_runs_the_command_line(model, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tempbalance", "analyze", str(model)])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("tempbalance", run_name="__main__")
    assert stopped.value.code == 0
    assert "looks untrained" in capsys.readouterr().out


def test_version_is_printed(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out == f"tempbalance {version('tempbalance')}\n"


def test_commands_and_options_that_do_not_exist_are_usage_errors(model, capsys):
    for arguments in [
        ("frobnicate",),
        ("arena",),
        ("analyze", model, "--nonsense"),
        ("analyze", model, "--estimator", "magic"),
    ]:
        assert run(*arguments) == 2
        assert "Traceback" not in capsys.readouterr().err


def test_a_layer_with_nan_is_printed_as_skipped(trained, tmp_path, capsys):
    with torch.no_grad():
        trained[1].weight[0, 0] = float("nan")
    save_file(trained.state_dict(), tmp_path / "m.safetensors")
    assert run("analyze", tmp_path / "m.safetensors") == 0
    assert "NaN" in capsys.readouterr().out


class TestCompare:
    def test_two_models_are_compared_under_other_names(self, model, tmp_path, capsys):
        tensors = {f"net.{name}": 1.5 * tensor for name, tensor in load_file(model).items()}
        save_file(tensors, tmp_path / "b.safetensors")
        page = tmp_path / "c.html"
        assert run("compare", model, tmp_path / "b.safetensors", "--rename", "=net.", "--out", page) == 0
        text = capsys.readouterr().out
        assert text.index("moved most") < text.index("Largest changes of the weights")
        assert "50.000%" in text
        assert page.exists()

    def test_json_is_printed(self, model, capsys):
        assert run("compare", model, model, "--json") == 0
        assert json.loads(capsys.readouterr().out)["findings"][0]["kind"] == "identical"

    def test_a_rule_without_a_sign_is_a_usage_error(self, model, capsys):
        assert run("compare", model, model, "--rename", "a.") == 2
        assert "has no '='" in capsys.readouterr().err


class TestTrack:
    @pytest.fixture
    def training(self, model, tmp_path):
        tensors = load_file(model)
        for step in (1, 2, 10):
            folder = tmp_path / "run" / f"checkpoint-{step}"
            folder.mkdir(parents=True)
            save_file(
                {name: tensor * (1 + 0.1 * step) for name, tensor in tensors.items()}, folder / "model.safetensors"
            )
        return tmp_path / "run"

    def test_a_run_is_printed_by_step_and_saved(self, training, tmp_path, capsys):
        outputs = [part for ending in ("json", "csv", "html") for part in ("--out", tmp_path / f"t.{ending}")]
        assert run("track", training, *outputs) == 0
        lines = capsys.readouterr().out.splitlines()
        rows = [line.split() for line in lines if line.startswith("checkpoint-")]
        assert [(row[0], row[1], row[5]) for row in rows] == [
            ("checkpoint-1", "1", "0.000%"),
            ("checkpoint-2", "2", "9.091%"),
            ("checkpoint-10", "10", "81.818%"),
        ]
        assert lines[0] == "3 checkpoints, checkpoint-1 to checkpoint-10"
        assert {path.name for path in tmp_path.glob("t.*")} == {"t.json", "t.csv", "t.html"}

    def test_json_is_printed(self, training, capsys):
        assert run("track", training, "--out", "-") == 0
        assert [found["step"] for found in json.loads(capsys.readouterr().out)["checkpoints"]] == [1, 2, 10]

    def test_an_interrupted_run_says_how_to_resume(self, training, tmp_path, capsys, monkeypatch):
        digest = tempbalance.analysis.tracker.weights_digest

        def interrupt(source):
            if source.path.name == "checkpoint-2":
                raise KeyboardInterrupt
            return digest(source)

        monkeypatch.setattr("tempbalance.analysis.tracker.weights_digest", interrupt)
        assert run("track", training, "--out", tmp_path / "t.json") == 130
        assert "run the same command again to resume" in capsys.readouterr().err
        assert (tmp_path / "t.json.partial").exists()
        assert not (tmp_path / "t.json").exists()

    def test_revisions_are_of_one_hub_id(self, training, capsys):
        assert run("track", "org/a", "org/b", "--revision", "main") == 2
        assert "id@revision" in capsys.readouterr().err

    def test_a_damaged_checkpoint_is_an_error_with_strict(self, training, capsys):
        (training / "checkpoint-2" / "model.safetensors").write_bytes(b"")
        assert run("track", training) == 0
        assert "error    checkpoint-2 cannot be read" in capsys.readouterr().out
        check_error(capsys, "track", training, "--strict", match="checkpoint-2")
