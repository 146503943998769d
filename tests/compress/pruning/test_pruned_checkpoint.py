"""Pruned models on disk: what from_pretrained loads, in the memory of one tensor, written atomically."""

import dataclasses
import errno
import json
import math
import os
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
    """A Hugging Face folder in shards, with a tokenizer file."""
    path = tmp_path / "model"
    make_llama().save_pretrained(path, max_shard_size="40KB")
    (path / "tokenizer.json").write_text("{}")
    assert len(list(path.glob("*.safetensors"))) > 2
    return path


def allocation_for(source, sparsity=0.5, **options):
    return tb.allocate_sparsity(tb.analyze(source), sparsity, **{"method": "alpha", **options})


def all_tensors(folder):
    return {name: t for file in sorted(folder.glob("*.safetensors")) for name, t in load_file(file).items()}


def test_a_folder_is_not_pruned_by_magnitude_for_another_criterion_in_silence(folder, tmp_path, caplog):
    allocation = dataclasses.replace(allocation_for(folder), criterion="wanda")
    tb.compress.prune_checkpoint(folder, allocation, tmp_path / "pruned", progress=False)
    assert "the allocation was measured for wanda" in caplog.text


def test_a_sharded_folder_is_pruned_like_the_live_model(folder, tmp_path):
    allocation = allocation_for(folder, 0.55, method="depth")
    assert tb.prune_checkpoint(folder, allocation, tmp_path / "out") == dict(allocation)
    live = transformers.LlamaForCausalLM.from_pretrained(folder)
    tb.prune(live, allocation)
    loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out")
    for (name, a), b in zip(live.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    beside = {path.name for path in (tmp_path / "out").iterdir() if path.suffix != ".safetensors"}
    expected = {"config.json", "generation_config.json", "tokenizer.json"}
    assert beside == expected | {"model.safetensors.index.json", "allocation.json"}
    assert tb.Allocation.load(tmp_path / "out" / "allocation.json") == allocation


def test_pickled_weights_are_written_as_safetensors(make_llama, tmp_path):
    model = make_llama()
    source = tmp_path / "model"
    model.config.architectures = ["LlamaForCausalLM"]
    model.config.save_pretrained(source)
    torch.save(model.state_dict(), source / "pytorch_model.bin")
    allocation = allocation_for(source)
    tb.prune_checkpoint(source, allocation, tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"config.json", "model.safetensors", "allocation.json"}
    loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out")
    assert all(float((loaded.get_parameter(name) == 0).double().mean()) == allocation[name] for name in allocation)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_pruning_a_file_keeps_every_dtype_and_all_other_tensors(dtype, tmp_path):
    generator = torch.Generator().manual_seed(0)
    tensors = {f"h.{i}.fc.weight": torch.randn(16, 12, generator=generator).to(dtype) for i in range(2)}
    others = {"ids": torch.arange(5), "flag": torch.tensor([True]), "scalar": torch.tensor(2.5), "none": torch.zeros(0)}
    save_file(tensors | others, tmp_path / "m.safetensors")
    allocation = allocation_for(tmp_path / "m.safetensors", 0.25, method="uniform")
    tb.prune_checkpoint(tmp_path / "m.safetensors", allocation, tmp_path / "out")
    found = load_file(tmp_path / "out" / "m.safetensors")
    assert {name: (t.dtype, t.shape) for name, t in found.items()} == {
        name: (t.dtype, t.shape) for name, t in (tensors | others).items()
    }
    assert all(torch.equal(found[name], other) for name, other in others.items())
    assert all(int((found[name] == 0).sum()) == 48 for name in tensors)
    with safe_open(tmp_path / "out" / "m.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_parts_of_fused_weights_are_pruned_on_disk(tmp_path):
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    allocation = allocation_for(tmp_path / "gpt2", 0.5, method="depth", unit="layer")
    assert any(name.endswith(":q") for name in allocation)
    assert tb.prune_checkpoint(tmp_path / "gpt2", allocation, tmp_path / "out") == dict(allocation)


class TestAtomicOutput:
    def test_an_earlier_output_is_replaced(self, folder, tmp_path):
        for sparsity in (0.5, 0.25):
            tb.prune_checkpoint(folder, allocation_for(folder, sparsity), tmp_path / "out")
        (tmp_path / "out" / "stale").touch()
        tb.prune_checkpoint(folder, allocation_for(folder, 0.75), tmp_path / "out")
        assert tb.Allocation.load(tmp_path / "out" / "allocation.json").budget == 0.75
        assert not (tmp_path / "out" / "stale").exists()
        assert {path.name for path in tmp_path.iterdir()} == {"model", "out"}

    def test_a_failure_after_the_first_file_keeps_the_old_output(self, folder, tmp_path, monkeypatch):
        tb.prune_checkpoint(folder, allocation_for(folder), tmp_path / "out")
        before = all_tensors(tmp_path / "out")
        checkpoint = tb.open_checkpoint(folder)
        load, last = checkpoint.load, list(checkpoint.shards.values())[-1]

        def fail(name):
            if name in last:
                raise OSError(errno.EIO, "Input/output error")
            return load(name)

        monkeypatch.setattr(checkpoint, "load", fail)
        with pytest.raises(CheckpointError, match="Input/output error; an earlier output is unchanged"):
            tb.prune_checkpoint(checkpoint, allocation_for(folder, 0.9), tmp_path / "out")
        after = all_tensors(tmp_path / "out")
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert {path.name for path in tmp_path.iterdir()} == {"model", "out"}

    def test_a_write_that_the_system_refuses_leaves_no_folder(self, folder, tmp_path):
        resource = pytest.importorskip("resource", reason="needs a POSIX system, to limit the size of files")
        allocation, limits = allocation_for(folder), resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**12, limits[1]))  # smaller than one tensor
        try:
            with pytest.raises(CheckpointError, match="File too large"):
                tb.prune_checkpoint(folder, allocation, tmp_path / "out")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert {path.name for path in tmp_path.iterdir()} == {"model"}

    def test_a_folder_that_is_not_an_earlier_output_is_refused(self, folder, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.tex").touch()
        with pytest.raises(CheckpointError, match=r"no allocation\.json"):
            tb.prune_checkpoint(folder, allocation_for(folder), tmp_path / "out")
        with pytest.raises(CheckpointError, match=r"no allocation\.json"):
            tb.prune_checkpoint(folder, allocation_for(folder), folder)  # the source itself

    def test_an_output_in_a_missing_folder_is_refused(self, folder, tmp_path):
        with pytest.raises(CheckpointError, match="cannot write"):
            tb.prune_checkpoint(folder, allocation_for(folder), tmp_path / "no" / "out")


class TestRefusals:
    def test_prune_checkpoint_refuses_an_allocation_for_another_model(self, folder, make_llama, tmp_path):
        other = make_llama(hidden_size=64)
        with pytest.raises(AllocationError, match="another model"):
            tb.prune_checkpoint(folder, allocation_for(other), tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_prune_checkpoint_names_a_weight_with_nan(self, tmp_path):
        weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
        save_file({"a": weight}, tmp_path / "m.safetensors")
        allocation = allocation_for(tmp_path / "m.safetensors")
        weight[0, 0] = torch.nan
        save_file({"a": weight}, tmp_path / "m.safetensors")
        with pytest.raises(NonFiniteError, match="a: a score is NaN"):
            tb.prune_checkpoint(tmp_path / "m.safetensors", allocation, tmp_path / "out")

    def test_prune_checkpoint_refuses_n_of_m_sparsity(self, folder, tmp_path):
        with pytest.raises(AllocationError, match="load the model"):
            tb.prune_checkpoint(folder, allocation_for(folder, group=8), tmp_path / "out")

    def test_save_pruned_refuses_a_model_without_save_pretrained(self, trained, tmp_path):
        with pytest.raises(AllocationError, match="save_pretrained"):
            tb.save_pruned(trained, allocation_for(trained), tmp_path / "out")


def test_a_pruned_live_model_is_saved_with_its_tokenizer(folder, tmp_path, tokens):
    model = tb.compress.load_causal_lm(folder)
    allocation = allocation_for(model)
    tb.prune(model, allocation, "wanda", calibration=tokens)
    tb.save_pruned(model, allocation, tmp_path / "out", folder)
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out")
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))


