import json
import sys
from pathlib import Path

import pytest
import torch

from tempbalance.study import Configuration, Method, TrainingMethod, load_task
from tempbalance.study.runner import FIRST_TUNING_SEED

STUDY = Path(__file__).parents[2] / "experiments" / "low_data_text.py"
pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Single sentences with a test file, pairs with an index and without one, and sentences as JSON."""
    folder = tmp_path_factory.mktemp("text")
    texts = [(f"a {'fine' if label else 'dull'} film {i}", str(label)) for i in range(6) for label in (0, 1)]
    forms = {
        "sst2": ("sentence\tlabel\n", lambda i, text, label: f"{text}\t{label}"),
        "rte": ("index\tsentence1\tsentence2\tlabel\n", lambda i, text, label: f"{i}\t{text}\tit is so\t{label}"),
        "chemprot": ("", lambda i, text, label: json.dumps({"text": text, "label": label, "metadata": []})),
    }
    for name, (head, row) in forms.items():
        (folder / name).mkdir()
        end = "jsonl" if name == "chemprot" else "tsv"
        for part in ("train", "dev") if name == "rte" else ("train", "dev", "test"):
            lines = [row(i, *text) for i, text in enumerate(texts)]
            (folder / name / f"{part}.{end}").write_text(head + "\n".join(lines) + "\n")
    return str(folder)


@pytest.fixture(scope="module")
def text_task():
    return sys.modules[load_task(STUDY).function.__module__]


@pytest.mark.slow
def test_the_text_task_trains_and_strength_0_equals_plain(minilm, data):
    task = load_task(STUDY, {"data": data, "examples": 3, "epochs": 1, "batch_size": 2})
    names = ("plain", "model_balancing", "model_balancing:strength=0,every=9")
    runs = [task.run(Configuration(name, 1e-3), 0) for name in names]
    assert [run.error for run in runs] == ["", "", ""]
    assert all({"test", "test_loss", "train_loss"} < set(run.metrics) for run in runs)  # and alphas
    assert runs[0].metrics == runs[2].metrics
    assert runs[1].balance["refreshes"] == 2


@pytest.mark.parametrize("dataset", ["rte", "chemprot"])
def test_pairs_and_json_are_read_and_a_tuning_seed_is_validated_as_well(minilm, data, dataset):
    task = load_task(STUDY, {"data": data, "dataset": dataset, "examples": 2, "epochs": 1, "evaluated": 4})
    compared, tuning = (task.run(Configuration("constant", 1e-3), seed).metrics for seed in (0, FIRST_TUNING_SEED))
    assert compared["test"] in (0.25, 0.5, 0.75)
    assert "validation" not in compared and "validation" in tuning


def test_without_a_test_file_half_of_the_training_file_is_the_test(minilm, data, text_task):
    train, test = (text_task.read(Path(data) / "rte", part) for part in ("train", "test"))
    assert (len(train), len(test)) == (6, 6)
    assert not {row[0] for row, _ in train} & {row[0] for row, _ in test}


def test_the_text_task_is_tested_on_a_shifted_set_with_the_same_labels(minilm, data):
    shifted = Path(data) / "products"
    shifted.mkdir()
    (shifted / "test.tsv").write_text("sentence\tlabel\n" + "a fine phone\t1\n" * 3)  # one of two labels
    task = load_task(STUDY, {"data": data, "examples": 2, "epochs": 1, "shifted": "products"})
    found = {task.run(Configuration("constant", 1e-3), seed).metrics["shifted"] for seed in range(6)}
    assert found == {0.0, 1.0}  # by the label that is the most frequent of the two examples


def test_a_shifted_set_with_other_labels_is_refused(minilm, data):
    shifted = Path(data) / "stars"
    shifted.mkdir()
    (shifted / "test.tsv").write_text("sentence\tlabel\na fine phone\t5\n")
    task = load_task(STUDY, {"data": data, "examples": 2, "epochs": 1, "shifted": "stars"})
    assert "stars must be among 0, 1; 5 is not" in task.run(Configuration("constant", 1e-3), 0).error


def test_training_methods_are_methods_of_the_text_task(minilm, data):
    pytest.importorskip("peft")
    task = load_task(STUDY, {"data": data, "examples": 2, "epochs": 2, "batch_size": 2})
    names = ("plain", "ensemble_decay:members=1,decay=1", "ensemble_decay:members=2,decay=1", "wise_ft+lora+snr+ps_kd")
    plain, one, two, joined = (task.run(Configuration(name, 1e-3), 0) for name in names)
    assert one.metrics.items() < plain.metrics.items()  # which has alphas, too
    assert plain.metrics["test_loss"] != two.metrics["test_loss"]
    assert joined.error == ""
    assert joined.metrics["test_loss"] not in (plain.metrics["test_loss"], two.metrics["test_loss"])


def test_the_probe_trains_the_head_only_and_lp_ft_starts_from_it(minilm, data):
    task = load_task(STUDY, {"data": data, "dataset": "rte", "examples": 4, "epochs": 1})
    runs = {name: task.run(Configuration(name, rate), 0) for name, rate in [("probe", 1.0), ("lp_ft", 1e-12)]}
    assert {run.error for run in runs.values()} == {""}
    assert runs["probe"].metrics["test_loss"] == pytest.approx(runs["lp_ft"].metrics["test_loss"], abs=1e-6)
    assert runs["probe"].metrics["test"] == runs["lp_ft"].metrics["test"]


@pytest.mark.parametrize("name", ["few_sample:longer=1", "spd", "pego", "data_diet:runs=1"])
def test_other_ways_to_fine_tune_are_methods_of_the_text_task(minilm, data, name):
    task = load_task(STUDY, {"data": data, "examples": 2, "epochs": 1, "batch_size": 2})
    plain, other = (task.run(Configuration(each, 1e-3), 0) for each in ("plain", name))
    assert other.error == ""
    assert other.metrics["test_loss"] != plain.metrics["test_loss"]


def test_all_optimizers_of_a_method_are_stepped(minilm, data, text_task):
    class Two(TrainingMethod):
        def optimizers(self, model, lr, weight_decay, betas=(0.9, 0.999)):
            ours = [parameter for parameter in model.parameters() if parameter.requires_grad]
            options = {"lr": lr, "weight_decay": weight_decay, "fused": True}
            return [torch.optim.AdamW(part, **options) for part in (ours[::2], ours[1::2])]

    options = {"data": data, "examples": 4, "epochs": 1, "batch_size": 2}
    found = text_task.train(0, Method("two", custom={"two": Two}), 1e-3, **options)
    assert found.items() < text_task.train(0, Method("plain"), 1e-3, **options).items()  # which has alphas, too


@pytest.mark.filterwarnings("ignore:.*NaN or Inf")
def test_a_diverged_text_trial_has_no_accuracy(minilm, data):
    run = load_task(STUDY, {"data": data, "examples": 4, "epochs": 2, "batch_size": 2}).run(
        Configuration("plain", 1e30), 0
    )
    assert run.status == "diverged"


@pytest.mark.parametrize("pairs", [False, True])
def test_texts_in_one_row_have_the_embeddings_that_they_have_alone(minilm, text_task, pairs):
    import transformers

    rows = [["which?", "the short one"], ["why?", "because it is by far the longest of these"]]
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    encoder = transformers.AutoModel.from_pretrained(minilm).eval()

    def embedding(text):
        return 8 * torch.nn.functional.normalize(
            encoder(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(dim=0), dim=0
        )

    u, v = (torch.stack([embedding(row[i]) for row in rows]) for i in (0, 1))
    model = text_task.build(3, pairs).eval()
    features = torch.cat([u, v, (u - v).abs(), u * v], dim=1) if pairs else v
    ids = [[tokenizer(text)["input_ids"] for text in (row if pairs else row[1:])] for row in rows]
    batch = text_task.Texts(ids, [0, 2], 3).batch([0, 1])
    torch.testing.assert_close(model(**batch.inputs), model.classifier(10 * features), atol=1e-5, rtol=1e-5)
    assert batch.targets.tolist() == [0, 2]
    half = text_task.build(3, pairs, bfloat16=True).eval()
    half.load_state_dict(model.state_dict())
    difference = (half(**batch.inputs) - model(**batch.inputs)).abs().max()
    assert 0 < difference < 0.05 * model(**batch.inputs).abs().max()


def test_long_examples_are_left_out(minilm, text_task, tmp_path):
    rows = ["sentence\tlabel", "short\t1", f"{'long ' * 100}\t0", ""]
    for part in ("train", "dev", "test"):
        (tmp_path / f"{part}.tsv").write_text("\n".join(rows))
    texts = text_task.load(tmp_path, "train")
    assert (texts.labels, texts.classes) == ([1], 2)


@pytest.mark.parametrize("examples", [0, 13])
def test_examples_that_cannot_be_drawn_are_refused(minilm, data, examples):
    run = load_task(STUDY, {"data": data, "examples": examples}).run(Configuration("plain", 1e-3), 0)
    assert f"examples must be 1 to 12, those of {data}/sst2, got {examples}" in run.error


def test_missing_files_are_named(minilm, tmp_path):
    run = load_task(STUDY, {"data": str(tmp_path), "dataset": "qnli"}).run(Configuration("plain", 1e-3), 0)
    assert run.status == "failed"
    assert f"there is no {tmp_path}/qnli/train.tsv or .jsonl: get SST-2, QNLI" in run.error
