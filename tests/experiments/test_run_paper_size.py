"""Experiments at the size of the papers: rehearsed on tiny data and models, in pieces."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

import run_paper_size
from pages import paper_size_section
from paper_size import llama, resnet18
from results_file import load_results
from studies.paper_size import PAPER_SIZE, TEMPBALANCE

from tempbalance.errors import StudyError
from tempbalance.study import count_trials


@pytest.mark.slow
@pytest.mark.parametrize("name", PAPER_SIZE)
def test_a_rehearsal_in_pieces_equals_training_without_pauses(name, capsys):
    assert run_paper_size.main([name, "--rehearse"]) == 0
    assert "pieces, as without pauses" in capsys.readouterr().out


@pytest.mark.parametrize("name", PAPER_SIZE)
def test_every_study_can_be_run_and_a_claim_is_tested_by_its_methods(name):
    experiment = PAPER_SIZE[name]
    for study in experiment.full:
        assert count_trials(run_paper_size.HERE / experiment.task, study.methods, lr=study.lr) > 0
        assert experiment.sources[study.data] and experiment.size[0] in study.parameters
    for claim in experiment.claims:
        studies = [study for study in experiment.full if study.name in claim.studies]
        assert len(studies) == len(experiment.full)
        assert all({claim.method, claim.baseline} <= {"plain", *study.methods} for study in studies)


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Makes TempBalance's experiment a tiny one, with its data; returns its command."""
    (study,) = TEMPBALANCE.full
    parameters = {**study.parameters, **resnet18.REHEARSAL, "epochs": 1}
    small = replace(study, parameters=parameters, methods=("tempbalance",), lr=(0.1,), seeds=1)
    monkeypatch.setitem(PAPER_SIZE, "resnet18", replace(TEMPBALANCE, full=(small,)))
    (tmp_path / "images").mkdir()
    resnet18.write_tiny(tmp_path / "images")

    def run(*argv):
        given = ["resnet18", "--data", str(tmp_path), "--out", str(tmp_path / "runs"), "--device", "cpu", *argv]
        return run_paper_size.main(given, results=tmp_path / "results")

    return run


def test_a_run_pauses_when_its_time_is_over_and_its_results_are_shown_like_those_of_small_studies(
    tiny, tmp_path, capsys
):
    statuses = [tiny("--minutes", "1e-9") for _ in range(3)]  # two trials of two steps, one pause in each
    assert statuses == [75, 75, 0]
    assert "plain 0.1 0: 1 of 2 steps. Run the same command again to resume" in capsys.readouterr().out
    (entry,) = json.loads((tmp_path / "results" / "resnet18.json").read_text()).values()
    assert [trial["status"] for trial in entry["runs"]] == ["ok", "ok"]
    assert all("seconds" not in trial["metrics"] and trial["seconds"] > 0 for trial in entry["runs"])
    experiment = PAPER_SIZE["resnet18"]
    assert "ResNet-18, CIFAR-100, ours" in paper_size_section(
        experiment, load_results(experiment, tmp_path / "results")
    )
    assert "Not run yet" in paper_size_section(experiment, {})


@pytest.mark.slow
def test_trials_side_by_side_pause_and_resume_like_those_one_after_the_other(tiny, tmp_path):
    assert [tiny("--minutes", "1e-9", "--jobs", "2") for _ in range(2)] == [75, 0]
    (entry,) = json.loads((tmp_path / "results" / "resnet18.json").read_text()).values()
    (tmp_path / "runs").rename(tmp_path / "side-by-side")
    assert not [*tmp_path.rglob("*.pt")]
    assert tiny() == 0
    (other,) = json.loads((tmp_path / "results" / "resnet18.json").read_text()).values()
    assert [trial | {"seconds": 0} for trial in entry["runs"]] == [trial | {"seconds": 0} for trial in other["runs"]]


def test_missing_data_is_named_before_anything_is_trained(tmp_path, capsys):
    given = ["--data", str(tmp_path), "--out", str(tmp_path / "runs"), "--device", "cpu"]
    for name in PAPER_SIZE:
        assert run_paper_size.main([name, *given]) == 1
        error = capsys.readouterr().err
        assert f"there is no {tmp_path}" in error and "--data names the folder of all data" in error
    assert not (tmp_path / "runs").exists()


def test_data_of_another_kind_is_refused_before_anything_is_trained(tiny, tmp_path, capsys):
    labels = np.arange(10)
    images = {f"{part}_images": np.zeros((10, 32, 32, 3), np.uint8) for part in ("train", "test")}
    np.savez(tmp_path / "images" / "cifar100.npz", **images, train_labels=labels, test_labels=labels)
    assert tiny() == 1
    assert "10 labels; expected (n, 3, 32, 32) and 100" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.zeros(199, np.uint16), "shape .199,. and type uint16; expected one row of at least 256 token ids"),
        (np.zeros(400, np.int64), "type int64"),
        (np.full(400, 64, np.uint16), "has the token 64; the model has a vocabulary of 64"),
    ],
)
def test_tokens_of_another_kind_are_refused(tmp_path, tokens, message):
    llama.write_tiny(tmp_path)
    llama.check(tmp_path, llama.REHEARSAL)
    np.save(tmp_path / "train.npy", tokens)
    with pytest.raises(StudyError, match=message):
        llama.check(tmp_path, llama.REHEARSAL)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_machine_without_a_gpu_is_refused(capsys):
    assert run_paper_size.main(["resnet18"]) == 1
    assert "there is no CUDA device: --rehearse runs all code on a CPU" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [(["--only", "x"], "resnet18 has no study x; it has resnet18-cifar100"), (["--minutes", "0"], "must be positive")],
)
def test_wrong_options_are_refused(tiny, capsys, argv, message):
    assert tiny(*argv) == 1
    assert message in capsys.readouterr().err
