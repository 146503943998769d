"""Pruned models on disk: what from_pretrained loads, tensor by tensor, whole or not at all."""

import errno
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import tempbalance as tb
from tempbalance.errors import AllocationError, CheckpointError, NonFiniteError

transformers = pytest.importorskip("transformers")


@pytest.fixture
def folder(make_llama, tmp_path):
    """A Hugging Face folder in shards, with something beside the weights."""
    path = tmp_path / "model"
    make_llama().save_pretrained(path, max_shard_size="40KB")
    (path / "tokenizer.json").write_text("{}")
    assert len(list(path.glob("*.safetensors"))) > 2
    return path


def plan_for(source, sparsity=0.5, **options):
    return tb.allocate_sparsity(tb.analyze(source), sparsity, **options)


def all_tensors(folder):
    return {name: t for file in sorted(folder.glob("*.safetensors")) for name, t in load_file(file).items()}


def test_a_sharded_folder_is_pruned_as_the_live_model_is(folder, tmp_path):
    plan = plan_for(folder, 0.55, method="depth")
    assert tb.prune_checkpoint(folder, plan, tmp_path / "out") == dict(plan)
    live = transformers.LlamaForCausalLM.from_pretrained(folder)
    tb.prune(live, plan)
    loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out")
    for (name, a), b in zip(live.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    beside = {path.name for path in (tmp_path / "out").iterdir() if path.suffix != ".safetensors"}
    expected = {"config.json", "generation_config.json", "tokenizer.json"}
    assert beside == expected | {"model.safetensors.index.json", "allocation.json"}
    assert tb.Allocation.load(tmp_path / "out" / "allocation.json") == plan


def test_pickled_weights_become_safetensors(make_llama, tmp_path):
    model = make_llama()
    source = tmp_path / "model"
    model.config.architectures = ["LlamaForCausalLM"]
    model.config.save_pretrained(source)
    torch.save(model.state_dict(), source / "pytorch_model.bin")
    plan = plan_for(source)
    tb.prune_checkpoint(source, plan, tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"config.json", "model.safetensors", "allocation.json"}
    loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out")
    assert all(float((loaded.get_parameter(name) == 0).double().mean()) == plan[name] for name in plan)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_dtype_stays_as_it_is(dtype, tmp_path):
    generator = torch.Generator().manual_seed(0)
    tensors = {f"h.{i}.fc.weight": torch.randn(16, 12, generator=generator).to(dtype) for i in range(2)}
    others = {"ids": torch.arange(5), "flag": torch.tensor([True]), "scalar": torch.tensor(2.5), "none": torch.zeros(0)}
    save_file(tensors | others, tmp_path / "m.safetensors")
    plan = plan_for(tmp_path / "m.safetensors", 0.25, method="uniform")
    tb.prune_checkpoint(tmp_path / "m.safetensors", plan, tmp_path / "out")
    found = load_file(tmp_path / "out" / "m.safetensors")
    assert {name: (t.dtype, t.shape) for name, t in found.items()} == {
        name: (t.dtype, t.shape) for name, t in (tensors | others).items()
    }
    assert all(torch.equal(found[name], other) for name, other in others.items())
    assert all(int((found[name] == 0).sum()) == 48 for name in tensors)
    with safe_open(tmp_path / "out" / "m.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_fused_parts_on_disk(tmp_path):
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    plan = plan_for(tmp_path / "gpt2", 0.5, method="depth", unit="layer")
    assert any(name.endswith(":q") for name in plan)
    assert tb.prune_checkpoint(tmp_path / "gpt2", plan, tmp_path / "out") == dict(plan)


class TestWholeOrNotAtAll:
    def test_an_earlier_output_is_replaced(self, folder, tmp_path):
        for sparsity in (0.5, 0.25):
            tb.prune_checkpoint(folder, plan_for(folder, sparsity), tmp_path / "out")
        (tmp_path / "out" / "stale").touch()
        tb.prune_checkpoint(folder, plan_for(folder, 0.75), tmp_path / "out")
        assert tb.Allocation.load(tmp_path / "out" / "allocation.json").budget == 0.75
        assert not (tmp_path / "out" / "stale").exists()
        assert {path.name for path in tmp_path.iterdir()} == {"model", "out"}

    def test_a_full_disk_half_way_leaves_the_old_output(self, folder, tmp_path, monkeypatch):
        plan = plan_for(folder)
        tb.prune_checkpoint(folder, plan, tmp_path / "out")
        before = all_tensors(tmp_path / "out")
        written = []

        def full(path, *_):
            written.append(path)
            if len(written) > 1:
                raise OSError(errno.ENOSPC, "No space left on device")
            path.write_bytes(b"half")

        monkeypatch.setattr("tempbalance.compress.pruning.pruned_checkpoint.write_safetensors", full)
        with pytest.raises(CheckpointError, match="No space left on device; the old content is unchanged"):
            tb.prune_checkpoint(folder, plan_for(folder, 0.9), tmp_path / "out")
        after = all_tensors(tmp_path / "out")
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert {path.name for path in tmp_path.iterdir()} == {"model", "out"}

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
    def test_a_device_that_is_full(self, folder, tmp_path, monkeypatch):
        """The real error of a real write."""
        import tempbalance.compress.pruning.pruned_checkpoint as module

        write = module.write_safetensors
        monkeypatch.setattr(module, "write_safetensors", lambda _, *rest: write(Path("/dev/full"), *rest))
        with pytest.raises(CheckpointError, match="No space left"):
            tb.prune_checkpoint(folder, plan_for(folder), tmp_path / "out")
        assert {path.name for path in tmp_path.iterdir()} == {"model"}

    def test_a_folder_of_someone_else_is_left_alone(self, folder, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.tex").touch()
        with pytest.raises(CheckpointError, match=r"no allocation\.json"):
            tb.prune_checkpoint(folder, plan_for(folder), tmp_path / "out")
        with pytest.raises(CheckpointError, match=r"no allocation\.json"):
            tb.prune_checkpoint(folder, plan_for(folder), folder)  # the source itself

    def test_no_place_to_write_to(self, folder, tmp_path):
        with pytest.raises(CheckpointError, match="cannot write"):
            tb.prune_checkpoint(folder, plan_for(folder), tmp_path / "no" / "out")


class TestRefusals:
    def test_an_analysis_of_another_model(self, folder, make_llama, tmp_path):
        other = make_llama(hidden_size=64)
        with pytest.raises(AllocationError, match="another model"):
            tb.prune_checkpoint(folder, plan_for(other), tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_nan_on_disk(self, tmp_path):
        weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
        save_file({"a": weight}, tmp_path / "m.safetensors")
        plan = plan_for(tmp_path / "m.safetensors")
        weight[0, 0] = torch.nan
        save_file({"a": weight}, tmp_path / "m.safetensors")
        with pytest.raises(NonFiniteError, match="a: a score is NaN"):
            tb.prune_checkpoint(tmp_path / "m.safetensors", plan, tmp_path / "out")

    def test_n_of_m_needs_the_model(self, folder, tmp_path):
        with pytest.raises(AllocationError, match="load the model"):
            tb.prune_checkpoint(folder, plan_for(folder, group=8), tmp_path / "out")

    def test_a_model_that_is_not_of_hugging_face(self, trained, tmp_path):
        with pytest.raises(AllocationError, match="save_pretrained"):
            tb.save_pruned(trained, plan_for(trained), tmp_path / "out")


def test_a_live_model_is_saved_with_what_lay_beside_it(folder, tmp_path, tokens):
    model = tb.compress.load_causal_lm(folder)
    plan = plan_for(model)
    tb.prune(model, plan, "wanda", calibration=tokens)
    tb.save_pruned(model, plan, tmp_path / "out", folder)
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out")
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc/self/status")
def test_memory_of_one_tensor(tmp_path):
    """Forty tensors of 16 MB cost little more than four."""
    script = (
        "import re, sys, tempbalance as tb\n"
        "plan = tb.Allocation.load(sys.argv[1] + '/plan.json')\n"
        "tb.prune_checkpoint(sys.argv[1] + '/m', plan, sys.argv[1] + '/out', progress=False)\n"
        "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
    )
    # or glibc raises the threshold as it goes, and keeps some of the freed tensors
    steady = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20)}
    peaks = []
    for count in (4, 40):
        home = tmp_path / str(count)
        (home / "m").mkdir(parents=True)
        generator = torch.Generator().manual_seed(0)
        tensor = torch.randn(2048, 2048, generator=generator)
        for shard in range(2):
            half = {f"h.{i}.fc.weight": tensor.clone() for i in range(shard, count, 2)}
            save_file(half, home / "m" / f"model-{shard + 1:05}-of-00002.safetensors")
        names = [f"h.{i}.fc.weight" for i in range(count)]
        shares = tuple(tb.compress.LayerAllocation(name=n, unit=n, shape=(2048, 2048), zeros=2**21) for n in names)
        tb.Allocation(source="m", budget=0.5, method="uniform", unit="layer", layers=shares).save(home / "plan.json")
        command = [sys.executable, "-c", script, home]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=steady)
        peaks.append(int(done.stdout) / 1024)
        shutil.rmtree(home)
    assert peaks[1] - peaks[0] < 64, peaks  # MB; 36 tensors more are 576


def test_the_index_of_shards_adds_up(folder, tmp_path):
    tb.prune_checkpoint(folder, plan_for(folder), tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    held = all_tensors(tmp_path / "out")
    assert set(index["weight_map"]) == set(held)
    size = sum(math.prod(t.shape) * t.element_size() for t in held.values())
    assert index["metadata"]["total_size"] == size
