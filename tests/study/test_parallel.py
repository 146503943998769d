"""Several studies, each in a process of its own."""

import json
import signal
import subprocess
import sys
import time

import pytest

import tempbalance as tb
from tempbalance.errors import StudyError

# imports no torch.nn, so that the processes start fast
TASK = """
def train(seed, method, sleeps=0.0):
    import time
    time.sleep(sleeps)
    method.called = True
    return seed
"""


@pytest.fixture
def task(tmp_path):
    path = tmp_path / "toy.py"
    path.write_text(TASK)
    return path


def test_studies_run_in_processes_and_report_their_errors(task, tmp_path):
    good = {"task": task, "methods": ["llr"], "seeds": 1}
    studies = {tmp_path / "runs" / "good": good, tmp_path / "runs" / "bad": good | {"parameters": {"no_such": 1}}}
    ended = {out.name: error for out, error in tb.study.run_many(studies, processes=2, progress=False)}
    assert ended["good"] == ""
    assert "cannot be called: got an unexpected keyword argument 'no_such'" in ended["bad"]
    assert (tmp_path / "runs" / "bad.log").read_text().strip() == ended["bad"]
    assert (tmp_path / "runs" / "good.log").read_text() == ""
    assert json.loads((tmp_path / "runs" / "good" / "summary.json").read_text())["seeds"] == 1


def test_a_wrong_method_is_refused_before_any_study_starts(task, tmp_path):
    studies = {tmp_path / name: {"task": task, "methods": [name]} for name in ("llr", "magic")}
    with pytest.raises(StudyError, match="there is no method 'magic'"):
        next(tb.study.run_many(studies))
    assert [path for path in tmp_path.iterdir() if path.name != "__pycache__"] == [task]


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_killed_parent_leaves_no_process_and_no_damaged_trial(task, tmp_path):
    script = tmp_path / "study.py"
    script.write_text(
        "import signal, sys\nfrom pathlib import Path\nimport tempbalance as tb\n"
        "if __name__ == '__main__':\n"
        "    signal.signal(signal.SIGTERM, signal.default_int_handler)\n"
        f"    study = dict(task={str(task)!r}, methods=('llr',), seeds=1000, parameters={{'sleeps': 0.1}})\n"
        "    list(tb.study.run_many({Path(sys.argv[1]): study}, processes=1))\n"
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
    time.sleep(0.5)
    before = {name: len(list(out.glob("runs/*/seed-*.json"))) for name, out in outs.items()}
    time.sleep(0.5)
    assert {name: len(list(out.glob("runs/*/seed-*.json"))) for name, out in outs.items()} == before
    for path in tmp_path.glob("*/runs/*/seed-*.json"):
        assert json.loads(path.read_text())["status"] == "ok"
