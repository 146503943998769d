import json

import pytest

from tempbalance.errors import StudyError
from tempbalance.study import read_candidates
from tempbalance.study.run_folder import Folder, open_folder
from tempbalance.study.runner import FIRST_TUNING_SEED, run_contest
from tempbalance.study.task import Task, load_task

METHOD = "model_balancing_sciml"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "out").mkdir()
    return Folder(tmp_path / "out")


@pytest.fixture
def log(tmp_path):
    """What the task was called with, a line a call."""
    path = tmp_path / "log"
    path.touch()
    return path


def contest(task_file, folder, *names, lrs=(), seeds=3, tuning_seeds=2, lower_is_better=False, **parameters):
    return run_contest(
        load_task(task_file, parameters),
        read_candidates(names or [METHOD], lrs),
        folder,
        seeds=range(seeds),
        tuning_seeds=tuning_seeds,
        lower_is_better=lower_is_better,
    )


class TestRuns:
    def test_seed_by_seed_every_method(self, task_file, folder, log):
        results = contest(task_file, folder, log=str(log))
        assert log.read_text().split("\n")[:4] == ["plain 0", f"{METHOD} 0", "plain 1", f"{METHOD} 1"]
        assert [[run.seed for run in result.runs] for result in results] == [[0, 1, 2]] * 2
        assert [run.method for run in results[1].runs] == [METHOD] * 3

    def test_what_is_done_is_not_done_again(self, task_file, folder, log):
        first = contest(task_file, folder, log=str(log))
        assert contest(task_file, folder, log=str(log)) == first
        assert len(log.read_text().splitlines()) == 6

    def test_more_seeds_and_methods_add_to_it(self, task_file, folder, log):
        contest(task_file, folder, log=str(log))
        contest(task_file, folder, METHOD, "llr", seeds=4, log=str(log))
        assert len(log.read_text().splitlines()) == 3 * 4

    def test_an_interrupted_contest_goes_on(self, task_file, folder, log, monkeypatch):
        run, made = Task.run, []

        def interrupted(task, trial, seed):
            if len(made) == 3:
                raise KeyboardInterrupt
            made.append((trial.method, seed))
            return run(task, trial, seed)

        monkeypatch.setattr(Task, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            contest(task_file, folder, log=str(log))
        monkeypatch.setattr(Task, "run", run)
        assert len(list(folder.path.rglob("seed-*.json"))) == 3
        assert [len(result.runs) for result in contest(task_file, folder, log=str(log))] == [3, 3]
        assert len(log.read_text().splitlines()) == 6

    def test_a_seed_that_raises_does_not_stop_the_others(self, task_file, folder, caplog):
        results = contest(task_file, folder, raises=[1])
        assert [[run.status for run in result.runs] for result in results] == [["ok", "failed", "ok"]] * 2
        assert "failed: plain, seed 1: RuntimeError: seed 1 is cursed" in caplog.text

    def test_a_failed_run_stays_failed_until_its_file_is_deleted(self, task_file, folder, log):
        contest(task_file, folder, raises=[1], log=str(log))
        results = contest(task_file, folder, log=str(log))
        assert results[0].runs[1].status == "failed"
        folder.file(results[0].chosen, 1).unlink()
        assert contest(task_file, folder, log=str(log))[0].runs[1].status == "ok"
        assert len(log.read_text().splitlines()) == 7

    def test_a_diverged_run_is_kept(self, task_file, folder):
        contest(task_file, folder, diverges=[2])
        assert [run.status for run in contest(task_file, folder)[1].runs] == ["ok", "ok", "diverged"]

    def test_a_damaged_file_names_itself(self, task_file, folder):
        results = contest(task_file, folder)
        path = folder.file(results[0].chosen, 0)
        path.write_text(path.read_text()[:40])
        with pytest.raises(StudyError, match=r"cannot read .*seed-0.json: .*; delete it"):
            contest(task_file, folder)

    def test_names_that_look_alike_as_files_are_kept_apart(self, folder):
        a, b = (read_candidates([name])[1].trials[0] for name in ("llr:high=3,low=1", "llr:high=3,low=1.0"))
        assert folder.file(a, 0) != folder.file(b, 0)


class TestTuning:
    def test_the_best_on_validation_is_run_on_other_seeds(self, task_file, folder, log):
        results = contest(task_file, folder, lrs=[0.1, 0.3, 5.0], log=str(log))
        assert [result.chosen.lr for result in results] == [0.3, 0.3]
        calls = log.read_text().splitlines()
        assert [call.split()[1] for call in calls[:12]] == [str(FIRST_TUNING_SEED)] * 6 + [
            str(FIRST_TUNING_SEED + 1)
        ] * 6
        assert len(calls) == 12 + 6

    def test_where_lower_is_better_the_lowest_is(self, task_file, folder):
        results = contest(task_file, folder, lrs=[0.1, 0.3, 5.0], lower_is_better=True)
        assert [result.chosen.lr for result in results] == [5.0, 5.0]

    def test_a_trial_that_diverges_comes_last(self, task_file, folder):
        diverges = [FIRST_TUNING_SEED]  # the rate of 5, and every balanced run
        results = contest(task_file, folder, lrs=[0.1, 0.3, 5.0], lower_is_better=True, diverges=diverges)
        assert [result.chosen.lr for result in results] == [0.1, 5.0]

    def test_with_one_trial_each_nothing_is_tuned(self, task_file, folder, log):
        contest(task_file, folder, lrs=[0.1], log=str(log))
        assert len(log.read_text().splitlines()) == 6

    def test_to_choose_by_the_test_metric_is_refused_at_the_first_run(self, task_file, folder, log):
        with pytest.raises(StudyError, match="to choose among trials the task must return"):
            contest(task_file, folder, lrs=[0.1, 0.2], returns=1.0, log=str(log))
        assert len(log.read_text().splitlines()) == 1


class TestFolder:
    def test_other_settings_are_refused(self, tmp_path):
        with open_folder(tmp_path / "a", {"task": "x", "parameters": {"n": 1}}, {"seeds": 2}):
            pass
        with open_folder(tmp_path / "a", {"task": "x", "parameters": {"n": 1}}, {"seeds": 5}):
            pass
        with (
            pytest.raises(StudyError, match=r"parameters was \{'n': 1\} and is \{'n': 2\}. Choose another folder"),
            open_folder(tmp_path / "a", {"task": "x", "parameters": {"n": 2}}, {}),
        ):
            pass
        assert json.loads((tmp_path / "a" / "settings.json").read_text())["seeds"] == 5

    def test_a_second_process_is_refused(self, tmp_path):
        with (
            open_folder(tmp_path, {}, {}),
            pytest.raises(StudyError, match="another process works in"),
            open_folder(tmp_path, {}, {}),
        ):
            pass
        with open_folder(tmp_path, {}, {}):
            pass

    def test_a_folder_with_other_files_is_refused(self, tmp_path):
        (tmp_path / "thesis.tex").touch()
        with pytest.raises(StudyError, match="holds files that are no comparison"), open_folder(tmp_path, {}, {}):
            pass
        assert not (tmp_path / "settings.json").exists()

    def test_no_folder_can_be_made(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(StudyError, match="cannot make the folder"), open_folder(tmp_path / "file" / "x", {}, {}):
            pass

    def test_damaged_settings(self, tmp_path):
        (tmp_path / "settings.json").write_text("{")
        with pytest.raises(StudyError, match=r"cannot read .*settings.json"), open_folder(tmp_path, {}, {}):
            pass
