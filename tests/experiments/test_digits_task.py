from pathlib import Path

import pytest

from tempbalance.study import Configuration, load_task
from tempbalance.study.methods import TRAINING_METHODS

STUDY = Path(__file__).parents[2] / "experiments" / "digits.py"
pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def small_task():
    return load_task(STUDY, {"examples": 4, "epochs": 2, "pretrain_epochs": 2})


def test_the_digits_task_trains_and_strength_0_equals_plain():
    task = load_task(STUDY, {"examples": 1, "epochs": 10, "pretrain_epochs": 3})
    names = ("plain", "model_balancing", "model_balancing:strength=0")
    plain, balanced, neutral = (task.run(Configuration(name, 1e-2), 0) for name in names)
    assert [run.error for run in (plain, balanced, neutral)] == ["", "", ""]
    assert set(plain.metrics) == {"validation", "test", "noisy", "rotated"}
    assert all(0.2 < accuracy < 1 for accuracy in plain.metrics.values())
    assert plain.metrics == neutral.metrics != balanced.metrics


@pytest.mark.parametrize("name", [*TRAINING_METHODS, "data_diet:keep=0.3+lp_ft+sam+lora+model_balancing"])
def test_the_digits_task_calls_all_hooks(small_task, name):
    if "lora" in name:
        pytest.importorskip("peft")
    small_task.check(Configuration(name, 1e-2))
    run = small_task.run(Configuration(name, 1e-2), 0)
    assert run.error == ""
    assert all(0.1 < run.metrics[name] < 1 for name in ("test", "noisy", "rotated"))
