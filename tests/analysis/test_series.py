import json

import pytest
import torch

import tempbalance as tb
from tempbalance.analysis.series import find_series
from tempbalance.errors import ArgumentError, CheckpointError, NotFoundError


def found(sources):
    return [(item.name, item.step) for item in find_series(sources)]


def test_checkpoints_of_the_trainer_are_in_the_order_of_their_steps(tmp_path):
    for step in (5, 100, 20):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    (tmp_path / "runs").mkdir()
    (tmp_path / "model.safetensors").touch()
    assert found(tmp_path) == [("checkpoint-5", 5), ("checkpoint-20", 20), ("checkpoint-100", 100)]
    assert found([tmp_path]) == found(str(tmp_path))


@pytest.mark.parametrize("sources", [["x" * 300], ["a.pt", "x" * 300], ["y" * 300 + ".ckpt"]])
def test_a_path_that_is_too_long_for_the_system_is_refused(sources):
    with pytest.raises(CheckpointError, match="cannot be opened: File name too long"):
        tb.track(sources)


def test_the_state_of_the_trainer_is_preferred_to_the_name(tmp_path):
    folder = tmp_path / "checkpoint-best"
    folder.mkdir()
    (folder / "trainer_state.json").write_text('{"global_step": 40}')
    assert found([folder, folder / ".." / "checkpoint-best" / "x.pt"])[0] == ("checkpoint-best", 40)


@pytest.mark.parametrize("state", ["{", "[]", '{"global_step": "x"}'])
def test_a_damaged_state_leaves_the_name(tmp_path, state):
    folder = tmp_path / "checkpoint-7"
    folder.mkdir()
    (folder / "trainer_state.json").write_text(state)
    assert found(tmp_path) == [("checkpoint-7", 7)]


def test_files_of_lightning_in_the_folder_of_a_run_without_the_copy_of_the_last(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name, step in (("epoch=0-step=9.ckpt", 9), ("epoch=1-step=18.ckpt", 18), ("last.ckpt", 18)):
        torch.save({"global_step": step, "state_dict": {"w.weight": torch.zeros(2, 2)}}, folder / name)
    assert found(tmp_path) == [("epoch=0-step=9.ckpt", 9), ("epoch=1-step=18.ckpt", 18)]
    (folder / "epoch=1-step=18.ckpt").unlink()
    assert found(tmp_path) == [("epoch=0-step=9.ckpt", 9), ("last.ckpt", 18)]


@pytest.mark.parametrize(
    ("names", "steps"),
    [
        (("model_step_10.pt", "model_step_9.pt"), [9, 10]),
        (("epoch_2.pth", "epoch_10.pth"), [2, 10]),
        (("iter_0000200.pt", "iter_0001000.pt"), [200, 1000]),
    ],
)
def test_numbered_files_in_a_folder(tmp_path, names, steps):
    for name in (*names, "rng_state_0.pth", "optimizer.pt", "model-00001-of-00002.safetensors"):
        (tmp_path / name).touch()
    assert [step for _, step in found(tmp_path)] == steps


def test_sources_without_steps_stay_in_their_order():
    assert found([{"a": torch.zeros(2, 2)}, torch.nn.Linear(2, 2)]) == [("model 1", None), ("model 2", None)]


def test_steps_of_revisions():
    assert found(["org/pythia-70m@step2000", "org/pythia-70m@step1000"]) == [
        ("org/pythia-70m@step1000", 1000),
        ("org/pythia-70m@step2000", 2000),
    ]
    assert found(["org/model-7b@main", "org/model-7b@step1"])[0] == ("org/model-7b@main", None)


def test_checkpoints_of_equal_names_get_that_of_their_folder(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.pt").touch()
    assert [name for name, _ in found([tmp_path / "a" / "model.pt", tmp_path / "b" / "model.pt"])] == [
        "a/model.pt",
        "b/model.pt",
    ]
    with pytest.raises(ArgumentError, match="give each once"):
        find_series([tmp_path / "a" / "model.pt"] * 2)


def test_a_folder_without_checkpoints_and_no_source_raise(tmp_path):
    with pytest.raises(NotFoundError, match="no checkpoints in it"):
        find_series(tmp_path)
    with pytest.raises(ArgumentError, match="no checkpoint to track"):
        find_series([])
