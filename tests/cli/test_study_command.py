"""``tempbalance arena`` as a user meets it."""

import json
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from command_line import check_error, run, started

pytest.importorskip("plotly")
METHOD = "model_balancing_sciml"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def arena(task_file, tmp_path):
    """The beginning of the command on the toy task."""
    return ("arena", "--task", task_file, "--out", tmp_path / "out", "--methods", METHOD)


def summary(out):
    return json.loads((out / "summary.json").read_text())


def test_other_seeds_confirm_a_result(arena, tmp_path, capfd):
    assert run(*arena, "--first-seed", 20, "--seeds", 3) == 0
    found = sorted(path.name for path in (tmp_path / "out").rglob("*plain*/seed-*.json"))
    assert found == ["seed-20.json", "seed-21.json", "seed-22.json"]
    assert "3 paired seeds" in capfd.readouterr().out


def test_a_comparison_from_end_to_end(arena, tmp_path, capfd):
    assert run(*arena, f"{METHOD}:control=shuffled", "--seeds", 10, "--set", "gain=0.5") == 0
    text, progress = capfd.readouterr()
    assert f"Use {METHOD}: on this task it is better than plain by 0.50" in " ".join(text.split())
    assert progress == ""  # silent when piped
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {".lock", "runs", "settings.json", "summary.json", "report.html"}
    assert len(list(out.rglob("seed-*.json"))) == 30
    assert [row["method"] for row in summary(out)["rows"]] == ["plain", METHOD, f"{METHOD}:control=shuffled"]
    settings = json.loads((out / "settings.json").read_text())
    assert settings["settings"]["parameters"] == {"gain": 0.5}
    assert settings["settings"]["versions"].keys() == {"tempbalance", "torch", "numpy"}


def test_an_option_may_have_many_values_or_come_many_times(arena, tmp_path):
    assert run(*arena, "--lr", 0.1, 0.3, "--seeds", 2, "--tuning-seeds", 1, "--methods", "llr") == 0
    assert [row["method"] for row in summary(tmp_path / "out")["rows"]] == ["plain", METHOD, "llr"]
    assert summary(tmp_path / "out")["trials"] == 2


def test_values_that_are_set_are_numbers_or_text(arena, tmp_path):
    assert run(*arena, "--seeds", 1, "--set", "raises=[0]", f"log={tmp_path}/log") == 0
    assert (tmp_path / "log").read_text().splitlines() == ["plain 0", f"{METHOD} 0"]
    assert [row["failed"] for row in summary(tmp_path / "out")["rows"]] == [1, 1]


def test_quick_only_shows_that_it_runs(arena, tmp_path, capsys):
    assert run(*arena, "--lr", 0.1, 0.3, "--quick") == 0
    assert "2 seeds are too few" in capsys.readouterr().out
    assert len(list((tmp_path / "out").rglob("seed-*.json"))) == 4
    assert run(*arena, "--lr", 0.1, "--seeds", 2) == 0
    assert len(list((tmp_path / "out").rglob("seed-*.json"))) == 4


class TestRefused:
    def test_unknown_method(self, arena, capsys, tmp_path):
        check_error(capsys, *arena, "magic", match="no method 'magic'; the methods are plain, alphadecay")
        assert not (tmp_path / "out").exists()

    def test_unknown_argument(self, arena, capsys):
        check_error(capsys, *arena, "--set", "speed=9", match="unexpected keyword argument 'speed'")

    @pytest.mark.parametrize("setting", ["speed", "=9", "seed=1", "lr=1"])
    def test_no_setting(self, arena, capsys, setting):
        check_error(capsys, *arena, "--set", setting, match="--set takes NAME=VALUE")

    def test_another_task_in_the_same_folder(self, arena, capsys, task_file):
        assert run(*arena, "--quick") == 0
        capsys.readouterr()
        task_file.write_text(task_file.read_text() + "\n# another\n")
        check_error(capsys, *arena, "--quick", match="holds runs with other settings")

    def test_another_direction_in_the_same_folder(self, arena, capsys):
        assert run(*arena, "--quick") == 0
        capsys.readouterr()
        check_error(capsys, *arena, "--quick", "--lower-is-better", match="lower_is_better was False and is True")

    def test_without_plotly(self, arena, capsys, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
        check_error(capsys, *arena, match="tempbalance[report]")


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal")
def test_a_killed_comparison_loses_only_the_run_it_was_in(tmp_path):
    task = tmp_path / "slow.py"
    body = ["method.called = True", "time.sleep(60 * (seed == 1))", "return 1"]
    task.write_text("\n    ".join(["import time\ndef train(seed, method):", *body]))
    command = [sys.executable, "-m", "tempbalance", "arena", "--task", task, "--methods", METHOD, "--seeds", "3"]
    for number, status in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        out = tmp_path / number.name
        process = started([*map(str, command), "--out", str(out)])
        while not (done := len(list(out.rglob("seed-*.json")))) == 2 and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(number)
        _, err = process.communicate()
        assert (done, process.returncode) == (2, status)
        assert number is signal.SIGKILL or "give the same command again to go on" in err
        assert all(json.loads(path.read_text())["status"] == "ok" for path in out.rglob("seed-*.json"))


def test_the_task_of_the_readme(arena, task_file, tmp_path):
    pytest.importorskip("sklearn")
    block = re.search(r"^```py\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL | re.MULTILINE)
    task_file.write_text(block[1])
    assert run(*arena, "--quick") == 0
    assert [row["failed"] for row in summary(tmp_path / "out")["rows"]] == [0, 0]
    assert all(0.5 < row["mean"] < 1 for row in summary(tmp_path / "out")["rows"])
