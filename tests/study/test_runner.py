import json
import re

import pytest
import torch

import tempbalance as tb
from tempbalance.errors import StudyError
from tempbalance.study import Configuration, collect_folder
from tempbalance.study.runner import FIRST_TUNING_SEED
from tempbalance.study.study_folder import StudyFolder

METHOD = "model_balancing_sciml"


@pytest.fixture
def log(tmp_path):
    """One line per call of the task."""
    path = tmp_path / "log"
    path.touch()
    return path


@pytest.fixture
def run(task_file, tmp_path, log):
    """Runs a study of the toy task in ``out``; returns its summary."""

    def run(*methods, seeds=3, tuning_seeds=2, paths=None, **options):
        given = {"seeds": seeds, "tuning_seeds": tuning_seeds, "paths": {"log": str(log), **(paths or {})}}
        return tb.study.run(task_file, methods or [METHOD], tmp_path / "out", **given, **options)

    return run


@pytest.fixture
def trial(tmp_path):
    """The file of a trial in ``out``."""
    return lambda method, seed, lr=None: StudyFolder(tmp_path / "out").file(Configuration(method, lr), seed)


def model_and_optimizer():
    model = torch.nn.Sequential(*(torch.nn.Linear(60, 60) for _ in range(3)))
    return torch.optim.SGD(model.parameters(), lr=0.1), model


def statuses(tmp_path, method):
    return [run["status"] for run in collect_folder(tmp_path / "out")["runs"] if run["method"] == method]


class TestTrials:
    def test_all_methods_are_trained_seed_by_seed(self, run, log, tmp_path):
        summary = run()
        assert log.read_text().split("\n")[:4] == ["plain 0", f"{METHOD} 0", "plain 1", f"{METHOD} 1"]
        assert [row.method for row in summary.rows] == ["plain", METHOD]
        assert [*summary.rows[1].gains] == [0, 1, 2]
        assert json.loads((tmp_path / "out" / "summary.json").read_text())["seeds"] == 3

    def test_one_method_may_be_given_without_a_list(self, task_file, tmp_path):
        summary = tb.study.run(task_file, METHOD, tmp_path / "out", seeds=1, progress=False)
        assert [row.method for row in summary.rows] == ["plain", METHOD]

    def test_finished_trials_are_reused(self, run, log):
        assert repr(run()) == repr(run())
        assert len(log.read_text().splitlines()) == 6

    def test_more_seeds_and_methods_add_to_a_study(self, run, log):
        run()
        run(METHOD, "llr", seeds=4)
        assert len(log.read_text().splitlines()) == 3 * 4

    def test_first_seed_chooses_the_seeds_of_a_run(self, run, log):
        run(first_seed=20)
        assert log.read_text().splitlines()[::2] == ["plain 20", "plain 21", "plain 22"]

    def test_an_interrupted_study_resumes(self, run, log, tmp_path):
        with pytest.raises(KeyboardInterrupt):
            run(paths={"interrupted_at": 1})
        assert len(list((tmp_path / "out").rglob("seed-*.json"))) == 3
        assert run().seeds == 3
        assert len(log.read_text().splitlines()) == 6

    def test_a_seed_that_raises_does_not_stop_the_others(self, run, tmp_path, caplog):
        run(parameters={"raises": [1]})
        assert statuses(tmp_path, "plain") == statuses(tmp_path, METHOD) == ["ok", "failed", "ok"]
        assert "failed: plain, seed 1: RuntimeError: seed 1 fails" in caplog.text

    def test_a_study_stops_if_its_first_trials_fail_and_runs_in_the_same_folder_once_corrected(self, run, log, caplog):
        with pytest.raises(StudyError, match="the first 2 trials failed, so the study stopped: correct the task"):
            run(parameters={"raises": [0, 1, 2]})
        assert len(log.read_text().splitlines()) == 2
        assert re.search(r"seed 0: RuntimeError: seed 0 fails \(.*\.py, line \d+\) \(traceback in", caplog.text)
        assert run().rows[1].failed == 0  # with other settings

    def test_first_trials_that_fail_do_not_stop_a_study_with_finished_trials(self, run):
        run(paths={"raises": [5]})
        assert run(paths={"raises": [3, 4]}, seeds=5).rows[1].failed == 2

    def test_a_summary_of_failed_trials_deletes_none(self, run, tmp_path):
        with pytest.raises(StudyError):
            run(parameters={"raises": [0, 1, 2]})
        summary = run(parameters={"raises": [0, 1, 2]}, train=False)
        assert [row.failed for row in summary.rows] == [1, 1]
        assert statuses(tmp_path, "plain") == ["failed"]

    def test_a_failed_trial_is_run_again_only_if_its_file_is_deleted(self, run, trial, log, tmp_path):
        run(paths={"raises": [1]})
        run()
        assert statuses(tmp_path, "plain")[1] == "failed"
        trial("plain", 1).unlink()
        run()
        assert statuses(tmp_path, "plain")[1] == "ok"
        assert len(log.read_text().splitlines()) == 7

    def test_a_diverged_trial_is_kept(self, run, tmp_path):
        run(parameters={"diverges": [2]})
        assert run(parameters={"diverges": [2]}).rows[1].diverged == 1
        assert statuses(tmp_path, METHOD) == ["ok", "ok", "diverged"]

    def test_the_error_for_a_damaged_file_names_it(self, run, trial):
        run()
        path = trial("plain", 0)
        path.write_text(path.read_text()[:40])
        with pytest.raises(StudyError, match=r"cannot read .*seed-0.json: .*; delete it"):
            run()

    def test_paths_are_not_recorded_as_settings(self, run, tmp_path):
        assert run(parameters={"gain": 0.5}).settings["parameters"] == {"gain": 0.5}
        assert json.loads((tmp_path / "out" / "settings.json").read_text())["settings"]["parameters"] == {"gain": 0.5}

    def test_quick_runs_two_seeds_without_tuning(self, run, log):
        run(lr=[0.1, 0.3], quick=True)
        assert [line.split()[1] for line in log.read_text().splitlines()] == ["0", "0", "1", "1"]

    @pytest.mark.parametrize("options", [{"seeds": 0}, {"tuning_seeds": 0}])
    def test_numbers_of_seeds_below_1_are_refused(self, run, options):
        with pytest.raises(StudyError, match="must be at least 1"):
            run(**options)

    def test_a_function_can_be_the_task(self, tmp_path):
        def train(seed, method):
            method.balance(*model_and_optimizer(), steps_per_epoch=1)
            return seed

        summary = tb.study.run(train, [METHOD], tmp_path / "out", seeds=2)
        assert [row.mean for row in summary.rows] == [0.5, 0.5]
        assert summary.settings["task"].startswith("train (")


