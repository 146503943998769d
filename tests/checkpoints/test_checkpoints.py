import json
import os
import pickle
import resource
import shutil
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import tempbalance as tb
from tempbalance.checkpoints import open_checkpoint
from tempbalance.errors import CheckpointError, CorruptFileError, MissingExtraError, NotFoundError, UnsafeFileError
from tempbalance.layers import find_weights

TENSORS = {f"layers.{i}.weight": torch.full((4, 3), float(i)) for i in range(12)}


def sharded(folder, tensors=TENSORS, save=save_file, suffix="safetensors", stem="model"):
    """A folder of three shards and their index."""
    index = {}
    for number in range(3):
        name = f"{stem}-{number + 1:05}-of-00003.{suffix}"
        part = dict(list(tensors.items())[number::3])
        save(part, folder / name)
        index |= dict.fromkeys(part, name)
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


def write_safetensors(path):
    save_file(TENSORS, path / "model.safetensors")
    return path / "model.safetensors"


def write_folder(path):
    return write_safetensors(path).parent


def write_shards(path):
    return sharded(path)


def write_shards_without_index(path):
    (sharded(path) / "model.safetensors.index.json").unlink()
    return path


def write_state_dict(path):
    torch.save(TENSORS, path / "model.pt")
    return path / "model.pt"


def write_nested(path):
    torch.save({"epoch": 3, "state_dict": TENSORS, "optimizer": {"lr": 0.1}}, path / "last.ckpt")
    return path / "last.ckpt"


def write_legacy(path):
    torch.save(TENSORS, path / "old.pth", _use_new_zipfile_serialization=False)
    return path / "old.pth"


def write_bin_folder(path):
    torch.save(TENSORS, path / "pytorch_model.bin")
    return path


def write_bin_shards(path):
    return sharded(path, save=torch.save, suffix="bin", stem="pytorch_model")


SOURCES = [
    write_safetensors,
    write_folder,
    write_shards,
    write_shards_without_index,
    write_state_dict,
    write_nested,
    write_legacy,
    write_bin_folder,
    write_bin_shards,
]


@pytest.mark.parametrize("write", SOURCES)
class TestEveryFormat:
    def test_every_tensor_is_listed_and_read(self, write, tmp_path):
        with open_checkpoint(write(tmp_path)) as checkpoint:
            assert set(checkpoint.tensors) == set(TENSORS)
            assert all(torch.equal(checkpoint.load(name), tensor) for name, tensor in TENSORS.items())

    def test_a_slice_of_a_tensor_is_read(self, write, tmp_path):
        with open_checkpoint(write(tmp_path)) as checkpoint:
            assert checkpoint.load("layers.7.weight", (slice(1, 3),)).tolist() == [[7.0] * 3] * 2

    def test_analyze_reads_every_layer_of_a_checkpoint(self, write, tmp_path):
        assert len(tb.analyze(write(tmp_path)).layers) == 12


def test_a_shard_that_is_opened_alone_is_said_to_be_one(tmp_path, caplog):
    folder = sharded(tmp_path)
    assert len(open_checkpoint(folder / "model-00003-of-00003.safetensors").tensors) == 4
    assert "model-00003-of-00003.safetensors: only this shard of a model is read; open its folder" in caplog.text
    caplog.clear()
    open_checkpoint(folder)
    assert caplog.text == ""


