"""One file of tensors: safetensors, or a pickled state dict read with ``weights_only=True``.

Both are reopened for every read and mapped into memory, so that the pages of a tensor are given back with the tensor:
a file kept open would count in full against the process once every tensor had been read.
"""

from __future__ import annotations

import errno
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from tempbalance.errors import CheckpointError, CorruptFileError, UnsafeFileError
from tempbalance.layers import Index, TensorInfo
from tempbalance.layers.names import StateDict

__all__ = ["DTYPES", "SUPPORTED", "TORCH_SUFFIXES", "Shard", "open_shard"]

SUPPORTED = (
    "supported are .safetensors files, PyTorch state dicts (.bin, .pt, .pth, .ckpt) and folders of them "
    "(a Hugging Face model folder, a PEFT adapter)"
)
TORCH_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
_TORCH_MAGIC = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
DTYPES = {
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
# Suffix, first bytes, what it is, what to do about it.
_FOREIGN: tuple[tuple[str, bytes, str, str], ...] = (
    (".gguf", b"GGUF", "a GGUF file", "its weights are quantised for llama.cpp: use the original checkpoint"),
    (".onnx", b"\x08", "an ONNX graph", "use the PyTorch checkpoint that it was exported from"),
    (".h5", b"\x89HDF", "an HDF5 (Keras) file", "convert it to safetensors first"),
    (".keras", b"", "a Keras file", "convert it to safetensors first"),
    (".msgpack", b"", "a Flax file", "convert it to safetensors first"),
    (".npz", b"", "a NumPy archive", "save its arrays with safetensors.numpy.save_file"),
    (".npy", b"\x93NUMPY", "a NumPy array", "save it with safetensors.numpy.save_file"),
    (".tflite", b"", "a TensorFlow Lite file", "use the checkpoint that it was exported from"),
)
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net", "network", "params", "weights", "ema")


class Shard(Protocol):
    """A file of named tensors."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Names, with shapes and dtypes."""
        ...

    def load(self, name: str, index: Index = ()) -> Tensor:
        """Read a tensor, or the part of it at an index."""
        ...


def natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key that puts ``layers.2`` before ``layers.10``: safetensors files keep no order of the model."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


class SafetensorsShard:
    """A ``.safetensors`` file.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        """Read the header."""
        self._path = path
        with self._open() as file:
            slices = {name: file.get_slice(name) for name in sorted(file.keys(), key=natural)}
            self.tensors: Mapping[str, TensorInfo] = {name: _info(part) for name, part in slices.items()}

    def _open(self) -> Any:
        from safetensors import SafetensorError, safe_open

        try:
            return safe_open(str(self._path), framework="pt", device="cpu")
        except SafetensorError as error:
            raise CorruptFileError(
                f"{self._path}: not a readable safetensors file ({error}); it is truncated or something else: "
                "download or copy it again"
            ) from error
        except OSError as error:
            raise CheckpointError(f"{self._path}: cannot be opened: {error}") from error

    def load(self, name: str, index: Index = ()) -> Tensor:
        """Read a tensor, or the part of it at an index.

        Args:
            name: Name of the tensor.
            index: Which part, ``()`` for all of it.

        Returns:
            The tensor, mapped from the file; its pages are read when used.
        """
        with self._open() as file:
            if not index:
                whole: Tensor = file.get_tensor(name)
                return whole
            part: Tensor = file.get_slice(name)[index]
            return part


def _info(part: Any) -> TensorInfo:
    stored = part.get_dtype()
    dtype = getattr(torch, DTYPES.get(stored, ""), None)
    if dtype is None:
        reason = f"stored as {stored}: quantised weights are not supported yet: load the unquantised checkpoint"
        return TensorInfo(tuple(part.get_shape()), torch.uint8, None, reason)
    return TensorInfo(tuple(part.get_shape()), dtype)


class TorchShard:
    """A state dict saved by ``torch.save``; nothing in it is executed.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        """Read the pickle, but no tensor data where the format allows it."""
        self._path = path
        in_memory = StateDict(self._read())
        self._kept = None if self._mapped() else in_memory
        self.tensors: Mapping[str, TensorInfo] = {
            name: info._replace(identity=info.identity and (path, info.identity))
            for name, info in in_memory.tensors.items()
        }

    def _mapped(self) -> bool:
        """Whether the file can be mapped: the older format, before PyTorch 1.6, has to be read as a whole."""
        with self._path.open("rb") as file:
            return file.read(4) == _TORCH_MAGIC[0]

    def _read(self) -> Mapping[str, Any]:
        try:
            loaded = torch.load(self._path, map_location="cpu", weights_only=True, mmap=self._mapped())
        except pickle.UnpicklingError as error:
            raise _refusal(self._path, error) from error
        except OSError as error:
            if error.errno == errno.EINVAL:  # the archive points past the end of the file
                raise CorruptFileError(f"{self._path}: truncated; download or copy it again") from error
            raise CheckpointError(f"{self._path}: cannot be opened: {error}") from error
        except Exception as error:  # torch raises RuntimeError, EOFError, KeyError and others on damaged files
            if "TorchScript" in str(error):
                raise UnsafeFileError(
                    f"{self._path}: a TorchScript archive holds code; load it with torch.jit.load and analyse "
                    "the module"
                ) from error
            raise CorruptFileError(
                f"{self._path}: not a readable PyTorch file ({_first_line(error)}); it is truncated or something else: "
                "download or copy it again"
            ) from error
        return _unwrap(loaded, self._path)

    def load(self, name: str, index: Index = ()) -> Tensor:
        """Read a tensor, or the part of it at an index.

        Args:
            name: Name of the tensor.
            index: Which part, ``()`` for all of it.

        Returns:
            The tensor, mapped from the file where the format allows it.
        """
        tensor: Tensor = self._kept.load(name) if self._kept is not None else self._read()[name]
        return tensor.detach()[index] if index else tensor.detach()


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]


