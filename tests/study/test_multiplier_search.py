"""The search for multipliers: what it tries, that it resumes, and what it refuses."""

import json
import math
import sys

import pytest
import torch

import search_task
import tempbalance as tb
from tempbalance.errors import ArgumentTypeError, BalanceError, StudyError
from tempbalance.report.search_report import _summary
from tempbalance.study.study_folder import open_folder

pytest.importorskip("optuna")

RATES = (0.003, 0.01)


@pytest.fixture
def task(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])  # loading a task adds its folder
    path = tmp_path / "toy.py"
    path.write_text(search_task.TASK)
    return path


@pytest.fixture
def search(task, tmp_path):
    def call(**options):
        given = {"lr": RATES, "trials": 12, "final_seeds": 1, "confirm": 0, "lower_is_better": True, "progress": False}
        return tb.study.search(task, tmp_path / "out", **given | options)

    return call


def trained(log):
    return log.read_text().splitlines() if log.exists() else []


def test_it_begins_with_plain_at_each_rate_and_with_known_multipliers_at_the_best_of_them(search):
    found = search(trials=5)
    assert [each.origin for each in found.trials] == ["plain", "plain", "value and output 0.25", "blockwise_lr", "mup"]
    assert [each.lr for each in found.trials] == [0.003, 0.01, 0.01, 0.01, 0.01]
    known = found.trials[2].multipliers
    assert {unit for unit, multiplier in known.items() if multiplier == 0.25} == {"role:v", "role:o"}
    assert {multiplier for unit, multiplier in known.items() if unit not in {"role:v", "role:o"}} == {1.0}
    assert found.best == found.trials[2]  # the task is best with a fifth for value and output


def test_the_search_is_never_worse_than_its_starting_points(search):
    found = search(trials=25, seeds=1)
    assert found.best.mean <= min(each.mean for each in found.trials if each.status == "complete")
    assert found.best.origin == "sampled"
    assert found.best.multipliers["role:norm"] * found.best.lr > found.best.multipliers["role:v"] * found.best.lr


def test_trainings_side_by_side_find_the_same(task, tmp_path):
    options = {"lr": RATES, "trials": 9, "seeds": 2, "final_seeds": 3, "confirm": 0, "lower_is_better": True}
    found = [tb.study.search(task, tmp_path / str(n), jobs=n, progress=False, **options).to_dict() for n in (1, 2)]
    for each in found:
        del each["files"]
    assert any(trial["status"] == "stopped" for trial in found[0]["trials"])
    assert json.dumps(found[0]).replace(str(tmp_path / "1"), "") == json.dumps(found[1]).replace(
        str(tmp_path / "2"), ""
    )


def test_all_trials_have_the_same_seeds_and_poor_ones_are_stopped_early(search, tmp_path):
    found = search(seeds=3, trials=16, parameters={"log": str(tmp_path / "log")})
    seeds = {}
    for line in trained(tmp_path / "log"):
        name, rate, seed = line.rsplit(" ", 2)
        seeds.setdefault((name, rate), []).append(int(seed))
    assert {tuple(each) for each in seeds.values()} == {(1_000_000, 1_000_001, 1_000_002)[:n] for n in (1, 3)}
    assert {each.status for each in found.trials} == {"complete", "stopped"}
    complete = [each.values[0] for each in found.trials if each.status == "complete"]
    stopped = [each for each in found.trials if each.status == "stopped"]
    assert all(len(each.values) == 1 and each.values[0] > min(complete) for each in stopped)
    assert not any(each.status == "stopped" for each in found.trials[:5])


def test_the_best_trials_and_plain_are_trained_with_more_seeds_before_one_is_chosen(search):
    found = search(units=["role:q"], seeds=1, final_seeds=6, parameters={"noise": 1.0})
    luckiest = sorted(found.trials, key=lambda each: each.mean)[:4]
    finalists = {(each.lr, str(each.multipliers)): each for each in found.finalists}
    assert {(each.lr, str(each.multipliers)) for each in luckiest} <= finalists.keys()
    assert [len(each.values) for each in found.finalists] == [6] * len(finalists)
    assert found.best.mean == min(each.mean for each in found.finalists)
    assert found.best.method != luckiest[0].method
    assert found.plain in found.finalists


