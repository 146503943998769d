"""Classify the tensors of a state dict, or of a checkpoint without an architecture, by name, shape and dtype."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from tempbalance.layers.blocks import block_namer
from tempbalance.layers.fused import Fused, Index
from tempbalance.layers.reasons import (
    dtype_reason,
    failure_reason,
    hides_shape,
    is_plain,
    quantised_reasons,
    tensor_reason,
)
from tempbalance.layers.roles import GATES, attention_role, conv_role, loose_role, scale_role
from tempbalance.layers.stored import StoredTensor
from tempbalance.layers.tables import table_role
from tempbalance.layers.vectors import drop_norms, vector_role
from tempbalance.layers.weights import Candidate, Role, storage_identity
from tempbalance.spectra.matrices import MATRIX_NDIM

__all__ = ["StateDict", "TensorInfo", "TensorStore", "ancestors", "join_name", "name_candidates", "stored_modules"]
__all__ += ["unreadable"]

_KERNEL = 16  # a last axis up to this long, of a 3-D weight, is a Conv1d kernel
_QUANTO = re.compile(r"((?P<layer>.*)\.)?(?P<attribute>[^\W_]\w*\._(data|scale|shift)(\._data)?)")
_FLAT_PARAMETER = re.compile(r"_?flat_param(_\d+)?")
_FLAT = "flattened by FSDP: save and analyse the full state dict (FSDP.summon_full_params)"
_RNN_WEIGHT = re.compile(r"weight_(ih|hh)(_l\d+(_reverse)?)?")


class TensorInfo(NamedTuple):
    """A stored tensor that is not read yet.

    Attributes:
        shape: Shape of the tensor.
        dtype: Dtype of the tensor.
        identity: A key that is equal for two names of one stored tensor; None if unknown.
        reason: Reason why it cannot be read, or None.
        quantisation: Format and bits of a quantised weight that is read as float32; empty for other tensors.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    identity: Hashable = None
    reason: str | None = None
    quantisation: str = ""


class TensorStore(Protocol):
    """Named tensors that can be read one by one or in part: a state dict, or a checkpoint on disk."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Names in stored order, with shapes and dtypes."""

    @property
    def config(self) -> Mapping[str, Any] | None:
        """The parsed ``config.json`` of a Hugging Face folder, or None."""

    @property
    def adapter_config(self) -> Mapping[str, Any] | None:
        """The parsed ``adapter_config.json`` of a PEFT adapter, or None."""

    def load(self, name: str, index: Index = ()) -> Tensor:
        """Read a tensor, or the part of it at an index."""


class StateDict:
    """A state dict as a :class:`TensorStore`; entries that are not tensors are ignored.

    Example:
        >>> StateDict(torch.nn.Linear(3, 2).state_dict()).tensors["weight"].shape
        (2, 3)
    """

    config = None
    adapter_config = None

    def __init__(self, tensors: Mapping[str, Any]) -> None:
        """Keep references to the tensors."""
        self._tensors = {str(k): v for k, v in tensors.items() if isinstance(v, Tensor)}
        self.tensors: Mapping[str, TensorInfo] = {name: _describe(tensor) for name, tensor in self._tensors.items()}

    def load(self, name: str, index: Index = ()) -> Tensor:
        """Read a tensor, or the part of it at an index."""
        tensor = self._tensors[name].detach()
        return tensor[index] if index else tensor


def _describe(tensor: Tensor) -> TensorInfo:
    """Describe a tensor, whatever it raises."""
    reason = tensor_reason(tensor)
    if not hides_shape(reason):
        try:
            return TensorInfo(tuple(map(int, tensor.shape)), tensor.dtype, storage_identity(tensor), reason)
        except Exception as error:
            reason = failure_reason(error)
    return TensorInfo((), torch.float32, None, reason)


def join_name(path: str, attribute: str) -> str:
    """Return the qualified name of an attribute of a module; the path of the root is empty."""
    return f"{path}.{attribute}" if path else attribute


