"""Training runs tracked over their checkpoints: numbers, order, resuming, and what is found."""

import json
import math

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

import tempbalance as tb
from tempbalance.analysis import Track, TrackResume, tracker
from tempbalance.errors import AnalysisError, CheckpointError

NONE = '{"schema": 1, "settings": {}, "checkpoints": [], "skipped": [], "findings": []}'


def kinds(tracked):
    return [finding.kind for finding in tracked.findings]


def the(tracked, kind):
    return next(finding for finding in tracked.findings if finding.kind == kind)


def state(step):
    """Two layers and an embedding; the second layer moves by 1 % of its norm each step."""
    tensors = {
        f"layers.{i}.weight": tb.testing.matrix_with_spectrum(
            tb.testing.pareto_quantiles(60, 2.5 + i), (60, 60), seed=i
        ).float()
        for i in range(2)
    }
    noise = torch.randn(60, 60, generator=torch.Generator().manual_seed(1))
    tensors["layers.1.weight"] += 0.01 * step * tensors["layers.1.weight"].norm() / noise.norm() * noise
    return tensors | {"embeddings.weight": torch.ones(100, 60), "layers.1.bias": torch.full((60,), float(step))}


@pytest.fixture
def run(tmp_path):
    """A folder of three checkpoints, as the Trainer of Transformers has them."""
    for step in (0, 5, 10):
        folder = tmp_path / "run" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        save_file(state(step), folder / "model.safetensors")
    return tmp_path / "run"


def test_alpha_stable_rank_and_drift_of_each_layer(run):
    tracked = tb.track(run)
    assert tracked.steps == [0, 5, 10]
    assert [checkpoint.name for checkpoint in tracked.checkpoints] == ["checkpoint-0", "checkpoint-5", "checkpoint-10"]
    for checkpoint in tracked.checkpoints:
        analysis = tb.analyze(state(checkpoint.step))
        rows = {row.name: row for row in checkpoint.layers}
        for layer in analysis.layers:
            assert (rows[layer.name].alpha, rows[layer.name].stderr) == (layer.alpha, layer.stderr)
            assert rows[layer.name].stable_rank == layer.stable_rank
        drift = (state(checkpoint.step)["layers.1.weight"] - state(0)["layers.1.weight"]).double().norm()
        assert rows["layers.1.weight"].drift == pytest.approx(
            float(drift / state(0)["layers.1.weight"].double().norm()), rel=1e-6
        )
        assert rows["layers.0.weight"].identical
        assert (rows["embeddings.weight"].drift, rows["embeddings.weight"].status) == (0.0, None)
    assert len(tracked) == 3
    total = math.sqrt(sum(float(w.double().norm()) ** 2 for n, w in state(0).items() if n.endswith("weight")))
    assert tracked.drift[2] == pytest.approx(0.1 * float(state(0)["layers.1.weight"].double().norm()) / total, rel=1e-4)


def test_findings_are_about_the_first_and_the_last_checkpoint(run):
    tracked = tb.track(run)
    assert the(tracked, "identical").layers == ("embeddings.weight", "layers.0.weight")
    assert "layers.1.weight (10.00%)" in the(tracked, "moved_most").message
    assert "alpha_unchanged" in kinds(tracked)
    assert "same_weights" not in kinds(tracked)


def test_warnings_of_the_analyses_are_told_once_with_the_checkpoints_that_have_them(run):
    for step in (5, 10):
        bad = state(step) | {"layers.0.weight": torch.full((60, 60), math.nan)}
        save_file(bad, run / f"checkpoint-{step}" / "model.safetensors")
    tracked = tb.track(run)
    finding = tracked.findings[0]
    assert (finding.kind, finding.severity.value, finding.layers) == ("nan", "error", ("layers.0.weight",))
    assert finding.message.startswith("in 2 of 3 checkpoints (checkpoint-5 to checkpoint-10): ")
    assert [[found.kind for found in each.findings] for each in tracked.checkpoints] == [[], ["nan"], ["nan"]]
    worse = state(10) | {name: torch.full((60, 60), math.nan) for name in ("layers.0.weight", "layers.1.weight")}
    save_file(worse, run / "checkpoint-10" / "model.safetensors")
    messages = [finding.message for finding in tb.track(run).findings if finding.kind == "nan"]
    assert [message.split(": ")[0] for message in messages] == [
        "in 1 of 3 checkpoints (checkpoint-5)",
        "in 1 of 3 checkpoints (checkpoint-10)",
    ]


def test_checkpoints_with_the_same_weights_are_found(run):
    save_file(state(5), run / "checkpoint-10" / "model.safetensors")
    finding = tb.track(run).findings[0]
    assert (finding.kind, finding.severity.value) == ("same_weights", "warning")
    assert finding.message == "checkpoint-5, checkpoint-10 have the same weights"