def test_safetensors_are_listed_in_model_order(tmp_path):
    with open_checkpoint(write_safetensors(tmp_path)) as checkpoint:
        assert list(checkpoint.tensors) == list(TENSORS)  # not layers.1, layers.10, layers.11, layers.2


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.complex64])
def test_tensors_keep_their_stored_dtype(tmp_path, dtype):
    save_file({"fc.weight": torch.ones(4, 3).to(dtype)}, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.tensors["fc.weight"].dtype == checkpoint.load("fc.weight").dtype == dtype


def test_convolutions_of_mlx_are_read_as_pytorch_stores_them(tmp_path):
    shapes = {"one.weight": (24, 20, 3), "two.weight": (6, 5, 3, 4), "three.weight": (6, 5, 2, 3, 4)}
    expected = {name: torch.randn(shape) for name, shape in shapes.items()}
    others = {"mlp.experts.up.weight": torch.randn(4, 12, 16), "pos_embed": torch.randn(1, 9, 8)}
    stored = {name: tensor.movedim(1, -1).contiguous() for name, tensor in expected.items()} | others
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "mlx"})
    with open_checkpoint(tmp_path) as checkpoint:
        for name, tensor in {**expected, **others}.items():
            assert torch.equal(checkpoint.load(name), tensor)
            assert torch.equal(checkpoint.load(name, (1 % len(tensor), slice(2, 4))), tensor[1 % len(tensor), 2:4])
        rows = {row.name: (row.kind, row.shape) for row in find_weights(checkpoint)[0]}
    assert [rows[name] for name in shapes] == [(f"conv{n}d", shape) for n, shape in enumerate(shapes.values(), 1)]


def test_safetensors_are_preferred_to_pickles(tmp_path):
    write_safetensors(tmp_path)
    torch.save({"other.weight": torch.zeros(3, 3)}, tmp_path / "pytorch_model.bin")
    assert set(open_checkpoint(tmp_path).tensors) == set(TENSORS)


def test_files_have_path_and_size(tmp_path):
    path = write_safetensors(tmp_path)
    (file,) = open_checkpoint(path).files
    assert (file.path, file.size) == (path, path.stat().st_size)


def test_load_from_a_closed_checkpoint_raises(tmp_path):
    with open_checkpoint(write_safetensors(tmp_path)) as checkpoint:
        pass
    with pytest.raises(CheckpointError, match="closed"):
        checkpoint.load("layers.0.weight")


def test_load_of_an_unknown_tensor_suggests_names(tmp_path):
    with open_checkpoint(write_safetensors(tmp_path)) as checkpoint, pytest.raises(NotFoundError, match=r"layers\.1\."):
        checkpoint.load("layers.1.weigth")


def test_three_pretrained_models_have_their_known_number_of_layers(minilm_analysis, data_file):
    assert len(minilm_analysis.layers) == 37
    assert len(tb.analyze(data_file("weights/stories260k")).layers) == 35
    assert len(tb.analyze(data_file("weights/resnet20_cifar10.safetensors")).layers) == 20


def test_layers_of_minilm_are_in_model_order(minilm_analysis):
    first = [row.name for row in minilm_analysis.layers][:4]
    assert [name.removeprefix("encoder.layer.0.attention.") for name in first] == [
        "self.query.weight",
        "self.key.weight",
        "self.value.weight",
        "output.dense.weight",
    ]


