import sys
from pathlib import Path

import pytest
import torch

from tempbalance.study import Configuration, load_task

STUDY = Path(__file__).parents[2] / "experiments" / "low_data_text.py"
pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("sst2")
    for part in ("train", "dev", "test"):
        rows = [f"a {'fine' if label else 'dull'} film {i}\t{label}" for i in range(3) for label in (0, 1)]
        (tmp_path / f"{part}.tsv").write_text("sentence\tlabel\n" + "\n".join(rows) + "\n")
    return str(tmp_path)


def test_the_text_task_trains_and_strength_0_equals_plain(minilm, data):
    task = load_task(STUDY, {"data": data, "examples": 3, "epochs": 1, "batch_size": 2})
    names = ("plain", "model_balancing", "model_balancing:strength=0,every=9")
    runs = [task.run(Configuration(name, 1e-3), 0) for name in names]
    assert [run.error for run in runs] == ["", "", ""]
    names = {"validation", "test", "validation_loss", "test_loss", "train_loss"}
    assert all(names < set(run.metrics) for run in runs)  # and alphas
    assert runs[0].metrics == runs[2].metrics
    assert runs[1].balance["refreshes"] == 2


def test_baselines_are_methods_of_the_text_task(minilm, data):
    pytest.importorskip("peft")
    task = load_task(STUDY, {"data": data, "examples": 2, "epochs": 2, "batch_size": 2})
    names = ("plain", "ensemble_decay:members=1,decay=1", "ensemble_decay:members=2,decay=1", "wise_ft+lora+snr+ps_kd")
    plain, one, two, joined = (task.run(Configuration(name, 1e-3), 0) for name in names)
    assert one.metrics.items() < plain.metrics.items()  # which has alphas, too
    assert plain.metrics["validation_loss"] != two.metrics["validation_loss"]
    assert joined.error == ""
    assert joined.metrics["validation_loss"] not in (plain.metrics["validation_loss"], two.metrics["validation_loss"])


@pytest.mark.filterwarnings("ignore:.*NaN or Inf")
def test_a_diverged_text_trial_has_no_accuracy(minilm, data):
    run = load_task(STUDY, {"data": data, "examples": 4, "epochs": 2, "batch_size": 2}).run(
        Configuration("plain", 1e30), 0
    )
    assert run.status == "diverged"


@pytest.mark.parametrize("in_a_row", [1, 2, 3])
def test_sentences_in_one_row_do_not_attend_to_each_other(minilm, tmp_path, in_a_row):
    import transformers

    rows = ["which?\tthe short one\tno", "why?\tbecause it is by far the longest of these\tyes", "so?\tyes\tno"]
    for part in ("train", "dev"):
        (tmp_path / f"{part}.tsv").write_text("\n".join(["question\tsentence\tlabel", *rows, ""]))
    load_task(STUDY)
    study = sys.modules["tempbalance_task_low_data_text"]
    texts = study.load(str(tmp_path), "dev")
    model = study.Classifier.from_pretrained(minilm).eval()
    batch = texts.batch([2, 0, 1], in_a_row)
    reference = transformers.AutoModelForSequenceClassification.from_pretrained(minilm).eval()
    reference.load_state_dict(model.state_dict())
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    columns = zip(*(rows[i].split("\t")[:2] for i in (2, 0, 1)), strict=True)
    found = reference(**tokenizer(*map(list, columns), padding=True, return_tensors="pt")).logits
    torch.testing.assert_close(model(**batch.inputs), found, atol=1e-6, rtol=1e-5)
    assert batch.targets.tolist() == [0, 0, 1]


def test_missing_sst2_files_are_named(minilm, tmp_path):
    run = load_task(STUDY, {"data": str(tmp_path)}).run(Configuration("plain", 1e-3), 0)
    assert run.status == "failed"
    assert f"there is no {tmp_path}/train.tsv: get SST-2" in run.error