def test_weights_that_differ_in_a_bias_alone_are_not_the_same(run):
    save_file(state(5) | {"layers.1.bias": torch.zeros(60)}, run / "checkpoint-10" / "model.safetensors")
    assert "same_weights" not in kinds(tb.track(run))


def test_a_checkpoint_that_cannot_be_read_is_told_and_skipped_unless_strict(run):
    (run / "checkpoint-0" / "model.safetensors").write_bytes(b"x" * 100)
    tracked = tb.track(run)
    assert [row.name for row in tracked.skipped] == ["checkpoint-0"]
    assert (tracked.findings[0].kind, tracked.findings[0].severity.value) == ("unreadable", "error")
    assert tracked.steps == [5, 10]
    assert tracked.checkpoints[0].layers[1].drift == 0.0
    with pytest.raises(CheckpointError, match="checkpoint-0"):
        tb.track(run, strict=True)


def test_no_checkpoint_that_can_be_read_raises(tmp_path):
    (tmp_path / "checkpoint-1").mkdir()
    with pytest.raises(AnalysisError, match=r"no checkpoint can be read: checkpoint-1: .* no weights found"):
        tb.track(tmp_path)


def test_layers_that_come_or_change_their_shape_have_no_drift():
    grown = state(1) | {"embeddings.weight": torch.ones(101, 60), "head.weight": torch.randn(60, 60)}
    last = tb.track([state(0), grown]).checkpoints[1].layers
    drifts = {row.name: row.drift for row in last}
    assert math.isnan(drifts["embeddings.weight"])
    assert math.isnan(drifts["head.weight"])
    assert drifts["layers.1.weight"] > 0


def test_models_without_a_common_layer_give_a_warning():
    assert "not_matched" in kinds(tb.track([state(0), {"other.weight": torch.randn(60, 60)}]))


def test_states_and_live_models_are_tracked():
    model = torch.nn.Sequential(torch.nn.Linear(60, 60))
    tracked = tb.track([model.state_dict(), model])
    assert the(tracked, "same_weights").message == "model 1, model 2 have the same weights"
    assert tracked.steps == [1, 2]


class TestFiles:
    def test_a_result_is_saved_and_loaded(self, run, tmp_path):
        tracked = tb.track(run)
        for ending in ("json", "csv", "html"):
            tracked.save(tmp_path / f"t.{ending}")
        loaded = Track.load(tmp_path / "t.json")
        assert loaded.findings == tracked.findings
        assert loaded.checkpoints[1].layers[0] == tracked.checkpoints[1].layers[0]
        assert loaded.steps == tracked.steps
        table = pd.read_csv(tmp_path / "t.csv")
        assert len(table) == 9
        assert table["step"].unique().tolist() == [0, 5, 10]

    @pytest.mark.parametrize("content", ["{}", "[", '{"schema": 1, "settings": {}, "checkpoints": [{}]}', NONE])
    def test_a_file_that_is_no_result_raises(self, tmp_path, content):
        (tmp_path / "t.json").write_text(content)
        with pytest.raises(AnalysisError, match="is not a tracked run"):
            Track.load(tmp_path / "t.json")

    def test_another_ending_raises(self, run, tmp_path):
        with pytest.raises(AnalysisError, match=r"\.json, \.csv or \.html"):
            tb.track(run).save(tmp_path / "t.txt")


