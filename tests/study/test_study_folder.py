import json
import math
import os
from dataclasses import asdict

import pytest

import tempbalance as tb
from tempbalance.errors import StudyError
from tempbalance.study import Configuration, Trial, collect_folder, restore_folder
from tempbalance.study.study_folder import StudyFolder, open_folder

# As version 0.1.0 wrote it before its rooms were moved.
OLD_TRIAL = (
    '{"method": "llr:high=3", "lr": 0.1, "seed": 4, "status": "diverged", "metrics": {"test": null, "loss": 2.0}, '
    '"seconds": 1.5, "balance": {"refreshes": 1}, "error": ""}'
)


def test_a_trial_written_by_the_version_before_is_read(tmp_path):
    folder, configuration = StudyFolder(tmp_path), Configuration("llr:high=3", 0.1)
    path = tmp_path / "runs" / folder.file(configuration, 4).parent.name / "seed-4.json"
    path.parent.mkdir(parents=True)
    path.write_text(OLD_TRIAL)
    trial = folder.load(configuration, 4)
    assert (trial.status, trial.metrics["loss"], trial.balance) == ("diverged", 2.0, {"refreshes": 1})
    assert trial.metrics["test"] != trial.metrics["test"]
    folder.save(trial)
    assert path.read_text().strip() == OLD_TRIAL


def test_a_trial_that_has_not_been_run_is_none(tmp_path):
    assert StudyFolder(tmp_path).load(Configuration("plain", None), 0) is None


def test_the_file_of_a_trial_is_named_by_method_rate_and_seed(tmp_path):
    path = StudyFolder(tmp_path).file(Configuration("llr:high=3,low=1", 0.1), 4)
    assert str(path.relative_to(tmp_path)) == "runs/llr_high=3_low=1_lr=0.1-43a60cdc/seed-4.json"


def test_methods_with_similar_file_names_have_different_folders(tmp_path):
    a, b = (Configuration(name, None) for name in ("llr:high=3,low=1", "llr:high=3,low=1.0"))
    assert StudyFolder(tmp_path).file(a, 0) != StudyFolder(tmp_path).file(b, 0)


def test_a_folder_refuses_other_settings_and_accepts_another_extent(tmp_path):
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


@pytest.mark.parametrize("value", [math.inf, math.nan, {(1, 2): 3}, {"b", "a"}, {1: [math.inf]}, object])
def test_any_parameter_can_be_resumed(tmp_path, value):
    for _ in range(2):
        with open_folder(tmp_path / "a", {"parameters": {"n": value}}, {}):
            pass


def test_a_set_is_stored_in_order_as_its_order_differs_between_processes(tmp_path):
    letters = [chr(97 + place) for place in range(20)]
    with open_folder(tmp_path / "a", {"parameters": {"n": {*letters}}}, {}):
        pass
    saved = json.loads((tmp_path / "a" / "settings.json").read_text())
    assert saved["settings"]["parameters"]["n"] == [repr(letter) for letter in letters]


def test_a_folder_in_use_is_refused(tmp_path):
    with (
        open_folder(tmp_path, {}, {}),
        pytest.raises(StudyError, match="another process uses"),
        open_folder(tmp_path, {}, {}),
    ):
        pass
    with open_folder(tmp_path, {}, {}):
        pass


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(StudyError, match="contains files but no study"), open_folder(tmp_path, {}, {}):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_that_cannot_be_created_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StudyError, match="cannot create the folder"), open_folder(tmp_path / "file" / "x", {}, {}):
        pass


def test_damaged_settings_are_refused(tmp_path):
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(StudyError, match=r"cannot read .*settings.json"), open_folder(tmp_path, {}, {}):
        pass


def test_a_collected_study_can_be_restored_and_resumed(task_file, tmp_path):
    log = tmp_path / "log"
    options = {"parameters": {"raises": [1], "diverges": [2]}, "paths": {"log": str(log)}}
    first = tb.study.run(task_file, ["llr"], tmp_path / "a", seeds=3, **options)
    collected = json.loads(json.dumps(collect_folder(tmp_path / "a"), allow_nan=False))
    assert {run["error"] for run in collected["runs"]} == {"", "RuntimeError: seed 1 fails"}  # no path of this machine
    restore_folder(collected, tmp_path / "b" / "c")
    before = log.read_text()
    again = tb.study.run(task_file, ["llr"], tmp_path / "b" / "c", seeds=3, **options)
    assert repr(asdict(again)) == repr(asdict(first))
    assert log.read_text() == before
    assert collect_folder(tmp_path / "b" / "c") == collected


def test_an_interrupted_restore_leaves_no_folder(tmp_path):
    trial = Trial(method="plain", lr=None, seed=0, status="ok", seconds=1.0)
    with pytest.raises(KeyError):
        restore_folder({"runs": [vars(trial)]}, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("status", "fine"),
        ("metrics", {"test": "0.9"}),
        ("metrics", [1.0]),
        ("balance", {"refreshes": {}}),
        ("seconds", None),
        ("seed", -1),
        ("error", 3),
    ],
)
def test_a_damaged_trial_is_refused_with_the_field(tmp_path, field, value):
    folder, configuration = StudyFolder(tmp_path), Configuration("llr:high=3", 0.1)
    path = folder.file(configuration, 4)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(json.loads(OLD_TRIAL) | {field: value}))
    with pytest.raises(StudyError, match=rf"cannot read .*seed-4.json: .*\$\.{field}.*; delete it"):
        folder.load(configuration, 4)


def test_a_trial_of_another_seed_or_too_deep_is_refused(tmp_path):
    folder, configuration = StudyFolder(tmp_path), Configuration("llr:high=3", 0.1)
    path = folder.file(configuration, 5)
    path.parent.mkdir(parents=True)
    for content, message in ((OLD_TRIAL, "seed-5.json is of llr:high=3, lr 0.1, seed 4"), ("[" * 10**5, "too deeply")):
        path.write_text(content)
        with pytest.raises(StudyError, match=message):
            folder.load(configuration, 5)


def test_a_folder_that_a_killed_process_left_unfinished_is_used(tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / ".tempbalance-0123456789abcdef-x").touch()
    with open_folder(tmp_path, {}, {}):
        pass
    assert (tmp_path / "settings.json").exists()


@pytest.mark.parametrize("name", ["settings.json", "summary.json", "runs/llr-1/seed-0.json"])
@pytest.mark.parametrize("content", ["{", "[" * 10**5, "[]", "9" * 5000])
def test_a_damaged_file_of_a_collected_study_is_refused(tmp_path, name, content):
    for each in ("settings.json", "summary.json", "runs/llr-1/seed-0.json"):
        (tmp_path / each).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / each).write_text(OLD_TRIAL)
    collect_folder(tmp_path)
    (tmp_path / name).write_text(content)
    if content != "[]" or name.startswith("runs"):
        with pytest.raises(StudyError, match="cannot read"):
            collect_folder(tmp_path)


def test_a_trial_that_is_a_pipe_or_has_no_test_metric_is_refused(tmp_path):
    folder, configuration = StudyFolder(tmp_path), Configuration("llr:high=3", 0.1)
    path = folder.file(configuration, 4)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(json.loads(OLD_TRIAL) | {"status": "ok", "metrics": {"validation": 1.0}}))
    with pytest.raises(StudyError, match="has status ok and no metric test; delete it"):
        folder.load(configuration, 4)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(StudyError, match="not a regular file; delete it"):
        folder.load(configuration, 4)
