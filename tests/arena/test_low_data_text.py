from pathlib import Path

import pytest

from tempbalance.arena import Trial
from tempbalance.arena.task import load_task

STUDY = Path(__file__).parents[2] / "experiments" / "low_data_text.py"
pytest.importorskip("transformers")


@pytest.fixture
def data(tmp_path):
    for part in ("train", "dev", "test"):
        rows = [f"a {'fine' if label else 'dull'} film {i}\t{label}" for i in range(3) for label in (0, 1)]
        (tmp_path / f"{part}.tsv").write_text("sentence\tlabel\n" + "\n".join(rows) + "\n")
    return str(tmp_path)


def test_the_study_of_text_is_a_task(minilm, data):
    task = load_task(STUDY, {"data": data, "examples": 3, "epochs": 2, "batch_size": 2})
    runs = [task.run(Trial(name, 1e-3), 0) for name in ("plain", "model_balancing", "model_balancing:strength=0")]
    assert [run.error for run in runs] == ["", "", ""]
    names = {"validation", "test", "validation_loss", "test_loss", "train_loss"}
    assert all(set(run.metrics) == names for run in runs)
    assert runs[0].metrics == runs[2].metrics
    assert runs[1].balance["refreshes"] == 4


def test_missing_data_says_which_and_how(minilm, tmp_path):
    run = load_task(STUDY, {"data": str(tmp_path)}).run(Trial("plain", 1e-3), 0)
    assert run.status == "failed"
    assert f"there is no {tmp_path}/train.tsv: get SST-2" in run.error
