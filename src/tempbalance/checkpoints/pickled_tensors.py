"""What ``torch.save`` writes in a pickle: the functions and classes that are allowed, and descriptions of tensors."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, NamedTuple

import torch

from tempbalance.checkpoints.pickle_reader import Global, fill, read_pickle
from tempbalance.errors import CorruptFileError, UnsafeFileError

__all__ = ["VIEWS", "PickledTensor", "Storage", "read_torch_pickle"]


class Storage(NamedTuple):
    """A storage of ``torch.save``."""

    key: str  # its name in the file
    dtype: torch.dtype  # uint8 if it has none
    numel: int
    offset: int = 0  # entry at which a view of it begins; only the format before PyTorch 1.6 has views


@dataclass(frozen=True, slots=True)
class PickledTensor:
    """A tensor of ``torch.save``."""

    storage: Storage | None  # where its entries are; None if they are not in the file
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...] = ()
    offset: int = 0  # of its first entry in the storage
    reason: str | None = None  # why it cannot be read, or None
    views: tuple[str, ...] = ()  # names of ``VIEWS`` to apply to what is stored

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)


VIEWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"conj": lambda t: t.conj().resolve_conj(), "neg": torch.neg}
_MOST_AXES, _MOST_ENTRIES = 64, 2**48
# What torch and training scripts save beside weights, as dictionaries without items.
_ALLOWED = re.compile(
    r"collections\.(OrderedDict|Counter|defaultdict)|_codecs\.encode|argparse\.Namespace"
    r"|(builtins|__builtin__)\.(set|frozenset|tuple|bytearray|complex|dict|list|int|long|bool|float|str|unicode)"
    r"|omegaconf\.[\w.]+|yacs\.config\.CfgNode|easydict\.EasyDict|typing\.\w+|torch\.torch_version\.TorchVersion"
    r"|(pytorch_lightning|lightning\.(pytorch|fabric)|lightning_fabric)\.utilities\.(data|parsing)\.AttributeDict"
    r"|pathlib(\._local)?\.(Pure)?(Posix|Windows)Path"
    r"|numpy\.(_?core\.multiarray\.(scalar|_reconstruct)|ndarray|dtype|dtypes\.\w+)"
    r"|torch\.(Size|Tensor|device|per_(tensor|channel)_\w+|nn\.parameter\.(Parameter|Buffer))"
    r"|torch\.(serialization\._get_layout|_tensor\._rebuild_from_type_v2|_utils\._rebuild_\w+)"
    r"|torch\.((cuda\.)?(sparse\.)?[A-Z]\w+(Storage|Tensor)|storage\.(Untyped|Typed)Storage)"
    r"|torch\.distributed\.(_?tensor|device_mesh|_mesh_layout)\.[\w.]+"
)
_DTYPES = {str(dtype): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}
_STORAGES = {
    "Byte": torch.uint8, "Char": torch.int8, "Short": torch.int16, "Int": torch.int32, "Long": torch.int64,
    "Half": torch.float16, "BFloat16": torch.bfloat16, "Float": torch.float32, "Double": torch.float64,
    "Bool": torch.bool, "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128, "Untyped": torch.uint8,
    "QInt8": torch.qint8, "QUInt8": torch.quint8, "QInt32": torch.qint32, "QUInt4x2": torch.quint4x2,
    "QUInt2x4": torch.quint2x4,
}  # fmt: skip


def read_torch_pickle(file: BinaryIO, size: int, most: int, storages: dict[str, Storage]) -> Any:
    """Return what one pickle of ``torch.save`` holds, with a :class:`PickledTensor` for each tensor.

    Any other object becomes an empty dictionary. It may have ``most`` operations; ``storages`` gets those of its
    tensors, by key.

    Raises:
        UnsafeFileError: It needs a class or function that is not allowed.
    """
    registered = _safe_globals()

    def name(full: str) -> Global:
        full = full.replace("torch.tensor.", "torch._tensor.")  # its name before PyTorch 1.7
        if not (_ALLOWED.fullmatch(full) or full in _DTYPES or full in registered):
            raise UnsafeFileError(
                f"the pickle would run code or build objects ({full}) and was refused; nothing was executed. If you "
                "trust it, load it yourself and save plain tensors: torch.save(model.state_dict(), path)"
            )
        return Global(full)

    def load(saved: Any) -> Storage:
        storage = _storage(saved)
        storages.setdefault(storage.key, storage)
        return storage

    return read_pickle(file, size, most, name=name, call=_call, load=load)


def _safe_globals() -> set[str]:
    """Return the names of what the user has allowed for ``torch.load``."""
    entries: list[Any] = torch.serialization.get_safe_globals()
    return {e[1] if isinstance(e, tuple) else f"{e.__module__}.{e.__qualname__}" for e in entries}


def _call(function: Any, arguments: Any) -> Any:
    """Return what a function returns if it makes a tensor, a tuple or a dictionary; else an empty dictionary."""
    if not isinstance(function, Global) or not isinstance(arguments, tuple):
        raise CorruptFileError("it calls what is no function")
    make = _FUNCTIONS.get(function.name)
    return {} if make is None else make(*arguments)


def _storage(saved: Any) -> Storage:
    """Return the storage of a persistent id: its type, name, device and length; in old files also a part of it."""
    kind, cls, key, _, numel, *view = saved
    match = re.fullmatch(r".*?([A-Z]\w+)Storage", cls.name)
    if kind != "storage" or match is None or not isinstance(key, str):
        raise CorruptFileError("it has a storage of unknown type")
    offset = view[0][1] if view and view[0] is not None else 0
    return Storage(key, _STORAGES[match[1]], *_sizes((numel, offset)))


def _sizes(values: Any) -> tuple[int, ...]:
    axes = isinstance(values, tuple | list) and len(values) <= _MOST_AXES
    if not (axes and all(type(value) is int and 0 <= value < _MOST_ENTRIES for value in values)):
        raise CorruptFileError("it has a tensor with impossible sizes")
    return tuple(values)


def _dtype(value: Any) -> torch.dtype | None:
    return _DTYPES.get(value.name) if isinstance(value, Global) else None


def _tensor(storage: Any, offset: int, shape: Any, stride: Any, *rest: Any) -> PickledTensor:
    """Describe a tensor; the rest is whether it needs a gradient, its hooks, perhaps its dtype, and its metadata."""
    dtype = next((found for value in rest if (found := _dtype(value))), storage.dtype)
    views = tuple(view for view in VIEWS for value in rest if isinstance(value, dict) and value.get(view))
    shape, stride = _sizes(shape), _sizes(stride)
    if len(shape) != len(stride):
        raise CorruptFileError("it has a tensor with impossible strides")
    return PickledTensor(storage, dtype, shape, stride, _sizes((offset,))[0], views=views)


def _without_values(shape: Any, dtype: Any, reason: str) -> PickledTensor:
    return PickledTensor(None, _dtype(dtype) or torch.float32, _sizes(shape), reason=reason)


def _sparse(_: Any, data: Any) -> PickledTensor:
    shape = next(value for value in data if isinstance(value, tuple) and all(type(size) is int for size in value))
    values = [value for value in data if isinstance(value, PickledTensor)]
    return PickledTensor(
        None, values[-1].dtype, _sizes(shape), reason="sparse tensor: its weights are those of tensor.to_dense()"
    )


def _subclass(cls: Any, dtype: Any, shape: Any, *_: Any) -> PickledTensor:
    name = cls.name.rpartition(".")[2]
    sharded = "sharded over several processes (DTensor): analyse the full state dict, or the saved checkpoint"
    return _without_values(
        shape, dtype, sharded if name == "DTensor" else f"cannot be read: the values of a {name} are not known"
    )


def _first(value: Any, *_: Any) -> Any:
    return value


def _dictionary(pairs: Any = ()) -> Any:
    return fill({}, [value for pair in pairs for value in pair])  # Python 2 wrote its items as pairs


_U = "torch._utils._rebuild_"
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "torch.Size": tuple,
    "collections.OrderedDict": _dictionary,
    "torch._tensor._rebuild_from_type_v2": lambda function, _, arguments, __: _call(function, arguments),
    f"{_U}tensor": _tensor,
    f"{_U}tensor_v2": _tensor,
    f"{_U}tensor_v3": _tensor,
    f"{_U}qtensor": _tensor,
    f"{_U}parameter": _first,
    f"{_U}parameter_with_state": _first,
    f"{_U}device_tensor_from_cpu_tensor": _first,
    f"{_U}device_tensor_from_numpy": lambda _, dtype, *__: _without_values(
        (), dtype, "cannot be read: saved from an unknown device"
    ),
    f"{_U}meta_tensor_no_storage": lambda dtype, shape, *_: _without_values(
        shape, dtype, "no data (saved on the meta device)"
    ),
    f"{_U}sparse_tensor": _sparse,
    f"{_U}nested_tensor": lambda data, *_: replace(data, reason="nested tensor, not a matrix"),
    f"{_U}wrapper_subclass": _subclass,
}
