"""Does balancing lower the imbalance, and does it predict the error?"""

import importlib
import json
import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest

scipy_stats = pytest.importorskip("scipy.stats")
METHOD = "model_balancing"


@pytest.fixture
def correlation(experiments):
    return importlib.import_module("evidence.correlation")


@pytest.fixture
def diagnosis(experiments):
    return importlib.import_module("evidence.diagnosis")


@pytest.fixture
def contest(experiments):
    """A study of one contest: what `measure` makes of a run's method, rate and seed stands beside its test metric."""
    compare, concepts = (importlib.import_module(f"evidence.{name}") for name in ("compare", "study"))

    def make(measure, *, balance=lambda method, seed: {}, seeds=12, lower_is_better=False):
        names = ("plain", METHOD, f"{METHOD}:control=uniform")
        runs = []
        for name in names:
            for lr in (0.1, 0.2):
                for seed in range(seeds):
                    metrics = measure(name, lr, seed)
                    run = {"method": name, "lr": lr, "seed": seed, "status": "ok", "metrics": metrics}
                    runs.append(run | {"balance": balance(name, seed), "seconds": 1.0, "error": ""})
        rows = [{"method": name, "chosen": f"{name} lr=0.1", "mean": 0.5} for name in names]
        metric = concepts.Metric(name="accuracy", unit="points", lower_is_better=lower_is_better)
        contest = concepts.Contest(name="8", settings={"examples": 8}, methods=names[1:], lr=(0.1, 0.2), seeds=seeds)
        claim = concepts.Claim(
            name="a", sentence="It helps.", paper="A paper", published=(), method=METHOD, panels={"here": ("8",)}
        )
        study = concepts.Study(
            name="toy",
            task="toy.py",
            metric=metric,
            size=("examples", "images"),
            claims=(claim,),
            quick=(),
            full=(contest,),
        )
        entry = {"summary": {"rows": rows, "seeds": seeds, "trials": 2}, "runs": runs}
        return study, compare.Compared(contest, entry, metric)

    return make


@pytest.mark.parametrize("levels", [5, 1000], ids=["ties", "hardly any"])
def test_the_rank_correlation_is_scipys(correlation, levels):
    rng = np.random.default_rng(0)
    x = rng.integers(levels, size=60)
    y = x + rng.integers(levels, size=60)
    assert correlation.spearman(x, y) == pytest.approx(scipy_stats.spearmanr(x, y).statistic)


def test_what_is_all_alike_has_no_correlation(correlation):
    assert math.isnan(correlation.spearman([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]))
    assert math.isnan(correlation.by_seed([], [], []).mean)


def test_the_p_value_of_a_few_points_counts_their_orders(correlation):
    assert correlation.exact_p([1, 2, 3, 4], [1, 2, 3, 4]) == pytest.approx(2 / 24)
    x, y = [1, 2, 3, 4, 5], [2, 1, 3, 5, 4]
    test = scipy_stats.permutation_test(
        (x,), lambda order: abs(scipy_stats.spearmanr(order, y).statistic), permutation_type="pairings"
    )
    assert correlation.exact_p(x, y) == pytest.approx(float((test.null_distribution >= test.statistic - 1e-9).mean()))


def test_an_interval_needs_ten_seeds(correlation):
    seeds = [*range(9)] * 3
    assert math.isnan(correlation.by_seed(seeds, range(27), range(27)).low)
    found = correlation.by_seed([*range(30)], range(30), range(30))
    assert found.mean == pytest.approx(1)
    assert found.low == pytest.approx(1)


def test_runs_of_one_seed_count_as_one(correlation):
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 12))
    once = correlation.by_seed([*range(12)], x, y)
    copied = correlation.by_seed([*range(12)] * 20, [*x] * 20, [*y] * 20)
    assert copied.high - copied.low == pytest.approx(once.high - once.low, rel=0.2)


