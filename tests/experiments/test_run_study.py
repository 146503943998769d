"""The studies of an experiment by one command, on a task of milliseconds."""

import json

import pytest
import run_study
from claims import Experiment, Metric, Search, Study, TaskRow
from results_file import load_results
from what_helps import load_rows

import tempbalance as tb
from study_task import TASK

METHOD = "model_balancing_sciml"


def study(name="one", parameters=None, **options):
    given = {"methods": (METHOD,), "lr": (0.1, 0.3), "seeds": 3, "tuning_seeds": 2} | options
    return Study(name=name, parameters={"examples": 4, **(parameters or {})}, **given)


@pytest.fixture
def command(tmp_path):
    """Makes the command that runs some studies in this process."""
    task = tmp_path / "toy.py"
    task.write_text(TASK)

    def make(*studies, **options):
        metric = Metric(name="score", unit="points")
        parts = {"size": ("examples", "examples"), "claims": (), "quick": studies[:1], "full": studies} | options
        experiment = Experiment(name="toy", task=str(task), metric=metric, **parts)

        def run(*argv):
            given = ["toy", "--jobs", "1", *argv, "--out", str(tmp_path / "runs"), "--data", str(tmp_path / "data")]
            return run_study.main(given, experiment=experiment, results=tmp_path / "results")

        return run

    return make


def results(tmp_path):
    return json.loads((tmp_path / "results" / "toy.json").read_text())


def test_the_studies_of_an_experiment_are_collected_in_one_file(command, tmp_path, capsys):
    assert command(study("one"), study("two", {"gain": 0.5}))("--full") == 0
    found = results(tmp_path)
    assert list(found) == ["one", "two"]
    assert [len(entry["runs"]) for entry in found.values()] == [2 * (2 * 2 + 3)] * 2
    assert found["two"]["settings"]["settings"]["parameters"] == {"examples": 4, "gain": 0.5}
    assert found["two"]["settings"]["settings"]["versions"].keys() == {"tempbalance", "torch", "numpy"}
    assert [row["method"] for row in found["two"]["summary"]["rows"]] == ["plain", METHOD]
    assert all(run["seconds"] > 0 for run in found["two"]["runs"])
    assert "two: 3 of 3 seeds; 14 trials, 0 diverged, 0 failed" in capsys.readouterr().out


def test_quick_does_not_change_the_committed_results(command, tmp_path):
    assert command(study("one"), study("two"))("--quick") == 0
    assert not (tmp_path / "results").exists()
    assert list(json.loads((tmp_path / "runs" / "toy" / "quick.json").read_text())) == ["one"]


def test_only_one_study_keeps_the_results_of_the_others(command, tmp_path):
    run = command(study("one"), study("two"))
    assert run("--full") == 0
    before = results(tmp_path)
    assert run("--full", "--only", "two") == 0
    assert results(tmp_path) == before


def test_the_same_command_runs_only_missing_trials(command, tmp_path):
    log = tmp_path / "log"
    assert command(study("one", {"log": str(log)}, seeds=2))("--full") == 0
    before = log.read_text()
    assert command(study("one", {"log": str(log)}, seeds=3))("--full") == 0
    added = log.read_text().removeprefix(before).splitlines()
    assert added == ["plain 2", f"{METHOD} 2"]


def test_diverged_and_failed_trials_are_counted_and_kept(command, tmp_path, capsys):
    assert command(study("one", {"diverges": (0,), "raises": (2,)}))("--full") == 0
    assert "14 trials, 1 diverged, 2 failed" in capsys.readouterr().out
    failed = [run for run in results(tmp_path)["one"]["runs"] if run["status"] == "failed"]
    assert {run["error"] for run in failed} == {"RuntimeError: seed 2 fails"}
    assert [row["diverged"] for row in results(tmp_path)["one"]["summary"]["rows"]] == [0, 1]


def test_restored_trials_are_reused(command, tmp_path):
    log = tmp_path / "log"
    run = command(study("one", {"log": str(log), "diverges": (1,)}))
    assert run("--full") == 0
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    before, text = log.read_text(), (tmp_path / "results" / "toy.json").read_text()
    assert run("--full", "--restore") == 0
    assert log.read_text() == before
    assert (tmp_path / "results" / "toy.json").read_text() == text


def test_trials_of_a_changed_task_are_refused(command, tmp_path, capsys):
    run = command(study("one"))
    assert run("--full") == 0
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    (tmp_path / "toy.py").write_text(TASK + "\n")
    assert run("--full", "--restore") == 1
    assert "one: stopped, " in (err := capsys.readouterr().err)
    assert "trials with other settings" in err


def test_trials_of_an_earlier_task_with_the_same_numbers_are_restored(command, tmp_path):
    log = tmp_path / "log"
    one = study("one", {"log": str(log)})
    assert command(one)("--full") == 0
    digest = tb.study.load_task(tmp_path / "toy.py").digest
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    before = log.read_text()
    run = command(one, same_tasks=(digest,))
    (tmp_path / "toy.py").write_text(TASK + "\n")
    assert run("--full", "--restore") == 0
    assert log.read_text() == before
    assert digest not in results(tmp_path)["one"]["settings"]["settings"]["task"]


