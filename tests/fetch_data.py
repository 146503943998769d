"""Fetch the public data of some tests into tests/data/; every file is checked against its SHA-256 (``make data``).

Each file comes from the repository of its authors, at a fixed commit. Weights are converted to safetensors files.
Licences: powerlaw, AlphaPruning, neuraloperator and tinyllamas MIT; pytorch_resnet_cifar10 BSD-2; distiller Apache-2.0;
FARMS has none. That is why they are fetched, and not stored in this repository.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import struct
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save

DATA = Path(__file__).parent / "data"
GITHUB = "https://raw.githubusercontent.com"
POWERLAW = f"{GITHUB}/jeffalstott/powerlaw/d2b563a7a08bad96b4085fa69f351e9d9a20b1e7/powerlaw/reference_data"
ALPHAPRUNING = f"{GITHUB}/haiquanlu/AlphaPruning/5f0e9845549ec8ee6dc395f1410566f26cc9e54e/data"
FARMS = f"{GITHUB}/HUST-AI-HYZ/FARMS/8e07c3fb0da6bb5f82ba932396fd284918aa565f/LLM_Pruning/metric_cache"
NEURALOPERATOR = f"{GITHUB}/neuraloperator/neuraloperator/93d3f0633e048c915004cd782cb339acf06e1157"
RESNETS = f"{GITHUB}/akamaster/pytorch_resnet_cifar10/d5489e8995e81e91ce6b1d69dcc98ad579b0b153/pretrained_models"
DISTILLER = f"{GITHUB}/IntelLabs/distiller/d859fc85a3c9c3048442a4ccd9b98ac45f1e0dc4/examples/ssl/checkpoints"
TINYLLAMAS = "https://huggingface.co/karpathy/tinyllamas/resolve/main/stories260K"

STORIES = "weights/stories260k"
STORIES_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "dtype": "float32",
    "hidden_size": 64,
    "intermediate_size": 172,
    "num_hidden_layers": 5,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "vocab_size": 512,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def of_state_dict(content: bytes) -> bytes:
    """Return the state dict of a training checkpoint as a safetensors file, without the names of DataParallel."""
    state = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")["state_dict"]
    return save({name.removeprefix("module."): tensor.contiguous() for name, tensor in state.items()})


def of_llama2c(content: bytes) -> bytes:
    """Return a model of llama2.c (seven integers, then float32 weights by kind) with the names of Transformers."""
    width, inner, layers, heads, kv_heads, words, _ = struct.unpack("<7i", content[:28])
    values, tensors, position = torch.frombuffer(bytearray(content[28:]), dtype=torch.float32), {}, 0
    kv_width = width // heads * kv_heads
    kinds = [
        ("input_layernorm", (width,), 0),
        ("self_attn.q_proj", (width, width), heads),
        ("self_attn.k_proj", (kv_width, width), kv_heads),
        ("self_attn.v_proj", (kv_width, width), 0),
        ("self_attn.o_proj", (width, width), 0),
        ("post_attention_layernorm", (width,), 0),
        ("mlp.gate_proj", (inner, width), 0),
        ("mlp.down_proj", (width, inner), 0),
        ("mlp.up_proj", (inner, width), 0),
    ]
    plan = [("embed_tokens", (words, width), 0)]
    plan += [(f"layers.{i}.{kind}", shape, pairs) for kind, shape, pairs in kinds for i in range(layers)]
    for name, shape, rotated_heads in [*plan, ("norm", (width,), 0)]:
        size = int(np.prod(shape))
        tensor, position = values[position : position + size].view(shape), position + size
        if rotated_heads:  # llama2.c has the two halves of each rotated pair side by side
            tensor = tensor.view(rotated_heads, -1, 2, shape[1]).transpose(1, 2).reshape(shape)
        tensors[f"model.{name}.weight"] = tensor.contiguous()
    return save(tensors, {"format": "pt"})


class File(NamedTuple):
    """Where a file comes from, what it must be, and how it is converted first."""

    url: str
    sha256: str
    convert: Callable[[bytes], bytes] = bytes


FILES: Mapping[str, File] = {
    "powerlaw/blackouts.txt": File(
        f"{POWERLAW}/blackouts.txt",
        "8187543b5700a75974661dd8349e172a83ce2d0972e79a81a7fcc06eafb96728",
    ),
    "powerlaw/terrorism.txt": File(
        f"{POWERLAW}/terrorism.txt",
        "4c80c4dd91427c90e0da63db110a1326bf109e330598b6d40bebf5e95e492f80",
    ),
    "powerlaw/words.txt": File(
        f"{POWERLAW}/words.txt",
        "cef3521f0f1d817df43cf35ef1f717e6f72d71f549646a51ba04acdc45a9b160",
    ),
    "published_alphas/llama-7b-hf_peak.npy": File(
        f"{ALPHAPRUNING}/llama-7b-hf/alpha_peak.npy",
        "09cecc799eac4e3f03ff943288f750e9524b475714650cdf60d4a68c7961232c",
    ),
    "published_alphas/llama2-7b-hf_peak.npy": File(
        f"{ALPHAPRUNING}/llama2-7b-hf/alpha_peak.npy",
        "0ad19205faec97a857ea6dcb7283516e4808547b9c946d93fa56780c829e8020",
    ),
    "published_alphas/llama-13b-hf_peak.npy": File(
        f"{ALPHAPRUNING}/llama-13b-hf/alpha_peak.npy",
        "da1c5c55309fc31e04486ce3635d9682792a59c7052fde3f606550be03aa3f65",
    ),
    "published_alphas/llama2-13b-hf_peak.npy": File(
        f"{ALPHAPRUNING}/llama2-13b-hf/alpha_peak.npy",
        "33b6caa4b06501ba797daf76f73f0d64ed1ec5646755236477098d2a2a0731b5",
    ),
    "published_alphas/llama-30b-hf_peak.npy": File(
        f"{ALPHAPRUNING}/llama-30b-hf/alpha_peak.npy",
        "c144069de2e88b03ef2884a36b30ab3130d64a443dff36404d9538e5b9fb169f",
    ),
    "published_alphas/llama2-70b-hf_peak.npy": File(
        f"{ALPHAPRUNING}/llama2-70b-hf/alpha_peak.npy",
        "1708796d95fa8780970ad5ddb53d3cc461c274f0cfa927b81a4c0d173530a92d",
    ),
    "published_alphas/llama-7b-hf_peak_farms_10x10.npy": File(
        f"{FARMS}/llama-7b-hf/alpha_peak_tbv3/usesldTrue_numrow2000_Q1.0_step10_ops10.npy",
        "001b7c751237300bf1b91317ac408011d8313dde9dbb3d87900413ed0b2c97fa",
    ),
    "published_alphas/llama-7b-hf_peak_farms_15x15.npy": File(
        f"{FARMS}/llama-7b-hf/alpha_peak_tbv3/usesldTrue_numrow2000_Q1.0_step15_ops15.npy",
        "053f87fdb0385a6d928b49bb068a949d6fe97e30c3a0e74538041245072f980d",
    ),
    "pde/burgers_test_16.pt": File(
        f"{NEURALOPERATOR}/neuralop/data/datasets/data/burgers_test_16.pt",
        "70bb1591e31b254e74ac6097a5520de299da38115cb3f814e8d0f6f19057d201",
    ),
    "pde/burgers_train_16.pt": File(
        f"{NEURALOPERATOR}/neuralop/data/datasets/data/burgers_train_16.pt",
        "d12335adc0d96357a893dc39d72957fa89fda852b00902d94da95aa06af23fa0",
    ),
    "pde/darcy_test_16.pt": File(
        f"{NEURALOPERATOR}/neuralop/data/datasets/data/darcy_test_16.pt",
        "d2b19af9d4a6ae04ba2de54b8ecccc8b89766472faf6ce7f506c0b2a60f69a4c",
    ),
    "pde/darcy_test_32.pt": File(
        f"{NEURALOPERATOR}/neuralop/data/datasets/data/darcy_test_32.pt",
        "bcbd10622373e94df84a17fcdb72ac4317d76e024c2499d21fd1fd34d0742cfd",
    ),
    "pde/darcy_train_16.pt": File(
        f"{NEURALOPERATOR}/neuralop/data/datasets/data/darcy_train_16.pt",
        "0be662acdb1dab7dfd1a1da0b140e97f75cc94f98a14edcf768abe6968b3b418",
    ),
    "weights/resnet20_cifar10.safetensors": File(
        f"{RESNETS}/resnet20-12fca82f.th",
        "02926273efb1deadb6dc654c7087baea932ef2026d9f854680d6858146d85838",
        of_state_dict,
    ),
    "weights/distiller/checkpoint_trained_dense.safetensors": File(
        f"{DISTILLER}/checkpoint_trained_dense.pth.tar",
        "46bc39f1249a74281238c62833887dad89696cc436576e389be3106139d3087c",
        of_state_dict,
    ),
    "weights/distiller/checkpoint_trained_4D_regularized_5Lremoved_finetuned.safetensors": File(
        f"{DISTILLER}/checkpoint_trained_4D_regularized_5Lremoved_finetuned.pth.tar",
        "ec4b09703555c96a8ca13a302477ffff53f53a6cbe28c7bc70470a089d3add6d",
        of_state_dict,
    ),
    "weights/stories260k/model.safetensors": File(
        f"{TINYLLAMAS}/stories260K.bin",
        "407a7c581bdd66972383ce9ad24857713fb98786d06ea564a2fe9b34ebe77dfd",
        of_llama2c,
    ),
}


def fetch(folder: Path, read: Callable[[str], bytes]) -> list[str]:
    """Write the files that are missing or damaged, and return their names; refuse content with another SHA-256."""
    written = []
    for name, file in FILES.items():
        path = folder / name
        if path.is_file() and sha256(path.read_bytes()) == file.sha256:
            continue
        content = file.convert(read(file.url))
        if sha256(content) != file.sha256:
            raise SystemExit(f"{name}: the SHA-256 is {sha256(content)}, expected {file.sha256}; from {file.url}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        written.append(name)
    (folder / STORIES / "config.json").write_text(json.dumps(STORIES_CONFIG, indent=2), "utf-8")
    return written


def sample_stories(folder: Path, count: int = 600, length: int = 256) -> None:
    """Write texts sampled from the story model, each up to its end, as ``sampled_tokens.npz`` beside it."""
    from transformers import LlamaForCausalLM

    if (folder / "sampled_tokens.npz").exists():
        return
    torch.manual_seed(0)
    model = LlamaForCausalLM.from_pretrained(folder)
    begin = torch.ones(count, 1, dtype=torch.long)  # token 1 begins a story, and also ends one
    texts = model.generate(
        begin, do_sample=True, max_new_tokens=length - 1, eos_token_id=None, attention_mask=begin, pad_token_id=1
    ).tolist()
    stories = [text[: text.index(1, 1)] if 1 in text[1:] else text for text in texts]
    offsets = np.cumsum([0, *map(len, stories)])
    np.savez(folder / "sampled_tokens.npz", tokens=np.concatenate(stories).astype(np.uint16), offsets=offsets)


def sha256(content: bytes) -> str:
    """Return the SHA-256 in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def download(url: str) -> bytes:
    """Return the content of a URL."""
    with urllib.request.urlopen(url, timeout=60) as response:
        return bytes(response.read())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=DATA)
    folder = parser.parse_args().folder
    for name in fetch(folder, download):
        print(f"fetched {name}")
    sample_stories(folder / STORIES)
    print(f"{len(FILES)} files in {folder} have their SHA-256")