def test_a_fall_is_that_of_the_chosen_rate_seed_by_seed(diagnosis, contest):
    def measure(method, lr, seed):
        return {"test": 0.5, "imbalance": (0.3 if method == METHOD else 0.4) + 0.01 * seed + (lr > 0.1)}

    found = diagnosis.falls(*contest(measure))
    assert [(fall.contest, fall.method, fall.against) for fall in found] == [
        ("toy: 8", METHOD, "plain"),
        ("toy: 8", METHOD, "uniform"),
    ]
    assert [fall.difference.mean for fall in found] == pytest.approx([-0.1, -0.1])
    assert diagnosis.verdict_on_falls(found).word == "reproduced"
    assert diagnosis.verdict_on_falls([]).word == "open"


def test_where_the_task_does_not_measure_the_balancer_does(diagnosis, contest):
    def balance(method, seed):
        return {} if method == "plain" else {"last_imbalance": 0.3 if method == METHOD else 0.2}

    (found,) = diagnosis.falls(*contest(lambda *_: {"test": 0.5}, balance=balance))
    assert found.against == "uniform"
    assert found.difference.mean == pytest.approx(0.1)
    assert diagnosis.verdict_on_falls([found]).word == "not reproduced"


def test_what_was_never_measured_is_left_out(diagnosis, contest):
    study, compared = contest(lambda *_: {"test": 0.5, "imbalance": None})
    assert diagnosis.falls(study, compared) == []
    assert diagnosis.predict(study, compared, "imbalance") is None


@pytest.mark.parametrize("lower_is_better", [False, True])
def test_more_imbalance_with_more_error_is_positive(diagnosis, contest, lower_is_better):
    def measure(method, lr, seed):
        error = 0.01 * seed + lr
        return {"test": error if lower_is_better else 1 - error, "imbalance": error}

    found = diagnosis.predict(*contest(measure, lower_is_better=lower_is_better), "imbalance")
    assert found.over_all.mean == pytest.approx(1, abs=0.01)  # what is equal but for rounding has different ranks
    assert found.within.mean == pytest.approx(1, abs=0.01)
    assert found.over_all.points == 72
    assert diagnosis.verdict_on_predictions([found]).word == "reproduced"


def test_what_only_the_rate_changes_is_not_found_within_trials(diagnosis, contest):
    rng = np.random.default_rng(0)

    def measure(method, lr, seed):
        return {"test": 1 - lr + 0.001 * rng.normal(), "imbalance": lr + 0.001 * rng.normal()}

    found = diagnosis.predict(*contest(measure, seeds=60), "imbalance")
    assert found.over_all.low > 0.5
    assert found.within.low < 0 < found.within.high
    assert diagnosis.verdict_on_predictions([found]).word == "not reproduced"


def test_a_forest_is_svg(experiments):
    forest = importlib.import_module("evidence.forest")
    points = [forest.Point("a < b", 0, 1.0, 0.5, 1.5), forest.Point("c", 1, -2.0, -3.0, -1.0)]
    root = ET.fromstring(forest.forest(points, "change, %", ("one", "two")))
    assert sum(1 for _ in root.iter("{http://www.w3.org/2000/svg}circle")) == 4
    ET.fromstring(forest.forest([], "change, %", ("one", "two")))


def test_networks_that_are_missing_are_named(experiments, tmp_path, capsys, monkeypatch):
    diagnose = importlib.import_module("diagnose")
    net = diagnose.Net("A net", "weights/a.safetensors", 1.0, "a paper", "example.org")
    monkeypatch.setattr(diagnose, "NETS", (net,))
    assert diagnose.main(["--data", str(tmp_path)], tmp_path) == 1
    assert f"A net: skipped, there is no {tmp_path}/weights/a.safetensors: example.org" in capsys.readouterr().err
    assert json.loads((tmp_path / "diagnosis.json").read_text())["nets"] == []


def test_networks_are_measured(experiments, tmp_path, trained, monkeypatch):
    import torch

    diagnose = importlib.import_module("diagnose")
    torch.save(trained.state_dict(), tmp_path / "a.pt")
    monkeypatch.setattr(diagnose, "NETS", (diagnose.Net("A net", "a.pt", 1.0, "a paper", "example.org"),))
    assert diagnose.main(["--data", str(tmp_path)], tmp_path) == 0
    (row,) = json.loads((tmp_path / "diagnosis.json").read_text())["nets"]
    assert row["layers"] == 3
    assert row["mean_alpha"] == pytest.approx(3.07, abs=0.3)
