"""Which files are read; and files with weights in a format that is not: what they are, and what to do."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["SUPPORTED", "describe_unsupported"]

SUPPORTED = (
    "supported are .safetensors and .gguf files, PyTorch state dicts (.bin, .pt, .pth, .ckpt) and folders of them "
    "(a Hugging Face model folder, a PEFT adapter)"
)

_EXPORTED = "use the checkpoint that it was exported from"
_SAVE_ARRAYS = "with its own library, save the arrays with safetensors.numpy.save_file"
_UNPACK = "unpack it and analyse the file in it"
# Pattern for the name, first bytes, description, advice.
_FORMATS: tuple[tuple[str, bytes, str, str], ...] = (
    (r".*\.onnx", b"", "an ONNX graph", f"{_EXPORTED}, or save its initializers with safetensors.numpy.save_file"),
    (r".*\.h5", b"\x89HDF", "an HDF5 (Keras) file", "convert it to safetensors first"),
    (r".*\.keras", b"", "a Keras file", "convert it to safetensors first"),
    (r".*\.msgpack", b"", "a Flax file", "convert it to safetensors first"),
    (r".*\.npz", b"", "a NumPy archive", "save its arrays with safetensors.numpy.save_file"),
    (r".*\.npy", b"\x93NUMPY", "a NumPy array", "save it with safetensors.numpy.save_file"),
    (r".*\.tflite", b"", "a TensorFlow Lite file", _EXPORTED),
    (r"saved_model\.pb|.*\.data-\d+-of-\d+", b"", "a TensorFlow checkpoint", _SAVE_ARRAYS),
    (r".*\.pdparams", b"", "a PaddlePaddle file", _SAVE_ARRAYS),
    (r".*\.ml(model|package)", b"", "a Core ML model", _EXPORTED),
    (r".*\.ggml", b"lmgg", "a GGML file (whisper.cpp, or before GGUF)", _EXPORTED),
    (r".*\.gz", b"\x1f\x8b", "a gzip archive", _UNPACK),
    (r".*\.bz2", b"BZh", "a bzip2 archive", _UNPACK),
    (r".*\.xz", b"\xfd7zXZ", "an xz archive", _UNPACK),
    (r".*\.zst", b"\x28\xb5\x2f\xfd", "a Zstandard archive", _UNPACK),
    (r".*\.lz4", b"\x04\x22\x4d\x18", "an LZ4 archive", _UNPACK),
)


def describe_unsupported(path: Path, head: bytes = b"") -> str | None:
    """Return a description of a file or folder in a known format that is not read, with the advice; None for others.

    Only the name in the path is used, and the first bytes if they are known.

    Example:
        >>> describe_unsupported(Path("net.pt.zst"))
        'a Zstandard archive, which cannot be analysed: unpack it and analyse the file in it'
    """
    for pattern, magic, description, advice in _FORMATS:
        if re.fullmatch(pattern, path.name.lower()) or (magic and head.startswith(magic)):
            return f"{description}, which cannot be analysed: {advice}"
    return None
