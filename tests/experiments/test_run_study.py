"""One command per study: on a task of milliseconds."""

import json
import signal
import subprocess
import sys
import time

import pytest

TASK = """
import math
import random
import torch

def train(seed, method, lr=0.1, examples=1, gain=0.0, diverges=(), raises=(), sleeps=0.0, data=None, log=None):
    import time
    time.sleep(sleeps)
    if log:
        with open(log, "a") as file:
            file.write(f"{method.name} {lr} {seed}\\n")
    if seed in raises:
        raise RuntimeError(f"seed {seed} is cursed")
    model = torch.nn.Sequential(*(torch.nn.Linear(60, 60) for _ in range(3)))
    balancer = method.balance(torch.optim.SGD(model.parameters(), lr=lr), model, steps_per_epoch=1)
    score = random.random() + (0.01 * random.random() + gain) * bool(balancer) - abs(lr - 0.3)
    return {"validation": score, "test": math.nan if seed in diverges and balancer else score}
"""
METHOD = "model_balancing_sciml"


@pytest.fixture
def modules(experiments):
    import run_study
    from evidence import hold, keep, study

    return run_study, hold, keep, study


@pytest.fixture
def contest(modules):
    def make(name="one", **options):
        settings = {"examples": 4, **options.pop("settings", {})}
        given = {"methods": (METHOD,), "lr": (0.1, 0.3), "seeds": 3, "tuning_seeds": 2} | options
        return modules[3].Contest(name=name, settings=settings, **given)

    return make


@pytest.fixture
def job(modules, tmp_path):
    task = tmp_path / "toy.py"
    task.write_text(TASK)

    def make(contest, **options):
        given = {"lower_is_better": False, "data": tmp_path / "data", "trains": True, "runs": 10} | options
        return modules[1].Job(contest=contest, task=task, folder=tmp_path / "runs" / contest.name, **given)

    return make


@pytest.fixture
def study(modules, tmp_path, monkeypatch):
    """Makes a study of some contests, and the command that holds it in this process."""
    run_study, _, _, concepts = modules
    (tmp_path / "toy.py").write_text(TASK)

    def make(*contests, **options):
        metric = concepts.Metric(name="score", unit="points")
        parts = {"size": ("examples", "examples"), "claims": (), "quick": contests[:1], "full": contests} | options
        made = concepts.Study(name="toy", task=str(tmp_path / "toy.py"), metric=metric, **parts)
        monkeypatch.setattr(run_study, "NAMES", ("toy",))
        monkeypatch.setattr(run_study, "load_study", {"toy": made}.__getitem__)
        monkeypatch.setattr(run_study, "hold_all", _in_this_process(modules[1]))

        def command(*argv):
            given = ("--out", str(tmp_path / "runs"), "--data", str(tmp_path / "data"))
            return run_study.main(["toy", *argv, *given], tmp_path / "results")

        return command

    return make


def _in_this_process(hold):
    def hold_all(jobs, at_a_time):
        for job in jobs:
            job.log.touch()
            try:
                hold.hold(job)
            except Exception as error:
                job.log.write_text(f"{error}\n")
                yield job, False
            else:
                yield job, True

    return hold_all


def results(tmp_path):
    return json.loads((tmp_path / "results" / "toy.json").read_text())


def test_a_study_is_collected_in_one_file(study, contest, tmp_path, capsys):
    assert study(contest("one"), contest("two", settings={"gain": 0.5}))("--full") == 0
    found = results(tmp_path)
    assert list(found) == ["one", "two"]
    assert [len(entry["runs"]) for entry in found.values()] == [2 * (2 * 2 + 3)] * 2
    assert found["two"]["settings"]["settings"]["parameters"] == {"examples": 4, "gain": 0.5}
    assert found["two"]["settings"]["settings"]["versions"].keys() == {"tempbalance", "torch", "numpy"}
    assert [row["method"] for row in found["two"]["summary"]["rows"]] == ["plain", METHOD]
    assert all(run["seconds"] > 0 for run in found["two"]["runs"])
    assert "two: 3 of 3 seeds; 14 runs, 0 diverged, 0 failed" in capsys.readouterr().out


