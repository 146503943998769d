"""Open one file of tensors, whatever its format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from torch import Tensor

from tempbalance.checkpoints.safetensors_file import SafetensorsShard
from tempbalance.checkpoints.torch_file import SUPPORTED, TORCH_MAGIC, TORCH_SUFFIXES, TorchShard
from tempbalance.errors import CheckpointError
from tempbalance.layers import Index, TensorInfo

__all__ = ["Shard", "open_shard"]

# Suffix, first bytes, description, advice.
_UNSUPPORTED: tuple[tuple[str, bytes, str, str], ...] = (
    (".gguf", b"GGUF", "a GGUF file", "its weights are quantised for llama.cpp: use the original checkpoint"),
    (".onnx", b"\x08", "an ONNX graph", "use the PyTorch checkpoint that it was exported from"),
    (".h5", b"\x89HDF", "an HDF5 (Keras) file", "convert it to safetensors first"),
    (".keras", b"", "a Keras file", "convert it to safetensors first"),
    (".msgpack", b"", "a Flax file", "convert it to safetensors first"),
    (".npz", b"", "a NumPy archive", "save its arrays with safetensors.numpy.save_file"),
    (".npy", b"\x93NUMPY", "a NumPy array", "save it with safetensors.numpy.save_file"),
    (".tflite", b"", "a TensorFlow Lite file", "use the checkpoint that it was exported from"),
)


class Shard(Protocol):
    """A file of named tensors.

    It is reopened and mapped into memory for each read, so that the memory of a tensor is freed with the tensor: the
    pages of a file that stays open count towards the process.
    """

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Shapes and dtypes by name."""
        ...

    def load(self, name: str, index: Index = ()) -> Tensor:
        """Read a tensor or a part of it."""
        ...


def open_shard(path: Path) -> Shard:
    """Open a file of tensors.

    Args:
        path: An existing file.

    Returns:
        Its names, shapes and dtypes, and a method that reads one tensor.

    Raises:
        CheckpointError: It is not a checkpoint; the message names its format and the supported ones.
    """
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be opened: {error.strerror or error}") from error
    suffix = path.suffix.lower()
    for unsupported, magic, description, advice in _UNSUPPORTED:
        if suffix == unsupported or (len(magic) > 1 and head.startswith(magic)):
            raise CheckpointError(f"{path} is {description}, which cannot be analysed: {advice}; {SUPPORTED}")
    if suffix == ".safetensors":
        return SafetensorsShard(path)
    if suffix in TORCH_SUFFIXES or head.startswith(TORCH_MAGIC):
        return TorchShard(path)
    raise CheckpointError(f"{path} is not a checkpoint; {SUPPORTED}")