class TestTuning:
    def test_the_best_rate_on_validation_is_compared_on_other_seeds(self, run, log, task_file):
        summary = run(lr=[0.1, 0.3, 5.0])
        assert [row.chosen for row in summary.rows] == ["plain lr=0.3", f"{METHOD} lr=0.3"]
        seeds = [call.split()[1] for call in log.read_text().splitlines()]
        assert seeds[:12] == [str(FIRST_TUNING_SEED)] * 6 + [str(FIRST_TUNING_SEED + 1)] * 6
        assert len(seeds) == 12 + 6 == tb.study.count_trials(task_file, [METHOD], seeds=3, lr=[1, 2, 3], tuning_seeds=2)

    def test_with_lower_is_better_the_lowest_metric_is_chosen(self, run):
        summary = run(lr=[0.1, 0.3, 5.0], lower_is_better=True)
        assert [row.chosen for row in summary.rows] == ["plain lr=5", f"{METHOD} lr=5"]

    def test_a_configuration_that_diverges_is_chosen_last(self, run):
        diverges = {"diverges": [FIRST_TUNING_SEED]}  # the rate of 5, and every balanced trial
        summary = run(lr=[0.1, 0.3, 5.0], lower_is_better=True, parameters=diverges)
        assert [row.chosen for row in summary.rows] == ["plain lr=0.1", f"{METHOD} lr=5"]

    def test_one_configuration_is_not_tuned(self, run, log):
        run(lr=[0.1])
        assert len(log.read_text().splitlines()) == 6

    def test_tuning_by_the_test_metric_is_refused_after_one_trial(self, run, log):
        with pytest.raises(StudyError, match="to tune, the task must return"):
            run(lr=[0.1, 0.2], parameters={"returns": 1.0})
        assert len(log.read_text().splitlines()) == 1


class TestWithoutTraining:
    def test_only_the_seeds_that_all_methods_have_finished_are_compared(self, run, trial, log):
        run(seeds=4)
        trial(METHOD, 2).unlink()
        before = log.read_text()
        assert run(seeds=4, train=False).seeds == 3
        assert log.read_text() == before

    def test_a_study_without_a_finished_seed_is_refused(self, run, trial):
        with pytest.raises(StudyError, match="no seed is finished yet"):
            run(train=False)
        run(lr=[0.1, 0.3])
        trial("plain", FIRST_TUNING_SEED + 1, 0.1).unlink()
        with pytest.raises(StudyError, match="no seed is finished yet, the tuning is incomplete"):
            run(lr=[0.1, 0.3], train=False)


def test_seeds_of_tuning_are_refused(run):
    with pytest.raises(StudyError, match="those from 1000000 on are for tuning"):
        run(first_seed=999_999, seeds=2)
