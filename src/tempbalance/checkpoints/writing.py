"""Write checkpoints: tensor by tensor, and a folder whole or not at all."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path

import torch
from torch import Tensor

from tempbalance.checkpoints.shards import DTYPES, TORCH_SUFFIXES
from tempbalance.errors import CheckpointError
from tempbalance.layers import TensorInfo

__all__ = ["check_replaceable", "copy_beside", "whole_folder", "write_safetensors"]

_CODES = {getattr(torch, name): code for code, name in DTYPES.items() if hasattr(torch, name)}
_ALIGNMENT = 8
_WEIGHTS = (".safetensors", *TORCH_SUFFIXES, ".h5", ".msgpack", ".onnx", ".gguf", ".index.json")


def write_safetensors(path: Path, tensors: dict[str, TensorInfo], load: Callable[[str], Tensor]) -> None:
    """Write a ``.safetensors`` file with one tensor in memory at a time, which the library itself cannot.

    Args:
        path: The file.
        tensors: Shapes and dtypes by name.
        load: Gives a tensor; called once for each, in the order of the file.

    Raises:
        CheckpointError: A tensor is stored in a format that cannot be written.
    """
    for name, info in tensors.items():
        if info.reason is not None or info.dtype not in _CODES:
            raise CheckpointError(f"{name} cannot be copied: {info.reason or info.dtype}")
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    place = 0
    ordered = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)  # so that all are aligned
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


@contextlib.contextmanager
def whole_folder(out: Path, marker: str) -> Generator[Path]:
    """A new folder that takes the place of ``out`` when the block ends; if it fails, what was there stays.

    Args:
        out: Where the folder is to be. What is there may be replaced if it is empty or holds the marker.
        marker: Name of a file that only an earlier output holds.

    Yields:
        A folder to write to, on the same disk.

    Raises:
        CheckpointError: Something else is there, or it cannot be written.
    """
    out = out.absolute()
    check_replaceable(out, marker)
    try:
        new = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    except OSError as error:
        raise CheckpointError(f"cannot write to {out.parent}: {error.strerror or error}") from error
    try:
        yield new
        mask = os.umask(0)
        os.umask(mask)
        new.chmod(0o777 & ~mask)  # mkdtemp makes folders private
        _replace(out, new)
    except OSError as error:
        raise CheckpointError(f"cannot write {out}: {error.strerror or error}; what was there is unchanged") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def check_replaceable(out: Path, marker: str) -> None:
    """Refuse, before the work, a place that an output may not take.

    Args:
        out: Where a folder is to be.
        marker: Name of a file that only an earlier output holds.

    Raises:
        CheckpointError: Something else is there.
    """
    if out.exists() and not (out.is_dir() and ((out / marker).is_file() or not any(out.iterdir()))):
        raise CheckpointError(f"{out} is there already, and is no earlier output (it has no {marker}): name another")
    if not out.absolute().parent.is_dir():
        raise CheckpointError(f"cannot write {out}: there is no folder {out.absolute().parent}")


def _replace(out: Path, new: Path) -> None:
    """Put a folder in the place of another, which goes away."""
    old = new.with_name(f"{new.name}.old")
    if out.exists():
        out.rename(old)
    try:
        new.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def copy_beside(source: Path, folder: Path) -> None:
    """Copy what lies beside the weights of a model: configuration, tokenizer, licence.

    Args:
        source: Folder of the model.
        folder: Where to; files that are there already stay.
    """
    for entry in sorted(source.iterdir()):
        if entry.is_file() and not entry.name.lower().endswith(_WEIGHTS) and not (folder / entry.name).exists():
            shutil.copyfile(entry, folder / entry.name)