class TestResume:
    @pytest.fixture
    def measured(self, monkeypatch):
        """The sources that were analysed."""
        names, analyze = [], tracker.analyze

        def counted(source, **options):
            names.append(source.path.name)
            return analyze(source, **options)

        monkeypatch.setattr(tracker, "analyze", counted)
        return names

    def interrupted(self, run, output, monkeypatch, at):
        """Interrupt a run when a checkpoint is read."""
        digest = tracker.weights_digest

        def interrupt(source):
            if source.path.name == at:
                raise KeyboardInterrupt
            return digest(source)

        with monkeypatch.context() as patch:
            patch.setattr(tracker, "weights_digest", interrupt)
            with pytest.raises(KeyboardInterrupt):
                tb.track(run, resume=output)

    def test_an_interrupted_run_measures_the_rest(self, run, tmp_path, monkeypatch, measured):
        self.interrupted(run, tmp_path / "t.html", monkeypatch, "checkpoint-10")
        assert (tmp_path / "t.html.partial").exists()
        measured.clear()
        resumed = tb.track(run, resume=tmp_path / "t.html")
        assert measured == ["checkpoint-10"]
        assert not (tmp_path / "t.html.partial").exists()
        assert resumed == tb.track(run)

    def test_a_changed_checkpoint_is_measured_again(self, run, tmp_path, monkeypatch, measured):
        self.interrupted(run, tmp_path / "t.json", monkeypatch, "checkpoint-10")
        save_file(state(7), run / "checkpoint-5" / "model.safetensors")
        measured.clear()
        assert tb.track(run, resume=tmp_path / "t.json") == tb.track(run)
        assert measured[:2] == ["checkpoint-5", "checkpoint-10"]

    @pytest.mark.parametrize("change", ["first", "settings"])
    def test_another_first_checkpoint_or_setting_starts_afresh(self, run, tmp_path, monkeypatch, measured, change):
        self.interrupted(run, tmp_path / "t.json", monkeypatch, "checkpoint-10")
        options = {"estimator": "ks"} if change == "settings" else {}
        if change == "first":
            save_file(state(1), run / "checkpoint-0" / "model.safetensors")
        measured.clear()
        tb.track(run, resume=tmp_path / "t.json", **options)
        assert len(measured) == 3

    def test_a_finished_output_is_used_when_training_has_saved_more(self, run, tmp_path, measured):
        with TrackResume(tmp_path / "t.json") as resume:
            tb.track(run, resume=resume).save(tmp_path / "t.json")
        (run / "checkpoint-15").mkdir()
        save_file(state(15), run / "checkpoint-15" / "model.safetensors")
        measured.clear()
        tracked = tb.track(run, resume=tmp_path / "t.json")
        assert measured == ["checkpoint-15"]
        assert tracked == tb.track(run)

    def test_another_json_file_is_not_taken_for_a_result(self, run, tmp_path, measured):
        tb.analyze(run / "checkpoint-0").save(tmp_path / "t.json")
        tb.track(run, resume=tmp_path / "t.json")
        assert len(measured) == 3

    def test_models_in_memory_are_not_resumed(self, run, tmp_path):
        with pytest.raises(AnalysisError, match="only an analysis of files"):
            tb.track([state(0)], resume=tmp_path / "t.json")


class TestTrainers:
    def test_a_run_of_the_trainer_with_an_adapter_and_its_base(self, tmp_path):
        transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
        torch.manual_seed(0)
        config = transformers.BertConfig(
            vocab_size=60, hidden_size=48, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
        )
        base = transformers.BertForSequenceClassification(config)
        base.save_pretrained(tmp_path / "base")
        model = peft.get_peft_model(base, peft.LoraConfig(target_modules=["query"], r=2, task_type="SEQ_CLS"))
        data = [{"input_ids": torch.randint(0, 60, (8,)), "labels": i % 2} for i in range(8)]
        quiet = {"report_to": [], "disable_tqdm": True, "use_cpu": True, "per_device_train_batch_size": 4}
        args = transformers.TrainingArguments(
            str(tmp_path / "run"), save_strategy="steps", save_steps=2, max_steps=6, learning_rate=0.1, **quiet
        )
        transformers.Trainer(model, args, train_dataset=data).train()
        tracked = tb.track(tmp_path / "run", base=tmp_path / "base")
        assert tracked.steps == [2, 4, 6]
        moved = {row.name for row in tracked.checkpoints[-1].layers if not row.identical}
        names = {f"bert.encoder.layer.{i}.attention.self.query.weight" for i in range(2)}
        assert names <= moved <= names | {"classifier.weight"}
        assert "lora" not in {row.kind for row in tracked.checkpoints[0].layers}

    def test_a_run_of_lightning(self, tmp_path):
        folder = tmp_path / "version_0" / "checkpoints"
        folder.mkdir(parents=True)
        for step in (3, 12):
            saved = {"global_step": step, "state_dict": state(step), "optimizer_states": [{"state": {}}]}
            torch.save(saved, folder / f"epoch={step}.ckpt")
        assert tb.track(tmp_path / "version_0").steps == [3, 12]


def test_the_settings_are_those_of_the_analysis(run):
    assert tb.track(run, estimator="ks").settings["estimator"].startswith("KS(")
    json.dumps(tb.track(run).to_dict()["settings"])


def test_that_some_checkpoints_are_quantised_is_a_warning():
    weight = tb.testing.matrix_with_spectrum(tb.testing.pareto_quantiles(60, 3.0), (60, 60)).float()
    scale = weight.abs().amax(dim=1, keepdim=True) / 127
    rounded = {"fc.weight": (weight / scale).round().to(torch.int8), "fc.weight_scale": scale}
    tracked = tb.track([{"fc.weight": weight}, {"fc.weight": 1.1 * weight}, rounded])
    finding = next(each for each in tracked.findings if each.kind == "quantised")
    assert "1 of 3 checkpoints are quantised" in finding.message
    assert finding.severity.value == "warning"
    assert not any(each.kind == "quantised" for each in tb.track([rounded, rounded]).findings)