class TestMissingAndBroken:
    def test_a_missing_path_suggests_a_close_name(self, tmp_path):
        write_safetensors(tmp_path)
        with pytest.raises(NotFoundError, match=r"did you mean .*model\.safetensors"):
            open_checkpoint(tmp_path / "modle.safetensors")

    def test_a_missing_path_raises_a_file_not_found_error(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            tb.analyze(tmp_path / "nowhere")

    def test_an_empty_folder_raises_and_lists_the_formats(self, tmp_path):
        with pytest.raises(CheckpointError, match="it is empty; supported are"):
            open_checkpoint(tmp_path)

    def test_a_folder_of_checkpoints_raises_and_names_them(self, tmp_path):
        (tmp_path / "checkpoint-500").mkdir()
        write_safetensors(tmp_path / "checkpoint-500")
        with pytest.raises(CheckpointError, match="checkpoint-500 have weights: open one"):
            open_checkpoint(tmp_path)

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("model.onnx", b"\x08\x07\x12\x07", "ONNX"),
            ("model.h5", b"\x89HDF\r\n\x1a\n", "HDF5"),
            ("model.pt.zst", b"", "a Zstandard archive, which cannot be analysed: unpack it"),
            ("model.pt", b"\x1f\x8b\x08\0", "a gzip archive"),
            ("ggml-base.en.bin", b"lmgg", "a GGML file"),
            ("saved_model.pb", b"\x08\x01", "a TensorFlow checkpoint"),
            ("weights.pkl", pickle.dumps({"a": 1}, 2), r"a pickle \(of a dict\) that torch.save did not write"),
            ("notes.txt", b"hello", "not a checkpoint; supported are"),
        ],
    )
    def test_other_formats_are_refused_by_name(self, tmp_path, name, content, message):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(tmp_path / name)

    def test_a_folder_of_another_format_is_refused_by_name(self, tmp_path):
        (tmp_path / "config.json").write_text("{}")
        (tmp_path / "tf_model.h5").touch()
        with pytest.raises(CheckpointError, match=r"tf_model\.h5 is an HDF5 .*: convert it to safetensors first"):
            open_checkpoint(tmp_path)

    @pytest.mark.parametrize("kept", [0, 5, 100, 1000])
    def test_a_truncated_safetensors_file_raises(self, tmp_path, kept):
        path = write_safetensors(tmp_path)
        path.write_bytes(path.read_bytes()[:kept])
        with pytest.raises(CorruptFileError, match=r"model\.safetensors"):
            open_checkpoint(path)

    def test_a_truncated_state_dict_raises(self, tmp_path):
        path = write_state_dict(tmp_path)
        path.write_bytes(path.read_bytes()[:-200])
        with pytest.raises(CorruptFileError, match=r"model\.pt"):
            open_checkpoint(path)

    def test_an_index_with_a_missing_shard_raises(self, tmp_path):
        sharded(tmp_path)
        (tmp_path / "model-00002-of-00003.safetensors").unlink()
        with pytest.raises(CorruptFileError, match="1 of 3 shards are missing: model-00002-of-00003"):
            open_checkpoint(tmp_path)

    @pytest.mark.parametrize("name", ["x" * 300 + ".safetensors", "a\0b", "..", "."])
    def test_an_index_with_an_impossible_name_raises(self, name, tmp_path):
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(CorruptFileError, match=r"index\.json"):
            open_checkpoint(tmp_path)

    @pytest.mark.parametrize("text", ['{"a": ' + "9" * 5000 + "}", "[" * 10**6, " " * (101 << 20)], ids=len)
    @pytest.mark.parametrize("file", ["config.json", "model.safetensors.index.json", "adapter_config.json"])
    def test_json_that_is_too_long_or_too_deep_raises(self, file, text, tmp_path):
        save_file(TENSORS, tmp_path / ("adapter_model.safetensors" if "adapter" in file else "model.safetensors"))
        (tmp_path / file).write_text(text)
        with pytest.raises(CorruptFileError, match=file):
            open_checkpoint(tmp_path)

    def test_a_number_of_any_length_in_a_name_is_no_error(self, tmp_path):
        names = [f"a.{digits}.weight" for digits in ("2", "10", "1\u00b2", "\u0663", "9" * 5000)]
        save_file({name: torch.ones(4, 3) for name in names}, tmp_path / "model.safetensors")
        assert list(open_checkpoint(tmp_path).tensors)[:2] == ["a.1\u00b2.weight", "a.2.weight"]

    def test_a_missing_shard_without_an_index_raises(self, tmp_path):
        write_shards_without_index(tmp_path)
        (tmp_path / "model-00002-of-00003.safetensors").unlink()
        with pytest.raises(CorruptFileError, match="model-00002-of-00003"):
            open_checkpoint(tmp_path)

    def test_a_shard_without_a_tensor_of_the_index_raises(self, tmp_path):
        sharded(tmp_path)
        save_file({"layers.0.weight": torch.zeros(2, 2)}, tmp_path / "model-00001-of-00003.safetensors")
        with pytest.raises(CorruptFileError, match=r"3 tensor\(s\) of the index are not in their shards"):
            open_checkpoint(tmp_path)

    def test_an_index_that_names_a_file_outside_its_folder_raises(self, tmp_path):
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../b.safetensors"}}))
        with pytest.raises(CorruptFileError, match="outside"):
            open_checkpoint(tmp_path)

    @pytest.mark.parametrize("text", ["{", "[]", "{}", "[" * 10**5, '{"a": ' + "1" * 5000 + "}"], ids=len)
    def test_an_unreadable_index_raises(self, tmp_path, text):
        (tmp_path / "model.safetensors.index.json").write_text(text)
        with pytest.raises(CorruptFileError, match=r"index\.json"):
            open_checkpoint(tmp_path)

    def test_only_the_tensors_of_a_shard_that_becomes_unreadable_are_skipped(self, tmp_path, monkeypatch):
        path = sharded(tmp_path)
        checkpoint = open_checkpoint(path)
        broken = path / "model-00003-of-00003.safetensors"
        broken.write_bytes(broken.read_bytes()[:50])
        analysis = tb.analyze(checkpoint)
        assert len(analysis.layers) == 8
        assert all("truncated" in reason for _, reason in analysis.skipped)

    @pytest.mark.skipif(getattr(os, "geteuid", int)() == 0, reason="root may read everything")
    def test_a_file_without_read_permission_raises(self, tmp_path):
        path = write_safetensors(tmp_path)
        path.chmod(0)
        with pytest.raises(CheckpointError, match="cannot be opened"):
            open_checkpoint(path)


