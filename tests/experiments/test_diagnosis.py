"""Does balancing lower the imbalance, and does the imbalance predict the error?"""

import json
import math

import diagnose
import numpy as np
import pytest
import torch
from claims import Claim, Experiment, Metric, Study
from correlation import by_seed, exact_p, spearman
from gains import Results
from imbalance import error_correlation, imbalance_changes, judge_changes, judge_correlations

scipy_stats = pytest.importorskip("scipy.stats")
METHOD = "model_balancing"


def make(measure, *, balance=lambda method, seed: {}, seeds=12, lower_is_better=False):
    """An experiment of one study, and its results: `measure` gives the metrics of a trial by method, rate and seed."""
    names = ("plain", METHOD, f"{METHOD}:control=uniform")
    runs = []
    for name in names:
        for lr in (0.1, 0.2):
            for seed in range(seeds):
                run = {"method": name, "lr": lr, "seed": seed, "status": "ok", "metrics": measure(name, lr, seed)}
                runs.append(run | {"balance": balance(name, seed), "seconds": 1.0, "error": ""})
    rows = [{"method": name, "chosen": f"{name} lr=0.1", "mean": 0.5} for name in names]
    metric = Metric(name="accuracy", unit="points", lower_is_better=lower_is_better)
    study = Study(name="8", parameters={"examples": 8}, methods=names[1:], lr=(0.1, 0.2), seeds=seeds)
    panels = {"here": ("8",)}
    claim = Claim(name="a", sentence="It helps.", paper="A paper", published=(), method=METHOD, panels=panels)
    size = ("examples", "images")
    experiment = Experiment(name="toy", task="x.py", metric=metric, size=size, claims=(claim,), quick=(), full=(study,))
    return experiment, Results(study, {"summary": {"rows": rows, "seeds": seeds, "trials": 2}, "runs": runs}, metric)


@pytest.mark.parametrize("levels", [5, 1000], ids=["ties", "hardly any"])
def test_the_rank_correlation_agrees_with_scipy(levels):
    rng = np.random.default_rng(0)
    x = rng.integers(levels, size=60)
    y = x + rng.integers(levels, size=60)
    assert spearman(x, y) == pytest.approx(scipy_stats.spearmanr(x, y).statistic)


def test_equal_values_have_no_correlation():
    assert math.isnan(spearman([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]))
    assert math.isnan(by_seed([], [], []).mean)


def test_the_exact_p_value_counts_orders():
    assert exact_p([1, 2, 3, 4], [1, 2, 3, 4]) == pytest.approx(2 / 24)
    x, y = [1, 2, 3, 4, 5], [2, 1, 3, 5, 4]
    test = scipy_stats.permutation_test(
        (x,), lambda order: abs(scipy_stats.spearmanr(order, y).statistic), permutation_type="pairings"
    )
    assert exact_p(x, y) == pytest.approx(float((test.null_distribution >= test.statistic - 1e-9).mean()))


def test_an_interval_of_the_correlation_needs_10_seeds():
    seeds = [*range(9)] * 3
    assert math.isnan(by_seed(seeds, range(27), range(27)).low)
    found = by_seed([*range(30)], range(30), range(30))
    assert found.mean == pytest.approx(1)
    assert found.low == pytest.approx(1)


def test_copies_of_a_trial_do_not_narrow_the_interval():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 12))
    once = by_seed([*range(12)], x, y)
    copied = by_seed([*range(12)] * 20, [*x] * 20, [*y] * 20)
    assert copied.high - copied.low == pytest.approx(once.high - once.low, rel=0.2)


def test_the_change_of_the_imbalance_is_that_of_the_chosen_rate():
    def measure(method, lr, seed):
        return {"test": 0.5, "imbalance": (0.3 if method == METHOD else 0.4) + 0.01 * seed + (lr > 0.1)}

    found = imbalance_changes(*make(measure))
    assert [(each.study, each.method, each.against) for each in found] == [
        ("toy: 8", METHOD, "plain"),
        ("toy: 8", METHOD, "uniform"),
    ]
    assert [each.difference.mean for each in found] == pytest.approx([-0.1, -0.1])
    assert judge_changes(found).word == "reproduced"
    assert judge_changes([]).word == "open"


def test_without_a_metric_of_the_task_the_balancers_imbalance_is_compared():
    def balance(method, seed):
        return {} if method == "plain" else {"last_imbalance": 0.3 if method == METHOD else 0.2}

    (found,) = imbalance_changes(*make(lambda *_: {"test": 0.5}, balance=balance))
    assert found.against == "uniform"
    assert found.difference.mean == pytest.approx(0.1)
    assert judge_changes([found]).word == "not reproduced"


def test_studies_without_an_imbalance_are_left_out():
    pair = make(lambda *_: {"test": 0.5, "imbalance": None})
    assert imbalance_changes(*pair) == []
    assert error_correlation(*pair, "imbalance") is None


@pytest.mark.parametrize("lower_is_better", [False, True])
def test_a_correlation_is_positive_if_more_imbalance_comes_with_more_error(lower_is_better):
    def measure(method, lr, seed):
        error = 0.01 * seed + lr
        return {"test": error if lower_is_better else 1 - error, "imbalance": error}

    found = error_correlation(*make(measure, lower_is_better=lower_is_better), "imbalance")
    assert found.over_all.mean == pytest.approx(1, abs=0.01)  # rounding errors change ranks
    assert found.within.mean == pytest.approx(1, abs=0.01)
    assert found.over_all.points == 72
    assert judge_correlations([found]).word == "reproduced"


def test_an_effect_of_the_rate_is_not_found_within_configurations():
    rng = np.random.default_rng(0)

    def measure(method, lr, seed):
        return {"test": 1 - lr + 0.001 * rng.normal(), "imbalance": lr + 0.001 * rng.normal()}

    found = error_correlation(*make(measure, seeds=60), "imbalance")
    assert found.over_all.low > 0.5
    assert found.within.low < 0 < found.within.high
    assert judge_correlations([found]).word == "not reproduced"


def test_missing_networks_are_named(tmp_path, capsys):
    net = diagnose.Net("A net", "weights/a.safetensors", 1.0, "a paper", "example.org")
    assert diagnose.main(["--data", str(tmp_path)], results=tmp_path, nets=(net,)) == 1
    assert f"A net: skipped, there is no {tmp_path}/weights/a.safetensors: example.org" in capsys.readouterr().err
    assert json.loads((tmp_path / "diagnosis.json").read_text())["nets"] == []


def test_the_alphas_of_a_network_are_measured(tmp_path, trained):
    torch.save(trained.state_dict(), tmp_path / "a.pt")
    net = diagnose.Net("A net", "a.pt", 1.0, "a paper", "example.org")
    assert diagnose.main(["--data", str(tmp_path)], results=tmp_path, nets=(net,)) == 0
    (row,) = json.loads((tmp_path / "diagnosis.json").read_text())["nets"]
    assert row["layers"] == 3
    assert row["mean_alpha"] == pytest.approx(3.07, abs=0.3)
