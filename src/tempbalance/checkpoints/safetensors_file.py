"""Read and write one ``.safetensors`` file."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from tempbalance.checkpoints.stored_file import Place, StoredFile, contiguous_stride
from tempbalance.errors import CheckpointError, CorruptFileError
from tempbalance.layers import Index, TensorInfo

__all__ = ["SafetensorsShard", "write_safetensors"]

_DTYPES = {  # names in torch, which may lack some
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F4": "float4_e2m1fn_x2",
    "F8_E4M3": "float8_e4m3fn", "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz", "F8_E8M0": "float8_e8m0fnu", "C64": "complex64",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
_CODES = {getattr(torch, name): code for code, name in _DTYPES.items() if hasattr(torch, name) and code != "F4"}
_ALIGNMENT = 8
_KERNEL, _CONV1D = 16, 3  # an axis of a 3-D weight up to this long is a Conv1d kernel; its number of axes


class _Entry(msgspec.Struct):
    """A tensor in the header of a file."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


class _ComfyMetadata(msgspec.Struct):
    """Metadata of a file that ComfyUI reads."""

    layers: dict[str, msgspec.Raw] = {}


class SafetensorsShard:
    """A ``.safetensors`` file; only its header is read until ``load`` is called."""

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, StoredFile(path)
        start, entries, metadata = self._header()
        is_mlx = metadata.get("format") == "mlx"
        self._places: dict[str, Place] = {}
        self.tensors: Mapping[str, TensorInfo] = {}
        for name in sorted(entries, key=_model_order):
            entry = entries[name]
            dtype = getattr(torch, _DTYPES.get(entry.dtype, ""), None)
            if dtype is None:
                reason = f"stored as {entry.dtype}, which this version of torch lacks: load the unquantised checkpoint"
                self.tensors[name] = TensorInfo(entry.shape, torch.uint8, None, reason)
                continue
            shape = entry.shape
            if entry.dtype == "F4" and shape:  # the dtype of torch is a pair of them
                shape = (*shape[:-1], shape[-1] // 2)
            stride = contiguous_stride(shape)
            if is_mlx and dtype.is_floating_point and _is_convolution(name, shape):  # (out, kernel, in)
                shape, stride = (shape[0], shape[-1], *shape[1:-1]), (stride[0], stride[-1], *stride[1:-1])
            self._places[name] = Place(start + entry.data_offsets[0], dtype, shape, stride)
            self.tensors[name] = TensorInfo(shape, dtype)
        self._descriptions: dict[str, Tensor] = {}  # ComfyUI stores them as tensors, or in the metadata
        for layer, description in _layers_of_comfy(metadata.get("_quantization_metadata", "{}")).items():
            name = f"{layer}.comfy_quant"
            if name not in self.tensors and f"{layer}.weight" in self.tensors:  # it may be in another shard
                self._descriptions[name] = torch.tensor(list(bytes(description)), dtype=torch.uint8)
                self.tensors[name] = TensorInfo((len(bytes(description)),), torch.uint8)

    def _header(self) -> tuple[int, dict[str, _Entry], dict[str, str]]:
        """Return the position of the first number, the tensors, and the metadata; ``safetensors`` checks them."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(self._path), framework="pt", device="cpu"), self._path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = msgspec.json.decode(file.read(length), type=dict[str, msgspec.Raw])
            metadata = msgspec.json.decode(header.pop("__metadata__", b"{}"), type=dict[str, str])
            return 8 + length, {name: msgspec.json.decode(raw, type=_Entry) for name, raw in header.items()}, metadata
        except (SafetensorError, msgspec.MsgspecError) as error:
            raise CorruptFileError(
                f"{self._path}: not a readable safetensors file ({error}); it is truncated or has another format: "
                "download or copy it again"
            ) from error
        except OSError as error:
            raise CheckpointError(f"{self._path}: cannot be opened: {error}") from error

    def load(self, name: str, index: Index = ()) -> Tensor:
        """Read a tensor or a part of it."""
        if name in self._descriptions:
            return self._descriptions[name][index]
        if name not in self._places:
            raise CheckpointError(f"{self._path}: {name} cannot be read: {self.tensors[name].reason}")
        return self._file.read(self._places[name].at(index))


def _is_convolution(name: str, shape: tuple[int, ...]) -> bool:
    """Return whether a weight that MLX stored is one of a convolution, with the channels last."""
    if len(shape) == _CONV1D and (shape[1] > _KERNEL or re.search("expert|switch", name.lower())):
        return False  # a stack of experts
    return len(shape) >= _CONV1D and name.endswith("weight")


def _layers_of_comfy(text: str) -> dict[str, msgspec.Raw]:
    """Return ComfyUI's description of each quantised layer, in JSON; none from a text of another program."""
    try:
        return msgspec.json.decode(text, type=_ComfyMetadata).layers
    except msgspec.MsgspecError:
        return {}


def _model_order(name: str) -> list[tuple[int, int, str]]:
    """Return a sort key that puts ``layers.2`` before ``layers.10``: the format does not store the model's order."""
    parts = [(part, part.lstrip("0")) for part in re.split(r"([0-9]+)", name) if part]
    return [(0, len(number), number) if part[0] in "0123456789" else (1, 0, part) for part, number in parts]


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
