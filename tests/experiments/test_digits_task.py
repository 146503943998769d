from pathlib import Path

import pytest

from tempbalance.study import Configuration, load_task

STUDY = Path(__file__).parents[2] / "experiments" / "digits.py"
pytest.importorskip("sklearn")


def test_the_digits_task_trains_and_strength_0_equals_plain():
    task = load_task(STUDY, {"examples": 1, "epochs": 10, "pretrain_epochs": 3})
    names = ("plain", "model_balancing", "model_balancing:strength=0")
    plain, balanced, neutral = (task.run(Configuration(name, 1e-2), 0) for name in names)
    assert [run.error for run in (plain, balanced, neutral)] == ["", "", ""]
    assert set(plain.metrics) == {"validation", "test"}
    assert all(0.2 < accuracy < 1 for accuracy in plain.metrics.values())
    assert plain.metrics == neutral.metrics != balanced.metrics
