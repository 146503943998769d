"""Trials side by side, in processes."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

import tempbalance as tb
from tempbalance.errors import ArgumentError, ArgumentTypeError, StudyError
from tempbalance.study import Configuration, collect_folder
from tempbalance.study.workers import Workers, worker_environments

METHOD = "model_balancing_sciml"

# imports no torch.nn, so that the processes start fast
TASK = """
import os
import signal
import time
import torch

class Unusual(BaseException):
    def __init__(self, one, two):
        super().__init__(f"{one} {two}")  # cannot be unpickled

def train(seed, method, sleeps=0.0, killed_at=None, interrupted_at=None, unusual_at=None):
    time.sleep(sleeps)
    if method.name != "plain" and seed == killed_at:
        time.sleep(0.5)  # the other process finishes its trial
        os.kill(os.getpid(), signal.SIGKILL)
    if method.name != "plain" and seed == interrupted_at:
        raise KeyboardInterrupt("by the task")
    if method.name != "plain" and seed == unusual_at:
        raise Unusual("not", "picklable")
    method.called = True
    return {"test": seed, "process": os.getpid(), "bits": torch.finfo(torch.get_default_dtype()).bits}
"""


@pytest.fixture
def task(tmp_path):
    path = tmp_path / "toy.py"
    path.write_text(TASK)
    return path


def is_running(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_trials_side_by_side_equal_those_one_after_the_other(task_file, tmp_path):
    found = []
    for jobs in (1, 2):
        out = tmp_path / f"jobs-{jobs}"
        summary = tb.study.run(
            task_file, [METHOD, "llr"], out, seeds=3, tuning_seeds=2, lr=[0.1, 0.3], jobs=jobs, progress=False
        )
        runs = [{**run, "seconds": None} for run in collect_folder(out)["runs"]]
        found.append((summary.to_dict(), runs))
    assert repr(found[0]) == repr(found[1])  # NaN is equal to itself


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What trials with float64 as the default dtype returned."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "toy.py").write_text(TASK)
    torch.set_default_dtype(torch.float64)
    try:
        tb.study.run(
            folder / "toy.py", ["llr"], folder / "out", seeds=6, jobs=2, parameters={"sleeps": 0.05}, progress=False
        )
    finally:
        torch.set_default_dtype(torch.float32)
    return [run["metrics"] for run in collect_folder(folder / "out")["runs"]]


def test_each_process_trains_more_than_one_trial(trained):
    processes = {metrics["process"] for metrics in trained}
    assert len(processes) == 2
    assert os.getpid() not in processes


def test_global_settings_of_torch_are_those_of_the_calling_process(trained):
    assert {metrics["bits"] for metrics in trained} == {64}


def test_a_process_that_is_killed_names_its_trial_and_loses_no_other(task, tmp_path):
    options = {"seeds": 4, "jobs": 2, "progress": False}
    with pytest.raises(StudyError, match=r"of llr, seed 1, was ended by signal 9. Finished trials are kept") as caught:
        tb.study.run(task, ["llr"], tmp_path / "out", parameters={"killed_at": 1}, **options)
    assert "use fewer jobs" in str(caught.value)
    kept = [json.loads(path.read_text()) for path in tmp_path.glob("out/runs/*/seed-*.json")]
    assert {(trial["method"], trial["seed"]) for trial in kept} >= {("plain", 0), ("llr", 0), ("plain", 1)}
    assert {trial["status"] for trial in kept} == {"ok"}


@pytest.mark.parametrize(
    ("parameters", "expected", "message"),
    [
        ({"interrupted_at": 1}, KeyboardInterrupt, "by the task"),
        ({"unusual_at": 1}, StudyError, "Unusual: not picklable"),
    ],
)
def test_an_exception_that_ends_a_study_ends_it_from_a_process_too(task, parameters, expected, message):
    with Workers(tb.study.load_task(task, parameters), task, 2) as workers, pytest.raises(expected, match=message):
        list(workers.train([(Configuration("llr", None), 1)]))


def test_a_function_that_cannot_be_sent_is_refused(tmp_path):
    def train(seed, method):
        return seed

    with pytest.raises(StudyError, match=r"more than one job, .* Use a file, or a function of a module"):
        tb.study.run(train, ["llr"], tmp_path / "out", seeds=2, jobs=2, progress=False)


@pytest.mark.parametrize("jobs", [0, -1, 1.5, True, "2"])
def test_a_wrong_number_of_jobs_is_refused(task, tmp_path, jobs):
    with pytest.raises((ArgumentError, ArgumentTypeError), match="jobs must be"):
        tb.study.run(task, ["llr"], tmp_path / "out", jobs=jobs)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("count", "visible", "expected"),
    [
        (0, None, [None, None, None]),
        (1, None, [None, None, None]),
        (2, None, ["0", "1", "0"]),
        (2, "3,GPU-5", ["3", "GPU-5", "3"]),
        (4, "", ["0", "1", "2"]),
    ],
)
def test_several_gpus_are_used_in_turn(monkeypatch, count, visible, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [each.get("CUDA_VISIBLE_DEVICES") for each in worker_environments(3)] == expected


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_killed_parent_leaves_no_process_and_no_damaged_trial(task, tmp_path):
    script = tmp_path / "study.py"
    script.write_text(
        "import signal, sys\nimport tempbalance as tb\n"
        "if __name__ == '__main__':\n"
        "    signal.signal(signal.SIGTERM, signal.default_int_handler)\n"
        f"    tb.study.run({str(task)!r}, ['llr'], sys.argv[1], seeds=1000, parameters={{'sleeps': 0.1}}, jobs=2)\n"
    )
    ends = {"SIGTERM": signal.SIGTERM, "SIGKILL": signal.SIGKILL}
    outs = {name: tmp_path / name for name in ends}
    processes = {
        name: subprocess.Popen([sys.executable, script, out], stderr=subprocess.DEVNULL) for name, out in outs.items()
    }
    deadline = time.monotonic() + 120
    while any(len(list(out.glob("runs/*/seed-*.json"))) < 2 for out in outs.values()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    for name, process in processes.items():
        process.send_signal(ends[name])
    for process in processes.values():
        process.wait(timeout=60)
    trials = [json.loads(path.read_text()) for path in tmp_path.glob("*/runs/*/seed-*.json")]
    assert {trial["status"] for trial in trials} == {"ok"}
    workers = {int(trial["metrics"]["process"]) for trial in trials}
    while any(map(is_running, workers)):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_task_that_was_changed_is_not_trained_under_its_old_name(task):
    loaded = tb.study.load_task(task)
    task.write_text(TASK + "\n# changed\n")
    with Workers(loaded, task, 2) as workers, pytest.raises(StudyError, match=r"toy.py was changed while"):
        list(workers.train([(Configuration("plain", None), 0)]))