def _refusal(path: Path, error: pickle.UnpicklingError) -> CheckpointError:
    """The error for a pickle that weights_only=True refuses: code, or no pickle at all."""
    text = str(error)
    found = re.search(r"Unsupported (?:global|class|operand)[^\n]*?(?:GLOBAL )?([\w.]+\.[\w.]+)", text)
    if not found and not re.search(r"Unsupported|not an allowed global|Trying to", text):
        return CorruptFileError(f"{path}: not a readable PyTorch file; {SUPPORTED}")
    what = f" ({found.group(1)})" if found else ""
    return UnsafeFileError(
        f"{path}: the pickle wants to run code or build objects{what}, and was refused; nothing was executed. "
        "If you trust it, load it yourself and save plain tensors: torch.save(model.state_dict(), path)"
    )


def _unwrap(loaded: object, path: Path) -> Mapping[str, Any]:
    """Find the state dict inside what a training loop saved beside it."""
    level = [loaded]
    while level:
        mappings = [value for value in level if isinstance(value, Mapping)]
        for value in mappings:
            if any(isinstance(v, Tensor) for v in value.values()):
                return value
        level = [value[key] for value in mappings for key in _WRAPPERS if key in value]
    kind = type(loaded).__name__
    keys = f" with keys {list(loaded)[:8]}" if isinstance(loaded, Mapping) else ""
    raise CheckpointError(
        f"{path}: no state dict found in it (a {kind}{keys}); save one: torch.save(model.state_dict(), path)"
    )


def open_shard(path: Path) -> Shard:
    """Open a file of tensors.

    Args:
        path: An existing file.

    Returns:
        Its names, shapes and dtypes, and a way to read one tensor.

    Raises:
        CheckpointError: It is no checkpoint; the message says what it is and what is supported.
    """
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be opened: {error.strerror or error}") from error
    suffix = path.suffix.lower()
    for foreign, magic, label, advice in _FOREIGN:
        if suffix == foreign or (len(magic) > 1 and head.startswith(magic)):
            raise CheckpointError(f"{path} is {label}, which cannot be analysed: {advice}; {SUPPORTED}")
    if suffix == ".safetensors":
        return SafetensorsShard(path)
    if suffix in TORCH_SUFFIXES or head.startswith(_TORCH_MAGIC):
        return TorchShard(path)
    raise CheckpointError(f"{path} is not a checkpoint; {SUPPORTED}")