@pytest.mark.parametrize(("save", "file"), [(save_file, "model.safetensors"), (torch.save, "model.pt")])
def test_listing_and_reading_take_time_linear_in_the_number_of_tensors(save, file, tmp_path):
    times = []
    for count in (500, 4000):
        save({f"layers.{i}.weight": torch.ones(2, 3) for i in range(count)}, tmp_path / file)
        start = time.process_time()
        weights, _ = find_weights(checkpoint := open_checkpoint(tmp_path / file))
        assert len([weight.load() for weight in weights]) == len(checkpoint.tensors) == count
        times.append(time.process_time() - start)
    assert times[1] < 4 * 8 * times[0]  # 8 times is linear, 64 times quadratic


class Malicious:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


class TestUnsafeFiles:
    @pytest.mark.parametrize("name", ["model.pt", "pytorch_model.bin"])
    def test_a_pickle_with_code_is_refused_and_not_executed(self, tmp_path, name):
        torch.save({"weight": torch.zeros(2, 2), "x": Malicious(tmp_path / "pwned")}, tmp_path / name)
        with pytest.raises(UnsafeFileError, match="nothing was executed"):
            tb.analyze(tmp_path / name)
        assert not (tmp_path / "pwned").exists()

    def test_a_pickle_that_torch_did_not_write_is_not_executed(self, tmp_path):
        (tmp_path / "model.bin").write_bytes(pickle.dumps(Malicious(tmp_path / "pwned")))
        with pytest.raises(CheckpointError):
            open_checkpoint(tmp_path / "model.bin")
        assert not (tmp_path / "pwned").exists()

    def test_a_pickled_module_is_refused_with_advice(self, tmp_path):
        torch.save(nn.Linear(3, 3), tmp_path / "model.pt")
        with pytest.raises(UnsafeFileError, match=r"state_dict\(\)"):
            open_checkpoint(tmp_path / "model.pt")

    def test_a_torch_file_without_a_state_dict_raises(self, tmp_path):
        torch.save({"epoch": 3}, tmp_path / "model.pt")
        with pytest.raises(CheckpointError, match="no state dict"):
            open_checkpoint(tmp_path / "model.pt")


