"""``tempbalance study`` as a user meets it."""

import json
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from command_line import check_error, run, started
from tempbalance.study.methods import TRAINING_METHODS

METHOD = "model_balancing_sciml"
GUIDE = Path(__file__).parents[2] / "docs" / "how-to" / "compare-methods.md"


@pytest.fixture
def command(task_file, tmp_path):
    """The beginning of the command on the toy task."""
    return ("study", "--task", task_file, "--out", tmp_path / "out", "--methods", METHOD)


def summary(out):
    return json.loads((out / "summary.json").read_text())


def test_first_seed_chooses_the_seeds(command, tmp_path, capfd):
    assert run(*command, "--first-seed", 20, "--seeds", 3) == 0
    found = sorted(path.name for path in (tmp_path / "out").rglob("*plain*/seed-*.json"))
    assert found == ["seed-20.json", "seed-21.json", "seed-22.json"]
    assert "3 paired seeds" in capfd.readouterr().out


def test_a_study_from_end_to_end(command, tmp_path, capfd):
    assert run(*command, f"{METHOD}:control=shuffled", "--seeds", 10, "--set", "gain=0.5") == 0
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


def test_an_option_takes_many_values_and_may_be_repeated(command, tmp_path):
    assert run(*command, "--lr", 0.1, 0.3, "--seeds", 2, "--tuning-seeds", 1, "--methods", "llr") == 0
    assert [row["method"] for row in summary(tmp_path / "out")["rows"]] == ["plain", METHOD, "llr"]
    assert summary(tmp_path / "out")["trials"] == 2


def test_set_takes_numbers_and_text(command, tmp_path):
    assert run(*command, "--seeds", 2, "--set", "raises=[1]", f"log={tmp_path}/log") == 0
    assert (tmp_path / "log").read_text().splitlines()[2:] == ["plain 1", f"{METHOD} 1"]
    assert [row["failed"] for row in summary(tmp_path / "out")["rows"]] == [1, 1]


def test_words_of_set_are_as_in_the_names_of_methods(task_file, tmp_path, capfd):
    task_file.write_text("def train(seed, method, **given):\n    print(given)\n    method.called = True\n    return 1")
    command = ("study", "--task", task_file, "--out", tmp_path / "out", "--methods", METHOD, "--seeds", 1)
    assert run(*command, "--set", "a=false", "b=True", "c=none", "d=truth", "e='true'") == 0
    assert "{'a': False, 'b': True, 'c': None, 'd': 'truth', 'e': 'true'}" in capfd.readouterr().out


@pytest.mark.parametrize("jobs", [1, 2])
def test_with_json_what_a_task_prints_goes_to_standard_error(task_file, tmp_path, capfd, jobs):
    body = ["os.system('echo hello')", "print('hello')", "method.called = True", "return 1"]
    task_file.write_text("\n    ".join(["import os\ndef train(seed, method):", *body]))
    command = ("study", "--task", task_file, "--out", tmp_path / "out", "--methods", METHOD, "--seeds", 1)
    assert run(*command, "--json", "--jobs", jobs) == 0
    printed = capfd.readouterr()
    assert json.loads(printed.out)["seeds"] == 1
    assert printed.err.count("hello") == 4
    assert run(*command) == 0
    assert "1 seed is too few" in capfd.readouterr().out


def test_a_study_without_a_result_fails_after_its_report_is_saved(command, task_file, tmp_path, capsys):
    task_file.write_text("def train(seed, method):\n    method.called = True\n    return float('nan')")
    assert run(*command, "--seeds", 2, "--json") == 1
    printed = capsys.readouterr()
    assert [row["diverged"] for row in json.loads(printed.out)["rows"]] == [2, 2]
    assert "all trials failed or diverged" in printed.err
    assert (tmp_path / "out" / "report.html").exists()


