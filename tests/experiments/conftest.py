"""The scripts of experiments/ import each other from their own folder, as when they are run."""

import random
import sys
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
sys.path.insert(0, str(EXPERIMENTS))

METHOD = "model_balancing:normalize=true"


@pytest.fixture
def experiments():
    return EXPERIMENTS


@pytest.fixture
def make_results():
    """Makes results of a study from the means of its methods, with a little noise that differs between methods."""
    from claims import Metric, Study
    from gains import Results

    def make(means, name="16", *, seeds=12, trials=3, noise=0.002, edit=lambda run: run):
        rng = random.Random(name)
        shared = [rng.gauss(0, 0.05) for _ in range(seeds)]
        runs, rows = [], []
        for method, mean in means.items():
            for seed, offset in enumerate(shared):
                metrics = {"test": mean + offset + rng.gauss(0, noise)}
                run = {"method": method, "lr": 0.1, "seed": seed, "status": "ok", "metrics": metrics, "seconds": 1.0}
                runs.append(edit({**run, "error": ""}))
            counts = {"diverged": 0, "failed": 0, "gain": {} if rows else None, "p_value": 0.01}
            rows.append({"method": method, "chosen": f"{method} lr=0.1", "mean": mean, **counts})
        study = Study(name=name, parameters={"examples": int(name)}, methods=tuple(means), lr=(0.1,), seeds=seeds)
        entry = {
            "settings": {"settings": {"versions": {"torch": "2"}}, "tuning_seeds": 3},
            "summary": {"rows": rows, "seeds": seeds, "trials": trials},
            "runs": runs,
        }
        return Results(study, entry, Metric(name="accuracy", unit="points", scale=100))

    return make


@pytest.fixture
def claim():
    from claims import Claim, Published

    published = Published(where="RoBERTa", size="1 %", baseline=58.49, method=68.39)
    return Claim(
        name="block",
        sentence="It helps.",
        paper="A paper",
        published=(published,),
        method=METHOD,
        panels={"here": ("16", "64")},
    )


@pytest.fixture
def make_experiment(claim):
    """Makes an experiment of one claim from the results of its studies, and these by name."""
    from claims import Experiment

    def make(*results):
        experiment = Experiment(
            name="toy",
            task="x.py",
            metric=results[0].metric,
            size=("examples", "sentences"),
            claims=(claim,),
            quick=(),
            full=tuple(each.study for each in results),
        )
        return experiment, {each.study.name: each for each in results}

    return make
