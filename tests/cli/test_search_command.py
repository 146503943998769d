"""``tempbalance search`` as a user meets it."""

import json
import sys

import pytest

import search_task
from command_line import check_error, run

pytest.importorskip("optuna")


@pytest.fixture
def command(tmp_path, monkeypatch):
    """The beginning of the command on the toy task."""
    monkeypatch.setattr(sys, "path", [*sys.path])  # loading a task adds its folder
    path = tmp_path / "toy.py"
    path.write_text(search_task.TASK)
    options = ("--lr", 0.003, 0.01, "--units", "role:v", "role:o", "--trials", 4, "--lower-is-better")
    return ("search", "--task", path, "--out", tmp_path / "out", *options)


def test_a_search_from_end_to_end(command, tmp_path, capfd):
    assert run(*command, "--confirm", 10) == 0
    text, progress = capfd.readouterr()
    assert progress == ""  # silent when piped, and nothing of optuna
    words = " ".join(text.split())
    assert "Best of 4 trials (value and output 0.25): validation " in words
    assert "role:v 2 0.25 0.0025 " in words
    assert "Use fixed:multipliers={'role:v':0.25,'role:o':0.25} lr=0.01: on this task it is better" in words
    assert "It is also better than its controls" in words
    out = tmp_path / "out"
    files = {"multipliers.yaml", "axolotl.yaml", "param_groups.py", "summary.json", "report.html", "settings.json"}
    assert {path.name for path in out.iterdir()} == {*files, ".lock", "runs", "confirmation"}
    assert text.count("saved ") == 5
    page = (out / "report.html").read_text()
    assert "Use fixed:multipliers=" in page
    assert "value and output 0.25" in page
    assert "Use fixed:multipliers=" in (out / "confirmation" / "report.html").read_text()


def test_json_is_the_summary(command, tmp_path, capfd):
    assert run(*command, "--confirm", 0, "--json") == 0
    assert json.loads(capfd.readouterr().out) == json.loads((tmp_path / "out" / "summary.json").read_text())


def test_what_was_found_is_a_method_of_a_study(command, tmp_path, capfd):
    assert run(*command, "--confirm", 0) == 0
    method = f"fixed:multipliers='{tmp_path}/out/multipliers.yaml'"
    study = ("study", "--task", tmp_path / "toy.py", "--out", tmp_path / "study", "--lr", 0.01, "--lower-is-better")
    assert run(*study, "--methods", method, f"{method},control=uniform", "--seeds", 10) == 0
    assert "Use fixed:multipliers={'role:v':0.25,'role:o':0.25} lr=0.01" in " ".join(capfd.readouterr().out.split())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (("--units", "role:gate"), "no parameter of the model"),
        (("--set", "diverges_above=0.001"), "lower lr"),
        (("--set", "lr=1"), "--set requires NAME=VALUE"),
        (("--trials", 2), "fewer than the starting points"),
    ],
)
def test_a_wrong_option_is_one_line(command, options, match, capsys):
    check_error(capsys, *command, *options, match=match)


def test_two_searches_in_one_folder(command, capsys):
    assert run(*command, "--confirm", 0) == 0
    capsys.readouterr()
    check_error(capsys, *command, "--bounds", 0.5, 2, match="search was")