def test_the_index_of_shards_has_all_tensors_and_the_total_size(folder, tmp_path):
    tb.prune_checkpoint(folder, allocation_for(folder), tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    held = all_tensors(tmp_path / "out")
    assert set(index["weight_map"]) == set(held)
    size = sum(math.prod(t.shape) * t.element_size() for t in held.values())
    assert index["metadata"]["total_size"] == size


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc/self/status")
def test_forty_tensors_need_little_more_memory_than_four(tmp_path):
    """Each tensor has 1 MB, so 36 more of them would add 36 MB."""
    script = (
        "import re, sys, tempbalance as tb\n"
        "for count in (4, 40):\n"
        "    home = f'{sys.argv[1]}/{count}'\n"
        "    allocation = tb.Allocation.load(f'{home}/allocation.json')\n"
        "    tb.prune_checkpoint(f'{home}/m', allocation, f'{home}/out', progress=False)\n"
        "    print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
    )
    tensor = torch.randn(512, 512, generator=torch.Generator().manual_seed(0))
    for count in (4, 40):
        home = tmp_path / str(count)
        (home / "m").mkdir(parents=True)
        names = [f"h.{i}.fc.weight" for i in range(count)]
        for shard in range(2):
            half = {name: tensor.clone() for name in names[shard::2]}
            save_file(half, home / "m" / f"model-{shard + 1:05}-of-00002.safetensors")
        layers = tuple(tb.compress.LayerAllocation(name=n, unit=n, shape=(512, 512), zeros=2**17) for n in names)
        allocation = tb.Allocation(source="m", budget=0.5, method="uniform", unit="layer", layers=layers)
        allocation.save(home / "allocation.json")
    # else glibc raises the threshold as it goes, and keeps some of the freed tensors
    steady = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**17)}
    command = [sys.executable, "-c", script, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=steady)
    four, forty = (int(line) / 1024 for line in done.stdout.split())
    assert forty - four < 9, (four, forty)  # MB