def ancestors(name: str) -> list[str]:
    """Return the names of the modules that a name is in, the innermost first."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(len(parts) - 1, 0, -1)]


class _Named(NamedTuple):
    """A stored tensor with its siblings, the tensors of the same module."""

    name: str
    attribute: str
    info: TensorInfo
    siblings: Mapping[str, TensorInfo]


def _rnn(named: _Named) -> Role:
    """Find the gates from the shape of ``weight_hh``: ``(gates * hidden, hidden)`` unless there is a projection."""
    hidden = named.siblings.get(named.attribute.replace("weight_ih", "weight_hh"))
    count = 0
    if hidden is not None and len(hidden.shape) == MATRIX_NDIM and hidden.shape[0] % hidden.shape[1] == 0:
        count = hidden.shape[0] // hidden.shape[1]
    projected = any(sibling.startswith("weight_hr") for sibling in named.siblings)
    gates = GATES["LSTM"] if projected else next((g for g in GATES.values() if len(g) == count), None)
    if gates is None or named.info.shape[0] % len(gates):
        return Role(kind="rnn")
    return Role(kind="rnn", fused=Fused(parts=gates, sizes=(named.info.shape[0] // len(gates),) * len(gates)))


def _is_conv1d(named: _Named) -> bool:
    """Return whether a weight with three axes is that of a convolution, and not a stack of matrices."""
    rows, columns, kernel = named.info.shape
    if named.attribute != "weight" or "expert" in named.name.lower():
        return False
    bias = named.siblings.get("bias")
    long = kernel % 2 == 1 and bias is not None and bias.shape == (rows,)  # a stack has a bias for each matrix
    return columns == 1 or long or "conv" in _layer(named.name) or (kernel <= _KERNEL and kernel < max(rows, columns))


def _layer(name: str) -> str:
    """Return the name of the layer of a weight, without its place in a list."""
    return next((part for part in reversed(name.split(".")[:-1]) if not part.isdecimal()), "").lower()


# (axes, test, role): the first test that is true applies; other tensors are parameters of a module of unknown type.
_RULES: tuple[tuple[int, Callable[[_Named], bool], Callable[[_Named], Role | None]], ...] = (
    (2, lambda n: n.attribute.endswith("_proj_weight"), lambda n: attention_role(n.attribute, n.info.shape)),
    (2, lambda n: _RNN_WEIGHT.fullmatch(n.attribute) is not None, _rnn),
    (2, lambda n: re.fullmatch(r"weight_hr_l\d+(_reverse)?", n.attribute) is not None, lambda _: Role(kind="rnn")),
    (2, lambda n: n.attribute == "weight", lambda _: Role(kind="linear")),
    (3, _is_conv1d, lambda n: conv_role("conv1d", n.info.shape)),
    (4, lambda n: n.attribute == "weight", lambda n: conv_role("conv2d", n.info.shape)),
    (5, lambda n: n.attribute == "weight", lambda n: conv_role("conv3d", n.info.shape)),
)


def _role(named: _Named) -> Role:
    shape, dtype = named.info.shape, named.info.dtype
    bias = named.siblings.get("bias")
    if named.attribute == "weight" and bias is not None and bias.shape == shape:
        return scale_role(shape)
    if table_role(named.name, shape) is None and not dtype.is_complex:
        for ndim, test, rule in _RULES:
            if ndim == len(shape) and test(named):
                role = rule(named)
                if role is not None:
                    return role
    return loose_role(named.name, shape, dtype)


def name_candidates(store: TensorStore, names: Sequence[str] | None = None) -> list[Candidate]:
    """List the tensors with two axes or more, by default all, else those of the given names."""
    names = list(store.tensors) if names is None else names
    modules, reasons = stored_modules(store), unreadable(store)
    block_of = block_namer(name for name, info in store.tensors.items() if len(info.shape) >= MATRIX_NDIM)
    found = []
    for name in names:
        layer, attribute = _owner(name, store)
        named = _Named(name, attribute, store.tensors[name], modules[layer])
        candidate = _candidate(store, named, reasons.get(name), block_of(name))
        if candidate is not None:
            found.append(candidate)
    return drop_norms(found)


def stored_modules(store: TensorStore) -> dict[str, dict[str, TensorInfo]]:
    """Return the stored tensors of each module, by their names in it."""
    modules: dict[str, dict[str, TensorInfo]] = {}
    for stored, info in store.tensors.items():
        layer, attribute = _owner(stored, store)
        modules.setdefault(layer, {})[attribute] = info
    return modules


def _owner(stored: str, store: TensorStore) -> tuple[str, str]:
    """Return module and attribute; ``fc.weight.absmax`` belongs to ``fc`` if ``fc.weight`` is a tensor itself."""
    quanto = _QUANTO.fullmatch(stored)
    if quanto is not None:
        return quanto["layer"] or "", quanto["attribute"]
    layer, _, attribute = stored.rpartition(".")
    parts = stored.split(".")
    for count in range(1, len(parts)):
        if ".".join(parts[:count]) in store.tensors:
            return ".".join(parts[: count - 1]), ".".join(parts[count - 1 :])
    return layer, attribute


def unreadable(store: TensorStore) -> dict[str, str]:
    """Return the names of quantised, integer, unreadable and empty tensors, with the reasons."""
    reasons: dict[str, str | None] = {}
    for layer, tensors in stored_modules(store).items():
        quantised = quantised_reasons({attribute: info.dtype for attribute, info in tensors.items()})
        for attribute, info in tensors.items():
            empty = f"is empty (shape {info.shape})" if 0 in info.shape else None
            known = info.reason if is_plain(info.dtype) else None
            reason = known or quantised.get(attribute) or dtype_reason(info.dtype) or info.reason or empty
            reason = reason or (_FLAT if _FLAT_PARAMETER.fullmatch(attribute) else None)
            reasons[join_name(layer, attribute)] = reason
    return {name: reason for name, reason in reasons.items() if reason is not None}


def _candidate(store: TensorStore, named: _Named, reason: str | None, block: str | None) -> Candidate | None:
    """Return the candidate of one stored tensor, or None if it is not a matrix."""
    info = named.info
    quantised = reason is not None and named.attribute in {"weight", "qweight"}
    hidden = hides_shape(reason) and not named.attribute.startswith("bias")
    if len(info.shape) < MATRIX_NDIM and not quantised and not hidden:
        if named.attribute != "weight" or len(info.shape) != 1 or reason:
            return None
        role = vector_role()
    else:
        role = Role(kind="parameter", reason=reason) if reason else _role(named)
    return Candidate(
        name=named.name,
        role=role,
        shape=info.shape,
        dtype=info.dtype,
        read=StoredTensor(store, named.name),
        identity=info.identity,
        block=block,
        quantisation=info.quantisation,
    )