def test_collect_trains_nothing_and_takes_complete_seeds(command, tmp_path, capsys):
    log = tmp_path / "log"
    run = command(study("one", {"log": str(log)}, seeds=4))
    assert run("--full", "--collect") == 1
    assert "no seed is finished yet" in capsys.readouterr().err
    assert not log.exists()
    assert run("--full") == 0
    (folder,) = (tmp_path / "runs" / "toy" / "one" / "runs").glob(f"{METHOD}_lr=0.3-*")
    (folder / "seed-2.json").unlink()
    before = log.read_text()
    assert run("--full", "--collect") == 0
    assert log.read_text() == before
    assert results(tmp_path)["one"]["summary"]["seeds"] == 3
    assert "one: 3 of 4 seeds" in capsys.readouterr().out


def test_missing_data_is_named_and_its_study_skipped(command, tmp_path, capsys):
    run = command(study("one"), study("two", data="texts", files=("a.tsv",)), sources={"texts": "get it from a site"})
    assert run("--full") == 1
    where = tmp_path / "data" / "texts"
    skipped = f"two: skipped, there is no {where}: get it from a site; --data names the folder"
    assert skipped in capsys.readouterr().err
    assert list(results(tmp_path)) == ["one"]
    where.mkdir(parents=True)
    assert run("--full", "--only", "two") == 1
    assert f"there is no {where / 'a.tsv'}" in capsys.readouterr().err
    (where / "a.tsv").touch()
    assert run("--full") == 0
    assert results(tmp_path)["two"]["settings"]["settings"]["parameters"] == {"examples": 4}  # without the path


@pytest.fixture
def search():
    """Makes a search on a task in which any multipliers gain, or lose."""
    pytest.importorskip("optuna")

    def make(gain):
        parameters = {"examples": 4, "gain": gain}
        return Search(name="found", parameters=parameters, lr=(0.1, 0.3), seeds=5, tuning_seeds=1, trials=5)

    return make


def test_a_search_is_collected_with_the_study_that_confirms_it(command, tmp_path, capsys, monkeypatch, search):
    row = TaskRow(title="Toy", study=search(0.5), methods={"role, searched": None})
    given = {"searches": (search(0.5),), "task_rows": (row,)}
    assert command(study("one"), **given)("--search") == 0
    (entry,) = results(tmp_path).values()
    assert [len(entry["search"][part]) for part in ("trials", "units")] == [5, 2]
    assert [row["method"].partition(":")[0] for row in entry["summary"]["rows"]] == ["plain", "fixed", "fixed", "fixed"]
    assert "found: 5 of 5 seeds; 20 trials" in capsys.readouterr().out
    metric = Metric(name="score", unit="points")
    parts = {"size": ("", ""), "claims": (), "quick": (), "full": (), **given}
    experiment = Experiment(name="toy", task="", metric=metric, **parts)
    monkeypatch.setattr("what_helps.NAMES", ("toy",))
    monkeypatch.setattr("what_helps.load_experiment", lambda name: experiment)
    (shown,) = load_rows(tmp_path / "results")
    assert shown.cells["role, searched"].gain.mean == pytest.approx(0.5, abs=0.2)
    assert load_results(experiment, tmp_path / "results").keys() == {"found"}


def test_a_search_is_not_restored(command, capsys, search):
    assert command(study("one"), searches=(search(0.5),))("--search", "--restore") == 1
    assert "a search resumes from its own folder" in capsys.readouterr().err


def test_a_search_that_finds_nothing_has_no_results(command, tmp_path, capsys, search):
    assert command(study("one"), searches=(search(-0.5),))("--search") == 1
    assert "found: no multipliers were better than plain" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_a_missing_package_is_named(command, capsys):
    assert command(study("one"), packages={"no_such_package": "pip install it"})("--full") == 1
    assert "one: skipped, it needs the package no_such_package: pip install it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ("no_such_method",)}, "there is no method 'no_such_method'"),
        ({"methods": ("llr:high=[3,5]",)}, "every method needs the same number of configurations"),
    ],
)
def test_a_wrong_study_is_refused_before_any_trial(command, tmp_path, capsys, options, message):
    assert command(study("one"), study("two", **options))("--full") == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("seed-*.json"))


def test_an_unknown_study_is_refused(command, capsys):
    assert command(study("one"))("--full", "--only", "three") == 1
    assert "error: toy has no study three; it has one" in capsys.readouterr().err


def test_damaged_results_are_refused(command, tmp_path, capsys):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "toy.json").write_text('{"one": {"settings": ')
    assert command(study("one"))("--full", "--restore") == 1
    assert "error: cannot read" in capsys.readouterr().err
