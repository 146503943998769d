"""Write checkpoints tensor by tensor."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from tempbalance.checkpoints.safetensors_file import DTYPES
from tempbalance.checkpoints.torch_file import TORCH_SUFFIXES
from tempbalance.errors import CheckpointError
from tempbalance.layers import TensorInfo

__all__ = ["copy_non_weights", "write_safetensors"]

_CODES = {getattr(torch, name): code for code, name in DTYPES.items() if hasattr(torch, name)}
_ALIGNMENT = 8
_WEIGHTS = (".safetensors", *TORCH_SUFFIXES, ".h5", ".msgpack", ".onnx", ".gguf", ".index.json")


def write_safetensors(path: Path, tensors: dict[str, TensorInfo], load: Callable[[str], Tensor]) -> None:
    """Write a ``.safetensors`` file with one tensor in memory at a time, which ``safetensors`` itself does not offer.

    Args:
        path: The file.
        tensors: Shapes and dtypes by name.
        load: Returns a tensor by name; called once for each, in the order of the file.

    Raises:
        CheckpointError: A tensor has a dtype that the format does not have.
    """
    for name, info in tensors.items():
        if info.reason is not None or info.dtype not in _CODES:
            raise CheckpointError(f"{name} cannot be copied: {info.reason or info.dtype}")
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    place = 0
    ordered = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)  # keeps every tensor aligned
    for name in ordered:
        info = tensors[name]
        size = math.prod(info.shape) * info.dtype.itemsize
        header[name] = {"dtype": _CODES[info.dtype], "shape": list(info.shape), "data_offsets": [place, place + size]}
        place += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in ordered:
            tensor = load(name).detach().contiguous()
            if tensor.numel():
                file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)


def copy_non_weights(source: Path, folder: Path) -> None:
    """Copy the files of a model that are not weights: configuration, tokenizer, licence.

    Args:
        source: Folder of the model.
        folder: Target folder; files that exist there stay.
    """
    for entry in sorted(source.iterdir()):
        if entry.is_file() and not entry.name.lower().endswith(_WEIGHTS) and not (folder / entry.name).exists():
            shutil.copyfile(entry, folder / entry.name)