LLAMA = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 100, "pad_token_id": 0,
}  # fmt: skip
# How a model is stored, and its class.
RENAMED = {
    "experts one by one": ("Mixtral", LLAMA | {"num_local_experts": 4}),
    "experts in a stack": ("GraniteMoe", LLAMA | {"num_local_experts": 4}),
    "parts of one tensor": ("Persimmon", LLAMA),
    "renamed": ("GPTNeoX", {key: value for key, value in LLAMA.items() if key != "num_key_value_heads"}),
}


class TestNamesOnDisk:
    """Models whose experts or fused weights Transformers stores under other names: the tensors on disk are pruned."""

    @pytest.fixture(params=RENAMED)
    def model(self, request):
        torch.manual_seed(0)
        name, settings = RENAMED[request.param]
        config = getattr(transformers, f"{name}Config")(**settings)
        return getattr(transformers, f"{name}ForCausalLM")(config).eval()

    @pytest.mark.parametrize("split", [True, False])
    def test_the_loaded_model_is_the_live_model_pruned(self, model, tmp_path, split):
        model.save_pretrained(tmp_path / "model", max_shard_size="40KB")
        analysis = tb.analyze(tmp_path / "model", select=tb.Select(split=split))
        allocation = tb.allocate_sparsity(analysis, 0.6, method="uniform")
        achieved = tb.prune_checkpoint(tmp_path / "model", allocation, tmp_path / "out")
        loaded = type(model).from_pretrained(tmp_path / "out")
        assert tb.prune(model, allocation) == achieved
        for (name, a), b in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
            assert torch.equal(a, b), name

    def test_a_computed_weight_is_refused_before_anything_is_written(self, tmp_path):
        layer = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(64, 64))
        save_file(layer.state_dict(), tmp_path / "model.safetensors")
        allocation = allocation_for(tmp_path / "model.safetensors")
        with pytest.raises(AllocationError, match="weight is computed from other tensors"):
            tb.prune_checkpoint(tmp_path / "model.safetensors", allocation, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_a_transposed_tensor_of_a_pickle_is_pruned_where_its_entries_are(self, tmp_path):
        weight = torch.arange(1.0, 4097.0).view(64, 64).T
        torch.save({"a.weight": weight}, tmp_path / "model.pt")
        tb.prune_checkpoint(tmp_path / "model.pt", allocation_for(tmp_path / "model.pt"), tmp_path / "out")
        pruned = load_file(tmp_path / "out" / "model.safetensors")["a.weight"]
        assert torch.equal(pruned, weight.where(weight > 2048, torch.zeros(())))

    @pytest.mark.parametrize("experts", [4, 16])
    def test_a_stack_that_is_stored_in_parts_is_read_in_parts(self, tmp_path, monkeypatch, experts):
        config = transformers.MixtralConfig(**LLAMA | {"num_local_experts": experts, "num_hidden_layers": 1})
        transformers.MixtralForCausalLM(config).save_pretrained(tmp_path / "model")
        allocation = allocation_for(tmp_path / "model")
        read, load = [], tb.Checkpoint.load
        monkeypatch.setattr(tb.Checkpoint, "load", lambda *a: read.append(a[1]) or load(*a))
        tb.prune_checkpoint(tmp_path / "model", allocation, tmp_path / "out")
        assert len(read) <= 2 * len(set(read))


def test_invalid_generation_settings_are_kept_as_they_are(folder, tmp_path, tokens):
    """Those of Vicuna: Transformers refuses to save a temperature without sampling."""
    settings = folder / "generation_config.json"
    settings.write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 2, "temperature": 0.9, "top_p": 0.6}))
    model = tb.compress.load_causal_lm(folder)
    own = model.generation_config
    tb.save_pruned(model, allocation_for(model), tmp_path / "out", folder)
    assert (tmp_path / "out" / "generation_config.json").read_text() == settings.read_text()
    assert model.generation_config is own


def test_a_tied_tensor_is_pruned_under_all_of_its_names(tmp_path):
    generator = torch.Generator().manual_seed(0)
    tied, other = (torch.randn(32, 32, generator=generator) for _ in range(2))
    torch.save({"h.0.a.weight": tied, "h.0.b.weight": tied, "h.1.a.weight": other}, tmp_path / "model.pt")
    achieved = tb.prune_checkpoint(tmp_path / "model.pt", allocation_for(tmp_path / "model.pt"), tmp_path / "out")
    assert "h.0.b.weight" not in achieved
    pruned = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(pruned["h.0.a.weight"], pruned["h.0.b.weight"])
    assert int((pruned["h.0.a.weight"] == 0).sum()) == round(achieved["h.0.a.weight"] * 32 * 32) > 0
