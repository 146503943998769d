"""Read one file that ``torch.save`` wrote: its pickle once, each tensor when it is needed; no code in it runs."""

from __future__ import annotations

import io
import logging
import math
import re
import struct
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from torch import Tensor

from tempbalance.checkpoints.pickled_tensors import VIEWS, PickledTensor, Storage, read_torch_pickle
from tempbalance.checkpoints.stored_file import Place, StoredFile
from tempbalance.checkpoints.unsupported import SUPPORTED
from tempbalance.errors import CheckpointError, CorruptFileError, UnsafeFileError
from tempbalance.layers import Index, TensorInfo
from tempbalance.layers.nested import find_state_dict
from tempbalance.layers.reasons import dtype_reason

__all__ = ["TORCH_MAGIC", "TORCH_SUFFIXES", "TorchShard", "stored_integer"]

TORCH_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
TORCH_MAGIC = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
# Pattern for the members of a zip archive that torch.load cannot read, and the error.
_ARCHIVES: tuple[tuple[str, type[CheckpointError], str], ...] = (
    (
        r"[^/]*/constants\.pkl",
        UnsafeFileError,
        "a TorchScript archive, which contains code: load it with torch.jit.load and analyse the module",
    ),
    (
        r"(.*/)?(models/model\.json|archive_format|serialized_exported_program\.json)",
        CheckpointError,
        "an exported program (.pt2): load it with torch.export.load and analyse its state_dict",
    ),
    (
        r"policy\.pth",
        CheckpointError,
        "a model of Stable-Baselines3: unpack the zip archive and analyse its policy.pth",
    ),
    (
        r"[^/]*\.(pth?|bin|ckpt|safetensors)",
        CheckpointError,
        "a zip archive of checkpoints: unpack it and analyse one of them",
    ),
)

_logger = logging.getLogger("tempbalance")
_ZIP = TORCH_MAGIC[0]
_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C  # the first value of a file before PyTorch 1.6
_MOST, _MOST_PER_TENSOR = 1_000_000, 100  # operations of a pickle, which limits memory and time
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a member of a zip archive: what it begins with, two lengths at the end
_EXPANDED = 2**30  # bytes that a tensor may have above the size of its file


class _Contents(NamedTuple):
    """What a file contains."""

    saved: Any  # with descriptions of tensors
    storages: Mapping[str, tuple[int, int]]  # position and size of each storage, in bytes
    swap: bool  # whether numbers have the other byte order


class TorchShard:
    """A state dict saved by ``torch.save``; tensor data is read by ``load``."""

    def __init__(self, path: Path, key: str | None = None) -> None:
        self._path, self._file = path, StoredFile(path)
        saved, self._storages, self._swap = _read(path, self._file.size)
        if not isinstance(saved, dict):
            raise CheckpointError(
                f"{path}: no state dict found in it (a {type(saved).__name__}); "
                "save one: torch.save(model.state_dict(), path)"
            )
        try:
            found = find_state_dict(saved, key, PickledTensor)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from None
        if found.message:
            _logger.warning("%s: %s", path, found.message)
        self._places: dict[str, tuple[Place, tuple[str, ...]]] = {}
        self.tensors: Mapping[str, TensorInfo] = {name: self._info(name, t) for name, t in found.tensors.items()}

    def _info(self, name: str, tensor: PickledTensor) -> TensorInfo:
        """Describe a tensor, and note its place if it can be read."""
        place, reason = None, tensor.reason
        if tensor.storage is not None and reason is None:
            key, dtype, numel, offset = tensor.storage
            start, size = self._storages.get(key, (0, 0))
            first = start + offset * dtype.itemsize + tensor.offset * tensor.dtype.itemsize
            place = Place(first, tensor.dtype, tensor.shape, tensor.stride)
            if place.size and first + place.size > start + min(size, numel * dtype.itemsize):
                place, reason = None, "cannot be read: the file has fewer numbers than its shape"
            elif math.prod(tensor.shape) * tensor.dtype.itemsize > self._file.size + _EXPANDED:
                place, reason = None, "cannot be read: expanded to more than the size of its file"
        if place is None:
            return TensorInfo(tensor.shape, tensor.dtype, None, dtype_reason(tensor.dtype) or reason)
        self._places[name] = place, tensor.views
        identity = (self._path, place.start, math.prod(place.shape), place.dtype, tensor.views) if place.size else None
        return TensorInfo(tensor.shape, tensor.dtype, identity, dtype_reason(tensor.dtype))

    def load(self, name: str, index: Index = ()) -> Tensor:
        """Read a tensor or a part of it."""
        if name not in self._places:
            raise CheckpointError(f"{self._path}: {name} cannot be read: {self.tensors[name].reason}")
        place, views = self._places[name]
        tensor = self._file.read(place.at(index), swap=self._swap)
        for view in views:
            tensor = VIEWS[view](tensor)
        return tensor