def test_quick_leaves_the_results_of_the_repository_alone(study, contest, tmp_path):
    assert study(contest("one"), contest("two"))("--quick") == 0
    assert not (tmp_path / "results").exists()
    assert list(json.loads((tmp_path / "runs" / "toy" / "quick.json").read_text())) == ["one"]


def test_only_one_contest_keeps_the_others_results(study, contest, tmp_path):
    command = study(contest("one"), contest("two"))
    assert command("--full") == 0
    before = results(tmp_path)
    assert command("--full", "--only", "two") == 0
    assert results(tmp_path) == before


def test_the_same_command_makes_only_what_is_missing(study, contest, tmp_path):
    log = tmp_path / "log"
    assert study(contest("one", seeds=2, settings={"log": str(log)}))("--full") == 0
    before = log.read_text()
    assert study(contest("one", seeds=3, settings={"log": str(log)}))("--full") == 0
    added = log.read_text().removeprefix(before).splitlines()
    assert added == ["plain 0.3 2", f"{METHOD} 0.3 2"]


def test_diverged_and_failed_runs_are_counted_and_kept(study, contest, tmp_path, capsys):
    assert study(contest("one", settings={"diverges": (0,), "raises": (2,)}))("--full") == 0
    assert "14 runs, 1 diverged, 2 failed" in capsys.readouterr().out
    failed = [run for run in results(tmp_path)["one"]["runs"] if run["status"] == "failed"]
    assert {run["error"] for run in failed} == {"RuntimeError: seed 2 is cursed"}  # and no path of this machine
    assert [row["diverged"] for row in results(tmp_path)["one"]["summary"]["rows"]] == [0, 1]


def test_restored_runs_are_not_made_again(study, contest, tmp_path):
    log = tmp_path / "log"
    options = {"settings": {"log": str(log), "diverges": (1,)}}
    assert study(contest("one", **options))("--full") == 0
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    before, text = log.read_text(), (tmp_path / "results" / "toy.json").read_text()
    assert study(contest("one", **options))("--full", "--restore") == 0
    assert log.read_text() == before
    assert (tmp_path / "results" / "toy.json").read_text() == text


def test_runs_of_another_task_are_not_gone_on_with(study, contest, tmp_path, capsys):
    command = study(contest("one"))
    assert command("--full") == 0
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    (tmp_path / "toy.py").write_text(TASK + "\n")
    assert command("--full", "--restore") == 1
    assert "one: stopped, " in (said := capsys.readouterr().err)
    assert "runs with other settings" in said


def test_collect_trains_nothing_and_takes_whole_seeds(study, contest, job, modules, tmp_path, capsys):
    log = tmp_path / "log"
    command = study(contest("one", seeds=4, settings={"log": str(log)}))
    assert command("--full", "--collect") == 1
    assert "one: no seed is done yet" in capsys.readouterr().err
    assert not log.exists()
    assert command("--full") == 0
    (folder,) = (tmp_path / "runs" / "toy" / "one" / "runs").glob(f"{METHOD}_lr=0.3-*")
    (folder / "seed-2.json").unlink()
    before = log.read_text()
    assert command("--full", "--collect") == 0
    assert log.read_text() == before
    assert results(tmp_path)["one"]["summary"]["seeds"] == 2
    assert "one: 2 of 4 seeds" in capsys.readouterr().out


def test_collect_waits_for_the_tuning(study, contest, tmp_path, capsys):
    command = study(contest("one"))
    assert command("--full") == 0
    next((tmp_path / "runs" / "toy" / "one" / "runs").glob("plain_lr=0.1-*/seed-1000001.json")).unlink()
    assert command("--full", "--collect") == 1
    assert "one: no seed is done yet" in capsys.readouterr().err


