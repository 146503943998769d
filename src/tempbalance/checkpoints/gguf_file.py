"""Read one GGUF file: its header once, each tensor when it is needed, dequantised by the ``gguf`` package."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from tempbalance.checkpoints.stored_file import Place, StoredFile, contiguous_stride
from tempbalance.errors import CheckpointError, CorruptFileError, require_extra
from tempbalance.layers import Index, TensorInfo

__all__ = ["GGUF_MAGIC", "GGUFShard", "open_gguf"]

GGUF_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9  # types of metadata, beside those of numbers
_LONGEST_NAME, _LONGEST_ARRAY, _MOST_AXES, _ALIGNMENT = 1 << 16, 1 << 10, 8, 32
_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
_CHUNK = 1 << 22  # entries that are dequantised at a time
# What begins the names that tensors have in Transformers, by architecture; others keep the names in the file.
_PREFIXES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (".*bert.*", ("encoder.layer.", "embeddings.")),
    ("gpt2|gptj|gptneox|falcon|bloom|mpt|starcoder|codeshell|qwen|refact|dbrx|chatglm|t5.*|mamba.*|.*rwkv.*", ()),
    (".*", ("model.layers.", "model.embed_tokens", "lm_head")),
)
# Architectures for which llama.cpp reorders the rows of queries and keys: the two halves of a head alternate.
_REORDERED = ("llama", "llama-embed", "arcee", "granite", "granitemoe", "smollm3")
_QUERY_OR_KEY = re.compile(r"blk\.(?P<block>\d{1,9})\.attn_(?P<part>[qk])\.(weight|bias)")
_MLP = re.compile(r"model\.layers\.\d+\.mlp\.")  # preferred, so that all parts of an MLP are in one module
_Entry = tuple[str, tuple[int, ...], int, int]  # name, shape, type and position of a tensor


class _Header(NamedTuple):
    """What a file says of itself."""

    metadata: dict[str, Any]  # numbers, strings and short lists of numbers by key; other arrays are left out
    tensors: list[_Entry]
    start: int  # position of the first tensor


class _Stored(NamedTuple):
    """A tensor in a file."""

    place: Place  # of the bytes if it is quantised
    kind: Any  # type in GGUF if it is quantised, else None
    shape: tuple[int, ...] | None  # that it is read in, if another than the stored one
    heads: int | None  # attention heads whose rows llama.cpp has reordered


def open_gguf(files: Sequence[Path]) -> dict[Path, GGUFShard]:
    """Return the open files of one model, given one file, or all its parts in their order.

    The metadata is that of the first, because ``gguf-split`` writes it there only.

    Raises:
        MissingExtraError: The package ``gguf`` is not installed.
        CheckpointError: A file cannot be opened.
        CorruptFileError: A file is damaged.
    """
    with require_extra("gguf", f"to read {files[0]}, a GGUF file, install the extra that dequantises it"):
        import gguf  # noqa: F401
    headers = {file: _read_header(file) for file in files}
    metadata = headers[files[0]].metadata
    names = _names(metadata, [tensor for header in headers.values() for tensor in header.tensors])
    return {file: GGUFShard(file, header, metadata, names) for file, header in headers.items()}


class GGUFShard:
    """A ``.gguf`` file; quantised tensors are read as float32."""

    def __init__(self, path: Path, header: _Header, metadata: Mapping[str, Any], names: Mapping[str, str]) -> None:
        import gguf

        self._path, self._file = path, StoredFile(path)
        self._stored: dict[str, _Stored] = {}
        self.tensors: Mapping[str, TensorInfo] = {}
        kinds = {item.value: item for item in gguf.GGMLQuantizationType}
        for stored, shape, kind, offset in header.tensors:
            name, start = names.get(stored, stored), header.start + offset
            original, heads = self._original_shape(metadata, stored, shape), _heads(metadata, stored, shape)
            reason, known, bits, dtype = None, kinds.get(kind), "", torch.float32
            if known is None:
                reason = f"GGUF type {kind} is unknown to gguf: install a newer version of the package gguf"
            elif known.name in _PLAIN:
                dtype = _PLAIN[known.name]
                self._add(name, _Stored(Place(start, dtype, shape, contiguous_stride(shape)), None, original, heads))
            else:
                entries, size = gguf.GGML_QUANT_SIZES[known]
                reason = _reason(known, shape, entries, size)
                if reason is None:
                    bytes_shape = (*shape[:-1], shape[-1] // entries * size)
                    place = Place(start, torch.uint8, bytes_shape, contiguous_stride(bytes_shape))
                    self._add(name, _Stored(place, known, original, heads))
                    bits = f"GGUF {known.name}, {8 * size / entries:.3g} bits"
            self.tensors[name] = TensorInfo(original or shape, dtype, None, reason, bits)

    def _original_shape(self, metadata: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """Return the shape of a tensor that ComfyUI-GGUF stores in another one; None for other tensors."""
        found = metadata.get(f"comfy.gguf.orig_shape.{name}")
        if not isinstance(found, list):
            return None
        if any(type(size) is not int or size < 0 for size in found) or math.prod(found) != math.prod(shape):
            raise CorruptFileError(
                f"{self._path}: {name} of shape {shape} should have shape {found}: download or copy it again"
            )
        return tuple(found)

    def _add(self, name: str, stored: _Stored) -> None:
        """Note the place of a tensor; a CorruptFileError if it is beyond the end of the file, or the name is taken."""
        if name in self._stored:
            raise CorruptFileError(f"{self._path}: two tensors have the name {name}: download or copy it again")
        if stored.place.start + stored.place.size > self._file.size:
            raise CorruptFileError(f"{self._path} is truncated ({name} is not in it): download or copy it again")
        self._stored[name] = stored

    def load(self, name: str, index: Index = ()) -> Tensor:
        """Read a tensor or a part of it; of a quantised one only the chosen rows are read and dequantised."""
        if name not in self._stored:
            raise CheckpointError(f"{self._path}: {name} cannot be read: {self.tensors[name].reason}")
        place, kind, shape, heads = self._stored[name]
        if shape is not None or heads is not None:
            values = self._file.read(place)
            values = values if kind is None else _dequantise(values, kind)
            return _in_order(values.reshape(shape or values.shape), heads)[index]
        if kind is None:
            return self._file.read(place.at(index))
        outer = index[: len(place.shape) - 1]
        values = _dequantise(self._file.read(place.at(outer)), kind)
        inner = index[len(outer) :]
        return values[..., inner[0]] if inner else values


def _heads(metadata: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> int | None:
    """Return the number of heads of queries or keys whose rows llama.cpp has reordered; None for other tensors."""
    architecture, match = metadata.get("general.architecture"), _QUERY_OR_KEY.fullmatch(name)
    if architecture not in _REORDERED or match is None:
        return None
    count = metadata.get(f"{architecture}.attention.head_count")
    if match["part"] == "k":
        count = metadata.get(f"{architecture}.attention.head_count_kv", count)
    if isinstance(count, list):
        count = dict(enumerate(count)).get(int(match["block"]))
    return count if type(count) is int and count > 0 and shape and shape[0] % (2 * count) == 0 else None


def _in_order(values: Tensor, heads: int | None) -> Tensor:
    """Return values whose rows are in the order of Transformers: both halves of a head one after the other."""
    if heads is None:
        return values
    return values.reshape(heads, -1, 2, *values.shape[1:]).transpose(1, 2).reshape(values.shape)


def _reason(kind: Any, shape: tuple[int, ...], entries: int, size: int) -> str | None:
    """Return why tensors of a type cannot be read, or None."""
    import gguf
    import numpy as np

    if kind.name.startswith("I") and kind.name[1:].isdecimal():
        return f"integer buffer ({kind.name}), not a weight"
    if not shape or shape[-1] % entries:
        return f"cannot be read: rows of {shape[-1:]} entries do not consist of blocks of {entries} ({kind.name})"
    try:
        gguf.dequantize(np.zeros((1, size), dtype=np.uint8), kind)
    except NotImplementedError:
        return f"GGUF type {kind.name} cannot be dequantised by the package gguf: use a file of another type"
    return None


def _dequantise(stored: Tensor, kind: Any) -> Tensor:
    """Dequantise rows of bytes, a few at a time."""
    import gguf
    import numpy as np

    entries, size = gguf.GGML_QUANT_SIZES[kind]
    shape = (*stored.shape[:-1], stored.shape[-1] // size * entries)
    rows = stored.reshape(-1, stored.shape[-1])
    result = torch.empty(rows.shape[0], shape[-1])
    step = max(1, _CHUNK // max(1, shape[-1]))
    for first in range(0, rows.shape[0], step):
        chunk = rows[first : first + step].contiguous().numpy()
        with np.errstate(all="ignore"):  # scales that are not finite are found by the analysis
            result[first : first + step] = torch.from_numpy(gguf.dequantize(chunk, kind))
    return result.view(shape)


def _read_header(path: Path) -> _Header:
    try:
        with path.open("rb") as file:
            return _Reader(file, path.stat().st_size).header()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be opened: {error.strerror or error}") from error
    except (struct.error, CorruptFileError, KeyError, RecursionError) as error:
        raise CorruptFileError(
            f"{path}: not a readable GGUF file ({error}); it is truncated or has another format: download or copy it "
            "again"
        ) from error


class _Reader:
    """Reads the header of a file from its beginning."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size

    def header(self) -> _Header:
        if self._file.read(4) != GGUF_MAGIC:
            raise CorruptFileError("it does not begin with GGUF")
        version = self._number("<I")
        if version not in _VERSIONS:
            raise CorruptFileError(f"version {version}, expected 2 or 3, little-endian")
        num_tensors, num_keys = self._count(), self._count()
        metadata: dict[str, Any] = {}
        for _ in range(num_keys):
            key = self._string()
            metadata[key] = self._value(self._number("<I"))
        tensors = []
        for _ in range(num_tensors):
            name, axes = self._string(), self._number("<I")
            if axes > _MOST_AXES:
                raise CorruptFileError(f"{name} has {axes} axes")
            shape = tuple(self._count() for _ in range(axes))[::-1]
            tensors.append((name, shape, self._number("<I"), self._number("<Q")))
        alignment = metadata.get("general.alignment", _ALIGNMENT)
        if type(alignment) is not int or alignment < 1:
            raise CorruptFileError(f"alignment {alignment}")
        return _Header(metadata, tensors, -(-self._file.tell() // alignment) * alignment)

    def _number(self, code: str) -> Any:
        return struct.unpack(code, self._file.read(struct.calcsize(code)))[0]

    def _count(self) -> int:
        """Read a number of things, none of which needs less than a bit of the file."""
        count = int(self._number("<Q"))
        if count > 8 * self._size:
            raise CorruptFileError(f"a count of {count}, more than the file has")
        return count

    def _string(self) -> str:
        length = self._number("<Q")
        if length > _LONGEST_NAME:
            raise CorruptFileError(f"a name of {length} bytes")
        return self._file.read(length).decode(errors="replace")

    def _value(self, kind: int) -> Any:
        """Read a number, a string or a short list of numbers; skip another array."""
        if kind == _STRING:
            length = self._count()
            text = self._file.read(length if length <= _LONGEST_NAME else 0)
            self._file.seek(length - len(text), 1)
            return text.decode(errors="replace")
        if kind != _ARRAY:
            return self._number(_NUMBERS[kind])
        inner, count = self._number("<I"), self._count()
        if inner in _NUMBERS and count <= _LONGEST_ARRAY:
            return [self._number(_NUMBERS[inner]) for _ in range(count)]
        if inner in _NUMBERS:
            self._file.seek(count * struct.calcsize(_NUMBERS[inner]), 1)
            return None
        for _ in range(count):
            self._value(inner)
        return None


def _names(metadata: Mapping[str, Any], tensors: Sequence[_Entry]) -> dict[str, str]:
    """Return the names of the tensors in Transformers, if all tensors of the blocks have one there; else none."""
    import gguf

    architecture = str(metadata.get("general.architecture"))
    arch = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}.get(architecture)
    blocks = 1 + max((int(m[1]) for m in (re.match(r"blk\.(\d{1,9})\.", n) for n, *_ in tensors) if m), default=-1)
    if arch is None or blocks > len(tensors):
        return {}
    known = gguf.get_tensor_name_map(arch, blocks).mapping
    prefixes = next(prefixes for pattern, prefixes in _PREFIXES if re.fullmatch(pattern, architecture))
    found: dict[str, str] = {}
    for name, (_, stored) in sorted(known.items(), key=lambda item: _MLP.match(item[0]) is None):
        if name.startswith(prefixes):
            found.setdefault(stored, name)
    found |= _fused_gates(found, {name: shape for name, shape, *_ in tensors})
    names = {}
    for stored, shape, *_ in tensors:
        stem, dot, attribute = stored.rpartition(".")
        if stem in found:
            names[stored] = f"{found[stem]}{dot}{attribute}"
        elif stored.startswith("blk.") and len(shape) > 1:
            return {}
    return names if len({*names.values()}) == len(names) else {}


def _fused_gates(names: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Return the names of up projections that contain the gates (Phi-3): their rows are twice the inputs of down."""
    fused = {}
    for stem, name in names.items():
        block, _, part = stem.rpartition(".")
        up, gate, down = (shapes.get(f"{block}.ffn_{each}.weight") for each in ("up", "gate", "down"))
        if part == "ffn_up" and name.endswith(".up_proj") and up and down and not gate and up[0] == 2 * down[-1]:
            fused[stem] = f"{name.removesuffix('up_proj')}gate_up_proj"
    return fused
