"""Files of training scripts: values beside the weights, averages, keys, and archives of other kinds."""

import argparse
import collections
import logging
import pathlib
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

import tempbalance as tb
from tempbalance.errors import CheckpointError, UnsafeFileError

NET = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
MODEL = NET.state_dict()
AVERAGE = {name: 2 * tensor for name, tensor in MODEL.items()}


def save(tmp_path, **values):
    path = tmp_path / "last.ckpt"
    torch.save({"epoch": 3, **values}, path)
    return path


@pytest.mark.parametrize(
    "value",
    [
        torch.tensor(0.5),
        torch.rand(64, 64),
        np.float64(0.5),
        np.int64(3),
        np.bool_(True),
        np.str_("best"),
        np.random.default_rng(0).random(3),
        ("MT19937", np.zeros(624, dtype=np.uint32), 0),
        argparse.Namespace(lr=np.float32(0.1), out=pathlib.PurePosixPath("runs/1"), device=torch.device("cpu")),
        collections.defaultdict(list, losses=[0.5]),
        collections.defaultdict(float),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_model_is_read_beside_any_value_of_a_training_script(value, tmp_path):
    analysis = tb.analyze(save(tmp_path, model_state_dict=MODEL, value=value))
    assert [row.name for row in analysis.layers] == ["0.weight", "2.weight"]


def test_a_default_dict_can_be_the_checkpoint_itself(tmp_path):
    torch.save(collections.defaultdict(list, model=MODEL, losses=[0.5]), tmp_path / "model.pt")
    assert len(tb.analyze(tmp_path / "model.pt").layers) == 2


def test_reading_leaves_the_safe_types_of_torch_as_they_were(tmp_path):
    before = sorted(map(str, torch.serialization.get_safe_globals()))
    tb.analyze(save(tmp_path, model=MODEL))
    assert sorted(map(str, torch.serialization.get_safe_globals())) == before


def test_other_objects_are_refused_by_name(tmp_path):
    with pytest.raises(UnsafeFileError, match=r"collections\.deque.*nothing was executed"):
        tb.analyze(save(tmp_path, model=MODEL, window=collections.deque([1])))


def test_the_average_is_named_once_and_chosen_with_a_key(tmp_path, caplog):
    path = save(tmp_path, model=MODEL, ema=AVERAGE)
    with caplog.at_level(logging.WARNING):
        trained = tb.analyze(path)
    assert [record.message for record in caplog.records if "'ema'" in record.message] == [caplog.messages[0]]
    averaged = tb.analyze(path, key="ema")
    assert averaged.layers[0].lambda_max == pytest.approx(4 * trained.layers[0].lambda_max)
    assert averaged.settings["key"] == "ema"
    with tb.open_checkpoint(path, key="ema") as checkpoint:
        assert tb.analyze(checkpoint).layers[0].lambda_max == averaged.layers[0].lambda_max


def test_the_same_dictionary_in_memory_has_the_same_rows(tmp_path):
    saved = {"model": MODEL, "loss": torch.tensor(0.5)}
    rows = [
        [(row.name, row.lambda_max) for row in tb.analyze(source).layers]
        for source in (saved, save(tmp_path, **saved), NET)
    ]
    assert rows[0] == rows[1] == rows[2]


def test_the_chosen_state_dict_is_pruned(tmp_path):
    path = save(tmp_path, model=MODEL, ema=AVERAGE)
    result = tb.compress.prune_folder(path, tmp_path / "out", 0.5, key="ema", progress=False)
    assert result.zeros == 64 * 64
    written = tb.open_checkpoint(tmp_path / "out")
    assert set(written.tensors) == set(MODEL)
    kept = written.load("0.weight")
    assert torch.equal(kept[kept != 0], AVERAGE["0.weight"][kept != 0])


@pytest.mark.parametrize("key", ["emma", "epoch"])
def test_an_unknown_key_raises_with_the_known_ones(key, tmp_path):
    with pytest.raises(CheckpointError, match=r"last\.ckpt: no tensors under the key .*ema, model"):
        tb.analyze(save(tmp_path, model=MODEL, ema=AVERAGE), key=key)


def test_a_key_of_something_that_has_no_keys_raises(tmp_path):
    for source in (NET, tb.open_checkpoint(save(tmp_path, model=MODEL))):
        with pytest.raises(CheckpointError, match="requires a path or a dictionary"):
            tb.analyze(source, key="model")


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
class TestArchives:
    def test_a_torchscript_archive_is_refused_and_its_module_is_analysed(self, tmp_path):
        script = torch.jit.script(NET)
        script.save(tmp_path / "script.pt")
        with pytest.raises(UnsafeFileError, match=r"torch\.jit\.load"):
            tb.analyze(tmp_path / "script.pt")
        expected = [(row.name, row.alpha, row.kind) for row in tb.analyze(NET).layers]
        for module in (script, torch.jit.load(tmp_path / "script.pt")):
            found = [(row.name, row.alpha, row.kind) for row in tb.analyze(module).layers]
            assert repr(found) == repr(expected)

    def test_an_exported_program_is_refused_and_its_state_dict_is_analysed(self, tmp_path):
        program = torch.export.export(NET, (torch.zeros(2, 64),))
        torch.export.save(program, tmp_path / "net.pt2")
        with pytest.raises(CheckpointError, match=r"torch\.export\.load"):
            tb.analyze(tmp_path / "net.pt2")
        assert [row.name for row in tb.analyze(program.state_dict).layers] == ["0.weight", "2.weight"]

    @pytest.mark.parametrize(("member", "message"), [("policy.pth", "Stable-Baselines3"), ("a.pt", "of checkpoints")])
    def test_a_zip_archive_of_checkpoints_is_refused_with_advice(self, member, message, tmp_path):
        with zipfile.ZipFile(tmp_path / "agent.zip", "w") as archive:
            archive.writestr("data", "{}")
            archive.writestr(member, b"")
        with pytest.raises(CheckpointError, match=message):
            tb.analyze(tmp_path / "agent.zip")
