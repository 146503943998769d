"""Read and write one ``.safetensors`` file."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tempbalance.errors import CheckpointError, CorruptFileError
from tempbalance.layers import Index, TensorInfo

__all__ = ["SafetensorsShard", "write_safetensors"]

_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "C64": "complex64",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
_CODES = {getattr(torch, name): code for code, name in _DTYPES.items() if hasattr(torch, name)}
_ALIGNMENT = 8


class SafetensorsShard:
    """A ``.safetensors`` file; only its header is read until ``load`` is called."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._open() as file:
            slices = {name: file.get_slice(name) for name in sorted(file.keys(), key=_model_order)}
            self.tensors: Mapping[str, TensorInfo] = {name: _info(part) for name, part in slices.items()}

    def _open(self) -> Any:
        from safetensors import SafetensorError, safe_open

        try:
            return safe_open(str(self._path), framework="pt", device="cpu")
        except SafetensorError as error:
            raise CorruptFileError(
                f"{self._path}: not a readable safetensors file ({error}); it is truncated or has another format: "
                "download or copy it again"
            ) from error
        except OSError as error:
            raise CheckpointError(f"{self._path}: cannot be opened: {error}") from error

    def load(self, name: str, index: Index = ()) -> Tensor:
        """Read a tensor or a part of it, mapped from the file."""
        with self._open() as file:
            tensor: Tensor = file.get_slice(name)[index] if index else file.get_tensor(name)
            return tensor


def _model_order(name: str) -> list[tuple[int, int, str]]:
    """Return a sort key that puts ``layers.2`` before ``layers.10``: the format does not store the model's order."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


def _info(part: Any) -> TensorInfo:
    stored = part.get_dtype()
    dtype = getattr(torch, _DTYPES.get(stored, ""), None)
    if dtype is None:
        reason = f"stored as {stored}: quantised weights are not supported yet: load the unquantised checkpoint"
        return TensorInfo(tuple(part.get_shape()), torch.uint8, None, reason)
    return TensorInfo(tuple(part.get_shape()), dtype)


def write_safetensors(path: Path, tensors: dict[str, TensorInfo], load: Callable[[str], Tensor]) -> None:
    """Write a ``.safetensors`` file with one tensor in memory at a time, which ``safetensors`` does not offer."""
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