def test_finalists_that_diverge_with_more_seeds_are_refused(search):
    with pytest.raises(StudyError, match=r"the best \d trials diverged or failed with more seeds"):
        search(seeds=1, final_seeds=3, parameters={"diverges_after": 1_000_000})


@pytest.mark.parametrize("confirm", [0, 10])
def test_plain_that_diverges_with_more_seeds_does_not_end_the_search(search, task, confirm):
    task.write_text(task.read_text().replace("seed > diverges_after", "(seed > diverges_after and not balancer)"))
    found = search(trials=6, final_seeds=3, confirm=confirm, parameters={"diverges_after": 1_000_001})
    assert (found.best.status, found.plain.status) == ("complete", "diverged")
    assert "; plain: diverged with 0.01 (seeds of each: 3)" in _summary(found)
    assert (found.confirmation is not None) == (confirm > 0)


def test_an_interrupted_search_resumes_and_trains_nothing_twice(search, tmp_path):
    whole = search(trials=12, seeds=2)
    (tmp_path / "out").rename(tmp_path / "whole")
    log = tmp_path / "log"
    for count in (1, 4, 18):
        with pytest.raises(KeyboardInterrupt):
            search(trials=12, seeds=2, paths={"log": str(log), "interrupted_at": count})
    resumed = search(trials=12, seeds=2, paths={"log": str(log)})
    assert resumed.trials == whole.trials
    assert len(trained(log)) - len(set(trained(log))) == 3  # only the trainings that were interrupted


def test_a_finished_search_gives_its_result_again_and_more_trials_continue_it(search, tmp_path):
    log = tmp_path / "log"
    first = search(paths={"log": str(log)})
    count = len(trained(log))
    assert search(paths={"log": str(log)}).trials == first.trials
    assert len(trained(log)) == count
    assert search(trials=14, paths={"log": str(log)}).trials[:12] == first.trials
    assert count < len(trained(log)) <= count + 4


def test_the_confirmation_gives_plain_as_many_rates_as_the_search_has_trials(search, tmp_path):
    found = search(confirm=3, controls=["uniform", "shuffled"])
    plain = {path.parent.name for path in (tmp_path / "out" / "runs").glob("plain_lr*/*.json")}
    assert len(plain) >= 12
    methods = [row.method for row in found.confirmation.rows]
    assert methods[0] == f"plain:lr={found.plain.lr}"
    file = str(tmp_path / "out" / "multipliers.yaml")  # in place of nine multipliers
    assert [file in method for method in methods] == [False, True, True, True]
    study = (tmp_path / "out" / "confirmation" / "summary.json").read_text()
    assert found.best.method in study
    assert file not in study  # so that the folder can be moved
    assert [row.chosen.partition("control=")[2].partition(" ")[0] for row in found.confirmation.rows[2:]] == [
        "uniform",
        "shuffled",
    ]
    seeds = {path.name for path in (tmp_path / "out" / "confirmation").rglob("seed-*.json")}
    assert seeds == {"seed-0.json", "seed-1.json", "seed-2.json"}
    assert found.recommendation == found.confirmation.recommendation
    assert any("the best of 12 or more learning rates" in note for note in found.notes)
    assert found.confirmation.rows[1].gain.mean > 0


def test_if_plain_is_the_best_nothing_is_written_and_nothing_is_confirmed(search, tmp_path):
    found = search(units=["role:q"], trials=3, lr=(0.0001, 0.01), confirm=3)
    assert [each.origin for each in found.trials] == ["plain", "plain", "blockwise_lr"]
    assert found.best.multipliers == {}
    assert "Keep plain" in found.recommendation
    assert found.files == ()
    assert not (tmp_path / "out" / "multipliers.yaml").exists()


