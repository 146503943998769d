"""Small valid files of every kind that tempbalance reads, made once per process."""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import tempbalance as tb
from tempbalance.analysis.resume import ResumeFile

TOKENS = torch.arange(40) % 24


def tiny_state() -> dict[str, torch.Tensor]:
    """Return the state dict of three layers, of which two have the same shape."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "layers.0.fc.weight": (16, 12),
        "layers.1.fc.weight": (16, 12),
        "head.weight": (14, 12),
        "head.bias": (14,),
    }
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@functools.cache
def tiny_analysis() -> tb.Analysis:
    """Return the analysis of three layers with a tail."""
    spectra = {f"h.{i}.fc.weight": tb.testing.pareto_quantiles(24, 2.0 + i) for i in range(3)}
    weights = {name: tb.testing.matrix_with_spectrum(each, (24, 24), seed=0) for name, each in spectra.items()}
    return tb.analyze(weights | {"h.0.bad.weight": torch.full((4, 4), torch.nan)}, progress=False)


def make_llama() -> Any:
    """Return a small LLaMA."""
    import transformers

    torch.manual_seed(0)
    sizes = {"vocab_size": 24, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, num_attention_heads=2)).eval()


def train(seed: int, method: Any, lr: float = 0.1) -> dict[str, float]:
    """Train a network, for a study."""
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    method.balance(torch.optim.SGD(model.parameters(), lr=lr), model, steps_per_epoch=10)
    metric = float(seed % 3) + lr + len(method.name) / 10
    return {"test": metric, "validation": metric}


class Corpus:
    """Valid files of every kind in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir()
        for name, make in MAKERS.items():
            make(folder / name)

    def copy(self, name: str, place: Path) -> Path:
        """Copy a file or folder to a place where it may be changed."""
        source, target = self._folder / name, place / name
        if os.path.lexists(target):
            return target
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            shutil.copyfile(source, target)
        return target


def _legacy(path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": tiny_state()}, path, _use_new_zipfile_serialization=False)


def _llama(path: Path) -> None:
    """Write a model folder of two shards with a tokenizer."""
    import tokenizers
    import transformers

    make_llama().save_pretrained(path, max_shard_size="8KB")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"w{i}": i for i in range(24)}, unk_token="w0"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0").save_pretrained(path)


def _adapter(path: Path) -> None:
    path.mkdir()
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    generator = torch.Generator().manual_seed(0)
    shapes = {f"{name}.lora_A.weight": (4, 16), f"{name}.lora_B.weight": (16, 4)}
    save_file(
        {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()},
        path / "adapter_model.safetensors",
    )
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "use_rslora": False}
    settings |= {"rank_pattern": {"x_proj": 2}, "alpha_pattern": {}, "fan_in_fan_out": False, "use_dora": False}
    settings |= {"base_model_name_or_path": "nowhere", "exclude_modules": None, "bias": "none", "modules_to_save": None}
    (path / "adapter_config.json").write_text(json.dumps(settings))


def interrupted(source: Path, partial: Path) -> None:
    """Write the resume file of an analysis that is killed before its end."""
    with ResumeFile(partial) as resume:
        tb.analyze(source, resume=resume, progress=False)
        content = partial.read_bytes()
    partial.write_bytes(content)


def _study(path: Path) -> None:
    tb.study.run(train, ["model_balancing_sciml"], path, seeds=3, lr=(0.1, 0.2), tuning_seeds=1, progress=False)


def _npz(path: Path) -> None:
    np.savez(path, tokens=TOKENS.numpy().astype(np.uint16), offsets=np.array([0, 10, 40]))


def _quantised(path: Path) -> None:
    folder = Path(__file__).parents[1] / "layers" / "dequantise" / "files"
    tensors = {}
    for number, file in enumerate(sorted(folder.glob("*/model.safetensors"))):
        tensors |= {name.replace("layers.0", f"layers.{number}"): tensor for name, tensor in load_file(file).items()}
    save_file(tensors, path)


def _gguf(path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    for name, label in (("attn_q", "Q8_0"), ("ffn_up", "Q4_0"), ("ffn_down", "F16")):
        matrix = np.random.default_rng(0).standard_normal((24, 32)).astype(np.float32)
        kind = gguf.GGMLQuantizationType[label]
        writer.add_tensor(f"blk.0.{name}.weight", gguf.quantize(matrix, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


MAKERS: dict[str, Callable[[Path], object]] = {
    "model.pt": lambda path: torch.save(tiny_state(), path),
    "legacy.pt": _legacy,
    "model.safetensors": lambda path: save_file(tiny_state(), path),
    "quantised.safetensors": _quantised,
    "model.gguf": _gguf,
    "llama": _llama,
    "adapter": _adapter,
    "analysis.json": lambda path: tiny_analysis().save(path),
    "sparsity.json": lambda path: tb.allocate_sparsity(tiny_analysis(), 0.5).save(path),
    "bits.json": lambda path: tb.allocate_bits(tiny_analysis(), 3).save(path),
    "rank.json": lambda path: tb.allocate_ranks(tiny_analysis(), 4).save(path),
    "study": _study,
    "tokens.npz": _npz,
    "tokens.npy": lambda path: np.save(path, TOKENS.numpy()),
    "text.txt": lambda path: path.write_text(" ".join(f"w{i}" for i in TOKENS.tolist())),
    "text.json": lambda path: path.write_text(json.dumps(["w1 w2", {"text": "w3 w4 w5"}])),
    "text.jsonl": lambda path: path.write_text('{"text": "w1 w2 w3"}\n"w4"\n'),
}
