"""Files of training scripts: values beside the weights, averages, keys, and archives of other kinds."""

import argparse
import collections
import logging
import pathlib
import sys
import types
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


@pytest.mark.parametrize(
    "name", ["omegaconf.listconfig.ListConfig", "lightning_fabric.utilities.data.AttributeDict", "easydict.EasyDict"]
)
def test_settings_of_a_configuration_library_are_read_without_it(name, tmp_path, monkeypatch):
    module, _, title = name.rpartition(".")
    kind = type(title, (dict,), {"__module__": module})
    for count in range(1, 1 + len(module.split("."))):
        monkeypatch.setitem(sys.modules, ".".join(module.split(".")[:count]), types.ModuleType(module))
    monkeypatch.setattr(sys.modules[module], title, kind, raising=False)
    path = save(tmp_path, state_dict=MODEL, hyper_parameters={"steps": kind(sizes=[40, 30])})
    monkeypatch.undo()
    assert [row.name for row in tb.analyze(path).layers] == ["0.weight", "2.weight"]


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


BASE = torch.arange(24.0)
SAVED = {
    "float32": BASE.view(6, 4),
    "a parameter": nn.Parameter(BASE.view(6, 4)),
    "a transposed one": BASE.view(6, 4).T,
    "a part": BASE.view(6, 4)[1:4, 1:3],
    "bfloat16": BASE.view(6, 4).bfloat16(),
    "float8": BASE.view(6, 4).to(torch.float8_e4m3fn),
    "complex": torch.complex(BASE, -BASE).view(6, 4),
    "a conjugate": torch.complex(BASE, -BASE).view(6, 4).conj(),
    "a negative view": torch.complex(BASE, -BASE).view(6, 4).conj().imag,
    "uint16": BASE.view(6, 4).to(torch.uint16),
    "bool": BASE.view(6, 4) > 5,
    "empty": torch.empty(0, 4),
    "a number": torch.tensor(3.0),
}


@pytest.mark.parametrize("kind", SAVED)
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_tensor_is_what_torch_loads(kind, protocol, tmp_path):
    torch.save({"w": SAVED[kind]}, tmp_path / "model.pt", pickle_protocol=protocol)
    found = tb.open_checkpoint(tmp_path / "model.pt").load("w")
    expected = torch.load(tmp_path / "model.pt", weights_only=False)["w"].detach()
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert torch.equal(found.to(torch.complex128), expected.to(torch.complex128))


@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (torch.Tensor.to_sparse, "sparse"),
        (torch.Tensor.to_sparse_csr, "sparse"),
        (lambda weight: weight.to("meta"), "no data"),
        (lambda weight: torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8), "quantised"),
    ],
    ids=["COO", "CSR", "meta", "quantised"],
)
def test_a_tensor_without_plain_numbers_is_skipped_with_its_reason(change, reason, tmp_path):
    weight = torch.randn(64, 48)
    torch.save({"bad.weight": change(weight), "good.weight": weight}, tmp_path / "model.pt")
    analysis = tb.analyze(tmp_path / "model.pt")
    assert [row.name for row in analysis.layers] == ["good.weight"]
    assert [(s.name, reason in s.reason) for s in analysis.skipped] == [("bad.weight", True)]


def test_names_may_be_numbers(tmp_path):
    torch.save({0: torch.randn(64, 48), 1: torch.randn(64, 48)}, tmp_path / "model.pt")
    assert sorted(tb.open_checkpoint(tmp_path / "model.pt").tensors) == ["0", "1"]
    assert len(tb.analyze(tmp_path / "model.pt").layers) == 2


def test_views_of_the_format_before_1_6_are_read(tmp_path):
    views = {"a": BASE.view(6, 4), "b": BASE.view(6, 4)[2:4], "c": BASE.view(4, 6).T}
    torch.save(views, tmp_path / "model.pt", _use_new_zipfile_serialization=False)
    with tb.open_checkpoint(tmp_path / "model.pt") as checkpoint:
        assert all(torch.equal(checkpoint.load(name), view) for name, view in views.items())


@pytest.mark.parametrize("zip_format", [True, False])
def test_a_file_of_the_other_byte_order_is_read(zip_format, tmp_path, monkeypatch):
    swapped = BASE.clone()
    swapped.untyped_storage().byteswap(torch.float32)
    monkeypatch.setattr("sys.byteorder", "big")
    torch.save({"w": swapped.view(6, 4)}, tmp_path / "model.pt", _use_new_zipfile_serialization=zip_format)
    monkeypatch.undo()
    assert torch.equal(tb.open_checkpoint(tmp_path / "model.pt").load("w"), BASE.view(6, 4))


def test_the_pickle_is_read_once(tmp_path, monkeypatch):
    torch.save({f"{i}.weight": torch.randn(16, 12) for i in range(20)}, tmp_path / "model.pt")
    calls = []
    original = tb.checkpoints.torch_file.read_torch_pickle
    monkeypatch.setattr(tb.checkpoints.torch_file, "read_torch_pickle", lambda *a: calls.append(a) or original(*a))
    assert len(tb.analyze(tmp_path / "model.pt").layers) == 20
    assert len(calls) == 1