def test_a_diverged_trial_counts_as_worst(search):
    found = search(trials=14, parameters={"diverges_above": 0.02})
    diverged = [each for each in found.trials if each.status == "diverged"]
    assert diverged
    assert all(each.values == () and math.isnan(each.mean) for each in diverged)
    assert found.best.status == "complete"
    assert any("diverged" in note for note in found.notes)


def test_the_summary_is_json_with_all_trials(search, tmp_path):
    found = search()
    saved = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert saved["best"]["lr"] == found.best.lr
    assert len(saved["trials"]) == 12
    assert saved["units"]["role:v"]["parameters"] == ["layers.0.v_proj.weight", "layers.1.v_proj.weight"]


def test_a_multiplier_at_the_bounds_is_noted(search):
    found = search(units=["role:v", "role:o"], bounds=(0.5, 2.0), trials=4)
    assert found.best.multipliers == {"role:v": 0.5, "role:o": 0.5}
    assert found.notes == [
        "At the edge of the searched range, so a wider one may be better: the rate of value and output 0.25, the rate "
        "of plain, role:v, role:o."
    ]


def test_a_role_that_the_model_lacks_is_refused_with_those_it_has(search, tmp_path):
    with pytest.raises(BalanceError, match=r"'role:gate' .* no parameter .* embedding, .* up, v"):
        search(units=["role:v", "role:gate"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("units", [["role:values"], ["*.value.*"]])
def test_a_pattern_without_a_parameter_is_refused(search, units):
    with pytest.raises((BalanceError, ValueError), match=units[0].removeprefix("role:").replace("*", r"\*")):
        search(units=units)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"lr": (0.01,)}, "two or more base learning rates"),
        ({"lr": (0.01, math.inf)}, "two or more base learning rates"),
        ({"bounds": (2.0, 4.0)}, "around 1"),
        ({"trials": 3}, "fewer than the starting points"),
        ({"controls": ["random"]}, "no control 'random'"),
        ({"units": ["role", "block"]}, "units must be one of"),
        ({"units": []}, "units must be one of"),
        ({"parameters": {"depth": 3}}, "cannot be called"),
        ({"parameters": {"raises": True}}, "the first trial failed"),
        ({"trials": 5, "parameters": {"diverges_above": 0.001}}, "all 5 starting points diverged"),
        ({"parameters": {"diverges_above": 0.001}}, r"all 5 starting points diverged .*0.003 to 0.01: lower lr"),
    ],
)
def test_what_cannot_be_searched_is_refused(search, options, match):
    with pytest.raises(StudyError, match=match):
        search(**options)


def test_a_wrong_type_is_refused(search):
    with pytest.raises(ArgumentTypeError, match="lr"):
        search(lr=0.01)


def test_another_search_in_the_same_folder_is_refused(search, task):
    search(trials=5)
    with pytest.raises(StudyError, match=r"search was .*'role:embedding'.* and is .*'role:v'"):
        search(trials=5, units=["role:v"])
    task.write_text(task.read_text() + "\n")
    with pytest.raises(StudyError, match=r"the content of the task .* has changed"):
        search(trials=5)


def test_a_second_process_in_the_folder_is_refused(search, tmp_path):
    with open_folder(tmp_path / "out", {}, {}), pytest.raises(StudyError, match="another process uses"):
        search(trials=5)


def test_a_study_in_the_folder_of_a_search_is_refused(search, task, tmp_path):
    search(trials=5)
    with pytest.raises(StudyError, match="search was"):
        tb.study.run(task, ["mup"], tmp_path / "out", lower_is_better=True, lr=RATES)


def test_without_validation_it_is_refused(tmp_path):
    def train(seed, method, lr):
        model = torch.nn.Linear(2, 2)
        method.balance(torch.optim.SGD(model.parameters(), lr=lr), model)
        return 0.5

    with pytest.raises(StudyError, match=r"must return \{'validation'"):
        tb.study.search(train, tmp_path / "out", lr=RATES, trials=9)


def test_a_function_without_balance_is_refused(tmp_path):
    with pytest.raises(StudyError, match=r"did not call method\.balance"):
        tb.study.search(lambda seed, method, lr: {"validation": 1, "test": 1}, tmp_path / "out", lr=RATES)