def test_quick_runs_two_seeds_without_tuning(command, tmp_path, capsys):
    assert run(*command, "--lr", 0.1, 0.3, "--quick") == 0
    assert "2 seeds are too few" in capsys.readouterr().out
    assert len(list((tmp_path / "out").rglob("seed-*.json"))) == 4
    assert run(*command, "--lr", 0.1, "--seeds", 2) == 0
    assert len(list((tmp_path / "out").rglob("seed-*.json"))) == 4


def test_list_prints_every_method_with_its_source_and_needs_no_task(capsys):
    assert run("study", "--list") == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines.keys() >= {"plain", "tempbalance", "tempbalance_as_released", *TRAINING_METHODS}
    assert "Train a low-rank product added to every linear layer" in lines["lora"]
    assert lines["lora"].endswith("[Hu et al., ICLR 2022 (arXiv 2106.09685)]")
    assert "[TempBalance (Zhou et al., NeurIPS 2023" in lines["tempbalance"]


class TestRefused:
    def test_a_method_that_needs_what_the_task_lacks_is_refused_before_training(self, command, capsys, tmp_path):
        check_error(capsys, *command, "ps_kd", match="ps_kd needs the hooks prepare, loss, after_step and labels")
        assert not (tmp_path / "out").exists()

    def test_an_unknown_method_is_refused(self, command, capsys, tmp_path):
        check_error(capsys, *command, "magic", match="no method 'magic'; the methods are plain, alphadecay")
        assert not (tmp_path / "out").exists()

    def test_an_unknown_argument_is_refused(self, command, capsys):
        check_error(capsys, *command, "--set", "speed=9", match="unexpected keyword argument 'speed'")

    @pytest.mark.parametrize("setting", ["speed", "=9", "seed=1", "lr=1"])
    def test_a_malformed_setting_is_refused(self, command, capsys, setting):
        check_error(capsys, *command, "--set", setting, match="--set requires NAME=VALUE")

    def test_a_changed_task_in_the_same_folder_is_refused(self, command, capsys, task_file):
        assert run(*command, "--quick") == 0
        capsys.readouterr()
        task_file.write_text(task_file.read_text() + "\n# another\n")
        check_error(capsys, *command, "--quick", match="contains trials with other settings")

    def test_another_direction_in_the_same_folder_is_refused(self, command, capsys):
        assert run(*command, "--quick") == 0
        capsys.readouterr()
        check_error(capsys, *command, "--quick", "--lower-is-better", match="lower_is_better was False and is True")


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal")
def test_an_interrupted_or_killed_study_loses_only_the_current_trial(tmp_path):
    task = tmp_path / "slow.py"
    body = ["method.called = True", "time.sleep(60 * (seed == 1))", "return 1"]
    task.write_text("\n    ".join(["import time\ndef train(seed, method):", *body]))
    begin = [sys.executable, "-m", "tempbalance", "study", "--task", task, "--methods", METHOD, "--seeds", "3"]
    signals = {signal.SIGINT: 130, signal.SIGKILL: -signal.SIGKILL}
    outs = {number: tmp_path / number.name for number in signals}
    processes = {number: started([*map(str, begin), "--out", str(out)]) for number, out in outs.items()}
    for number, status in signals.items():
        process, out = processes[number], outs[number]
        while not (done := len(list(out.rglob("seed-*.json")))) == 2 and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(number)
        _, err = process.communicate()
        assert (done, process.returncode) == (2, status)
        assert number is signal.SIGKILL or "run the same command again to resume" in err
        assert all(json.loads(path.read_text())["status"] == "ok" for path in out.rglob("seed-*.json"))


def test_the_complete_task_of_the_guide_runs(command, task_file, tmp_path):
    pytest.importorskip("sklearn")
    blocks = re.findall(r"^```py\n(.*?)^```", GUIDE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    (block,) = (block for block in blocks if block.startswith("# my_task.py"))
    task_file.write_text(block)
    assert run(*command, "--quick") == 0
    assert [row["failed"] for row in summary(tmp_path / "out")["rows"]] == [0, 0]
    assert all(0.5 < row["mean"] < 1 for row in summary(tmp_path / "out")["rows"])