def test_missing_data_is_named_and_skipped(study, contest, tmp_path, capsys):
    lacking = contest("two", data="texts", files=("train.tsv",))
    command = study(contest("one"), lacking, sources={"texts": "get it from example.org"})
    assert command("--full") == 1
    said = capsys.readouterr()
    where = tmp_path / "data" / "texts"
    assert f"two: skipped, there is no {where}: get it from example.org; --data names the folder" in said.err
    assert list(results(tmp_path)) == ["one"]
    where.mkdir(parents=True)
    assert command("--full", "--only", "two") == 1
    assert f"there is no {where / 'train.tsv'}" in capsys.readouterr().err
    (where / "train.tsv").touch()
    assert command("--full") == 0
    assert results(tmp_path)["two"]["settings"]["settings"]["parameters"] == {"examples": 4}  # wherever the data lies


def test_a_missing_package_is_named(study, contest, capsys):
    assert study(contest("one"), packages={"no_such_package": "pip install it"})("--full") == 1
    assert "one: skipped, it needs the package no_such_package: pip install it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ("no_such_method",)}, "there is no method 'no_such_method'"),
        ({"methods": ("llr:high=[3,5]",)}, "every method needs the same number of trials"),
    ],
)
def test_a_contest_that_cannot_be_held_is_refused_before_any_is(study, contest, tmp_path, capsys, options, message):
    assert study(contest("one"), contest("two", **options))("--full") == 1
    assert message in capsys.readouterr().err
    assert not list((tmp_path / "runs").rglob("seed-*.json"))


def test_a_contest_that_does_not_exist_is_refused(study, contest, capsys):
    assert study(contest("one"))("--full", "--only", "three") == 1
    assert "error: toy has no contest three; it has one" in capsys.readouterr().err


def test_damaged_results_are_refused(study, contest, tmp_path, capsys):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "toy.json").write_text('{"one": {"settings": ')
    assert study(contest("one"))("--full", "--restore") == 1
    assert "error: cannot read" in capsys.readouterr().err


def test_a_name_that_is_no_folder_is_refused(contest, modules):
    with pytest.raises(modules[3].StudyError, match="'a/b'"):
        contest("a/b")


def test_contests_are_held_in_processes(modules, job, contest):
    _, hold, _, _ = modules
    good, bad = contest("good", seeds=1, tuning_seeds=1), contest("bad", settings={"no_such": 1})
    (job(good).folder.parent).mkdir()
    ended = {done.contest.name: whole for done, whole in hold.hold_all([job(good), job(bad)], 2)}
    assert ended == {"good": True, "bad": False}
    assert "cannot be called" in job(bad).log.read_text()
    assert job(good).done == 6
    assert job(good).log.read_text() == ""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_study_leaves_no_process_and_loses_nothing(experiments, tmp_path, end):
    (tmp_path / "toy.py").write_text(TASK)
    script = tmp_path / "study.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(experiments)!r})\n"
        "import signal\nfrom pathlib import Path\nfrom evidence.hold import Job, hold_all\n"
        "from evidence.study import Contest\n"
        "contest = Contest(name='one', settings={'sleeps': 0.2}, methods=('llr',), lr=(0.1,), seeds=1000)\n"
        f"here = Path({str(tmp_path)!r})\n"
        "job = Job(contest=contest, task=here / 'toy.py', lower_is_better=False, data=here, folder=here / 'one',\n"
        "          trains=True, runs=2000)\n"
        "if __name__ == '__main__':\n"
        "    signal.signal(signal.SIGTERM, signal.default_int_handler)\n"
        "    list(hold_all([job], 1))\n"
    )
    process = subprocess.Popen([sys.executable, script], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("one/runs/*/seed-*.json"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(end)
    process.wait(timeout=60)
    time.sleep(1)
    left = [path.read_text() for path in tmp_path.glob("one/runs/*/seed-*.json")]
    time.sleep(1)
    assert len(list(tmp_path.glob("one/runs/*/seed-*.json"))) == len(left)  # nobody goes on
    assert all(json.loads(text)["status"] == "ok" for text in left)