class TestPipeline:
    """Folders of diffusers, whose components are folders."""

    @pytest.fixture
    def pipeline(self, tmp_path):
        index = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.36.0"}
        index |= {"unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}
        index |= {"scheduler": ["diffusers", "DDIMScheduler"], "safety_checker": [None, None]}
        (tmp_path / "model_index.json").write_text(json.dumps(index))
        for name in ("unet", "vae", "scheduler"):
            (tmp_path / name).mkdir()
        for file in ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"):
            save_file({"up.0.weight": torch.ones(3, 2)}, tmp_path / "unet" / file)
        save_file({"up.0.weight": torch.zeros(4, 2)}, tmp_path / "vae" / "diffusion_pytorch_model.safetensors")
        return tmp_path

    def test_all_components_are_one_checkpoint(self, pipeline):
        with open_checkpoint(pipeline) as checkpoint:
            assert {name: info.shape for name, info in checkpoint.tensors.items()} == {
                "unet.up.0.weight": (3, 2),
                "vae.up.0.weight": (4, 2),
            }
            assert torch.equal(checkpoint.load("unet.up.0.weight"), torch.ones(3, 2))
            assert [info.path.parent.name for info in checkpoint.files] == ["unet", "vae"]

    def test_one_component_is_a_checkpoint_of_its_own(self, pipeline):
        assert set(open_checkpoint(pipeline / "unet").tensors) == {"up.0.weight"}

    def test_a_component_that_is_not_there_is_named(self, pipeline, caplog):
        shutil.rmtree(pipeline / "vae")
        assert set(open_checkpoint(pipeline).tensors) == {"unet.up.0.weight"}
        assert "components of model_index.json are not there: vae" in caplog.text


class TestHub:
    def test_a_hub_id_is_opened_from_the_cache(self, tmp_path, monkeypatch):
        constants = pytest.importorskip("huggingface_hub.constants")
        commit = "0" * 40
        folder = tmp_path / "models--someone--something"
        (folder / "snapshots" / commit).mkdir(parents=True)
        (folder / "refs").mkdir()
        for name in ("main", "step1000"):
            (folder / "refs" / name).write_text(commit)
        write_safetensors(folder / "snapshots" / commit)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert set(open_checkpoint("someone/something").tensors) == set(TENSORS)
        assert open_checkpoint("someone/something@step1000").revision == commit
        with pytest.raises(NotFoundError, match="someone/something"):
            open_checkpoint("someone/something@step2000")
        with pytest.raises(CheckpointError, match="has a revision, and another is given"):
            open_checkpoint("someone/something@step1000", revision="main")

    def test_a_folder_or_file_of_a_repository_is_opened_from_the_cache(self, tmp_path, monkeypatch):
        constants = pytest.importorskip("huggingface_hub.constants")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        folder = tmp_path / "models--someone--something"
        snapshot = folder / "snapshots" / ("0" * 40)
        (snapshot / "inner").mkdir(parents=True)
        (folder / "refs").mkdir()
        for name in ("main", "v1"):
            (folder / "refs" / name).write_text("0" * 40)
        write_safetensors(snapshot / "inner")
        for source in ("someone/something/inner", "someone/something/inner/model.safetensors@v1"):
            assert set(open_checkpoint(source).tensors) == set(TENSORS)
        with pytest.raises(CheckpointError, match="no folder other"):
            open_checkpoint("someone/something/other")
        with pytest.raises(CheckpointError, match=r"no file inner/model\.gguf"):
            open_checkpoint("someone/something/inner/model.gguf")

    def test_a_pipeline_is_downloaded_with_its_components_and_without_variants(self, tmp_path, monkeypatch):
        hub = pytest.importorskip("huggingface_hub")
        files = ["model_index.json", "unet/config.json", "vae/config.json", "card.safetensors.png"]
        files += [
            f"{part}/diffusion_pytorch_model{variant}.safetensors"
            for part in ("unet", "vae")
            for variant in ("", ".fp16")
        ]
        for file in [*files, "unet/deep/other.safetensors"]:
            (tmp_path / "remote" / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "remote" / file).write_text("{}")
        index = {part: ["diffusers", "Model"] for part in ("unet", "vae")}
        (tmp_path / "remote" / "model_index.json").write_text(json.dumps(index))
        for part in ("unet", "vae"):
            save_file(
                {"fc.weight": torch.ones(3, 2)}, tmp_path / "remote" / part / "diffusion_pytorch_model.safetensors"
            )

        def download(repo_id, *, revision, allow_patterns, ignore_patterns):
            source = tmp_path / "remote"
            names = [str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()]
            for name in hub.utils.filter_repo_objects(
                names, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
            ):
                (tmp_path / "local" / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source / name, tmp_path / "local" / name)
            return tmp_path / "local"

        monkeypatch.setattr(hub, "snapshot_download", download)
        assert set(open_checkpoint("someone/pipeline").tensors) == {"unet.fc.weight", "vae.fc.weight"}
        downloaded = {str(path.relative_to(tmp_path / "local")) for path in (tmp_path / "local").rglob("*.safetensors")}
        assert downloaded == {f"{part}/diffusion_pytorch_model.safetensors" for part in ("unet", "vae")}

    def test_all_parts_of_a_gguf_file_are_downloaded(self, tmp_path, monkeypatch):
        hub = pytest.importorskip("huggingface_hub")
        asked = []
        monkeypatch.setattr(hub, "snapshot_download", lambda *_, **options: asked.append(options) or tmp_path)
        with pytest.raises(CheckpointError, match="has no file"):
            open_checkpoint("someone/model/Q8/model-00001-of-00003.gguf")
        assert asked[0]["allow_patterns"] == ["Q8/model-*-of-00003.gguf"]

    def test_an_unknown_hub_id_raises(self, monkeypatch):
        monkeypatch.setattr(pytest.importorskip("huggingface_hub.constants"), "HF_HUB_OFFLINE", True)
        with pytest.raises(NotFoundError, match="nobody-here/nothing"):
            open_checkpoint("nobody-here/nothing")

    def test_a_failed_download_without_a_text_is_named_by_its_error(self, monkeypatch):
        hub = pytest.importorskip("huggingface_hub")

        def fail(*_, **options):
            raise TimeoutError

        monkeypatch.setattr(hub, "snapshot_download", fail)
        with pytest.raises(NotFoundError, match=r"provide it: TimeoutError\. Check the id and the connection"):
            open_checkpoint("someone/something")

    def test_a_hub_id_without_huggingface_hub_names_the_extra(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
        with pytest.raises(MissingExtraError, match=r"tempbalance\[hub\]"):
            open_checkpoint("someone/something")

    def test_a_revision_of_a_path_raises(self, tmp_path):
        with pytest.raises(CheckpointError, match="requires a hub id"):
            open_checkpoint(write_safetensors(tmp_path), revision="main")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(("file", "save"), [("model.safetensors", save_file), ("pytorch_model.bin", torch.save)])
def test_memory_of_tensors_is_freed_after_reading(file, save, tmp_path):
    size = 4 << 20
    save({f"layers.{i}.weight": torch.ones(size // 256, 64) for i in range(24)}, tmp_path / file)

    def resident():
        with open("/proc/self/statm") as status:
            return int(status.read().split()[1]) * resource.getpagesize()

    with open_checkpoint(tmp_path) as checkpoint:
        checkpoint.load("layers.0.weight").sum()
        before = resident()
        for name in checkpoint.tensors:
            checkpoint.load(name).sum()
    assert resident() - before < 4 * size  # of 24


def test_a_file_and_the_same_tensors_in_memory_have_equal_alphas(minilm, tmp_path):
    tensors = load_file(minilm / "model.safetensors")
    shutil.copy(minilm / "model.safetensors", tmp_path / "weights.safetensors")  # no configuration beside it
    select = "encoder.layer.3.*"
    stored, memory = (tb.analyze(source, select=select) for source in (tmp_path / "weights.safetensors", tensors))
    assert {row.name: row.alpha for row in stored.layers} == {row.name: row.alpha for row in memory.layers}


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt", "model.safetensors.index.json"])
def test_a_pipe_or_a_device_is_refused_and_not_waited_for(name, tmp_path):
    for place, make in (("a", os.mkfifo), ("b", lambda path: path.symlink_to("/dev/zero"))):
        (tmp_path / place).mkdir()
        make(tmp_path / place / name)
        with pytest.raises(CheckpointError):
            open_checkpoint(tmp_path / place)
        with pytest.raises(CheckpointError, match=r"not a regular file|not a checkpoint"):
            open_checkpoint(tmp_path / place / name)