def stored_integer(path: Path, key: str) -> int | None:
    """Return an integer that was saved beside the weights; None if there is none, or the file cannot be read."""
    try:
        saved = _read(path, path.stat().st_size).saved
    except (CheckpointError, OSError):
        return None
    value = saved.get(key) if isinstance(saved, dict) else None
    return value if type(value) is int else None


def _read(path: Path, size: int) -> _Contents:
    """Read the pickle of a file; whatever a damaged one makes Python raise becomes one error."""
    try:
        with path.open("rb") as file:
            is_zip = file.read(len(_ZIP)) == _ZIP
            file.seek(0)
            return _read_zip(file, size) if is_zip else _read_legacy(file, size)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be opened: {error.strerror or error}") from error
    except Exception as error:
        if isinstance(error, CheckpointError) and not isinstance(error, CorruptFileError):
            raise type(error)(f"{path}: {error}") from None
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise CorruptFileError(
            f"{path}: not a readable PyTorch file ({reason}); it is truncated or has another format: download or copy "
            f"it again; {SUPPORTED}"
        ) from error


def _read_zip(file: BinaryIO, size: int) -> _Contents:
    """Read an archive, whose members are not compressed."""
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
    names = [member.filename for member in members]
    for pattern, kind, description in _ARCHIVES:
        if any(re.fullmatch(pattern, name) for name in names):
            raise kind(f"it is {description}")
    root = next((name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl")), None)
    if root is None or len(set(names)) < len(names):
        raise CorruptFileError("it has no data.pkl, or two files of one name: not an archive of torch.save")
    places = {}
    for member in members:
        if member.filename.startswith(root) and not member.is_dir():
            if member.compress_type != zipfile.ZIP_STORED:
                raise CheckpointError("it is compressed, which torch.save does not do: unpack it and save it again")
            file.seek(member.header_offset)
            signature, *lengths = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
            start = member.header_offset + _LOCAL_HEADER.size + sum(lengths)
            if signature != _ZIP or start + member.file_size > size:
                raise CorruptFileError("a part of it is missing")
            places[member.filename.removeprefix(root)] = (start, member.file_size)
    data = {}
    for name in ("data.pkl", "byteorder"):
        start, length = places.get(name, (0, 0))
        file.seek(start)
        data[name] = file.read(length)
    saved = read_torch_pickle(io.BytesIO(data["data.pkl"]), size, _MOST + _MOST_PER_TENSOR * len(places), {})
    storages = {name.removeprefix("data/"): place for name, place in places.items() if name.startswith("data/")}
    return _Contents(saved, storages, data["byteorder"] not in {b"", sys.byteorder.encode()})


def _read_legacy(file: BinaryIO, size: int) -> _Contents:
    """Read the format before PyTorch 1.6: five pickles, then length and numbers of each storage."""
    used: dict[str, Storage] = {}
    magic = read_torch_pickle(file, size, _MOST, used)
    if magic != _MAGIC_NUMBER:
        raise CheckpointError(
            f"it is a pickle (of a {type(magic).__name__}) that torch.save did not write: load it with pickle, and "
            "save its arrays with safetensors.numpy.save_file"
        )
    _, system, saved, keys = (read_torch_pickle(file, size, _MOST, used) for _ in range(4))
    storages = {}
    for key in keys:
        (numel,) = struct.unpack("<q", file.read(8))
        storages[key] = (file.tell(), max(0, numel) * used[key].dtype.itemsize)
        if sum(storages[key]) > size:
            raise CorruptFileError("a part of it is missing")
        file.seek(sum(storages[key]))
    return _Contents(saved, storages, system["little_endian"] != (sys.byteorder == "little"))
