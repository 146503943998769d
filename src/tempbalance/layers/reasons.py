"""Reasons why a weight cannot be analysed: a table of quantised formats, and one of tensors without data."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from tempbalance.layers.sharded import is_sharded

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "BELONGS",
    "IN_MEMORY",
    "dtype_reason",
    "failure_reason",
    "find_quantised",
    "format_label",
    "hides_shape",
    "is_broken",
    "is_plain",
    "quantised_reasons",
    "tensor_reason",
]

BELONGS = "belongs to a quantised weight"
_UNQUANTISED = (
    "this quantised format is not read: dequantise it with its own library, or load the unquantised checkpoint"
)
IN_MEMORY = "quantised weights of a live model are not read: analyse model.state_dict(), or its checkpoint"

# Name of the tensor in its module, name of an auxiliary tensor that the module must have, format (or its dtype). The
# first match applies.
_FORMATS: tuple[tuple[str, str, str], ...] = (
    (r"qweight", r"forward_hadamard_matrix", "FP-Quant"),
    (r"qweight", r"lookup_table", "SqueezeLLM"),
    (r"qweight", r"g_idx", "GPTQ"),
    (r"qweight", r"w[ct]?scales?|smooth\w*", "SVDQuant"),
    (r"qweight", r"qzeros|scales", "AWQ or GPTQ"),
    (r"(?P<w>\w+)_blocks", r"{w}_scales", "MXFP4"),
    (r"(?P<w>\w+)_packed", r"{w}_scale|{w}_shape", "compressed-tensors"),
    (r"(?P<w>\w+)", r"{w}\.quant_state\..*|{w}\.quant_map|{w}\.absmax", "bitsandbytes 4-bit"),
    (r"weight", r"SCB", "bitsandbytes 8-bit"),
    (r"W_q", r"meta", "SINQ"),
    (r"W_q", r"\w+", "HQQ"),
    (r"B", r"s|s_\w+", "Marlin"),
    (r"_(?P<w>\w+)_qdata", r"_{w}_scale", "torchao"),
    (r"(?P<w>\w+)\._data(\._data)?", r"{w}\._scale", "quanto"),
    (r"weight", r"tables2?", "HIGGS"),
    (r"weight", r"weight_scales", "EETQ"),
    (r"weight", r"qbiases", "Metal"),
    (r"weight", r"scales|biases", "MLX"),
    (r"codes", r"codebooks", "AQLM"),
    (r"Qidxs", r"\w+", "QuIP"),
    (r"q_weight|trellis", r"\w+", "EXL"),
    (r"(?P<w>\w+)", r"{w}_scales?(_inv|_2)?|scale_{w}|{w}\.scale|{w}\.scale_weight", ""),
    (r"weight", r"scale", ""),
)
# Auxiliary tensors of a quantised weight.
_AUXILIARY = re.compile(
    r"(\w*_)?(scale|zero|zero_point|shift)s?(_\w+)?|[qw][ct]?(scale|zero)s?|q?biases|g_idx|SCB|\w+_shape|q_(?!weight)\w+"
    r"|s|s_(channel|group)|lookup_table|codebooks?|tables2?|[sS][uUvV]h?|Wscale|smooth\w*|(lora|proj)_(down|up)|\w*hadamard\w*"
    r"|meta|\w+\.(?!_data)[\w.]+"
)
_ANY_DTYPE = frozenset({"bitsandbytes 4-bit"})  # its bytes may be saved as any dtype
_PACKED_FLOATS = frozenset(getattr(torch, name) for name in dir(torch) if re.match(r"float[48]_", name))
_FLOAT4 = frozenset(dtype for dtype in _PACKED_FLOATS if "float4" in str(dtype))
_SHORT: dict[torch.dtype | None, str] = dict.fromkeys(_PACKED_FLOATS - _FLOAT4, "fp8")
_QUANTISED = frozenset({torch.quint8, torch.qint8, torch.qint32, torch.quint4x2, torch.quint2x4})
_INDICES = frozenset({torch.int64, torch.bool})


def is_plain(dtype: torch.dtype | None) -> bool:
    """Return whether tensors of this dtype are never quantised weights: wide floats, indices and masks."""
    if dtype is None or dtype in _INDICES:
        return True
    return (dtype.is_floating_point or dtype.is_complex) and dtype not in _PACKED_FLOATS


def quantised_reasons(dtypes: Mapping[str, torch.dtype | None], advice: str = _UNQUANTISED) -> dict[str, str]:
    """Return the reasons to skip the quantised weights of a module, and the tensors that belong to them.

    ``dtypes`` are those of all tensors of the module. A reason names the format, and gives the advice: why it is not
    read, and what to do.

    Example:
        >>> quantised_reasons({"weight": torch.int8, "SCB": torch.float32, "bias": torch.float32})["SCB"]
        'belongs to a quantised weight'
    """
    formats, auxiliary = find_quantised(dtypes)
    found = {name: f"{format_label(label, dtypes[name])}: {advice}" for name, label in formats.items()}
    return dict.fromkeys(auxiliary, BELONGS) | found


def find_quantised(dtypes: Mapping[str, torch.dtype | None]) -> tuple[dict[str, str], list[str]]:
    """Return the format of each quantised weight of a module, and the names of the tensors that belong to them.

    They are recognised by the names and dtypes of all tensors of the module. The format is empty for a weight with
    scales and no name.

    Example:
        >>> find_quantised({"W_q": torch.uint8, "scale": torch.float32, "bias": torch.float32})
        ({'W_q': 'HQQ'}, ['scale'])
    """
    auxiliary = [name for name in dtypes if _AUXILIARY.fullmatch(name)]
    labels = {name: _label(name, dtype, auxiliary) for name, dtype in dtypes.items()}
    found = {name: label for name, label in labels.items() if label is not None}
    return found, [] if found.keys() <= set(auxiliary) else [name for name in auxiliary if name not in found]


def _label(tensor: str, dtype: torch.dtype | None, auxiliary: Sequence[str]) -> str | None:
    """Return the format of a tensor by the auxiliary tensors of its module, or None."""
    if not auxiliary:
        return None
    for pattern, sibling, label in _FORMATS:
        match = None if is_plain(dtype) and label not in _ANY_DTYPE else re.fullmatch(pattern, tensor)
        if match is not None:
            expected = re.compile(sibling.replace("{w}", re.escape(match.groupdict().get("w", ""))))
            if any(other != tensor and expected.fullmatch(other) for other in auxiliary):
                return label
    return None


def format_label(label: str, dtype: torch.dtype | None) -> str:
    """Return the name of a format; one that has none is known by its dtype."""
    return label or f"{_SHORT.get(dtype, str(dtype).removeprefix('torch.'))} with scales"


def dtype_reason(dtype: torch.dtype | None) -> str | None:
    """Return why tensors of this dtype are not weights; None for floating-point and complex ones."""
    if dtype in _FLOAT4:
        return f"4-bit floats: {_UNQUANTISED}"
    if dtype is None or dtype.is_floating_point or dtype.is_complex:
        return None
    label = str(dtype).removeprefix("torch.")
    if dtype in _QUANTISED:
        return f"torch {label}: {_UNQUANTISED}"
    return f"integer buffer ({label}), not a weight; if it is a quantised one, load the unquantised checkpoint"


_NO_DATA = "no data (meta device): load the weights first, or analyse the checkpoint"
_NESTED = "nested tensor, not a matrix"
# Reasons of tensors whose shape is missing or misleading, and of those that cannot be read, whatever they are.
_NO_SHAPE = re.compile("not initialised|flattened by FSDP|nested tensor|cannot be read")
_BROKEN = re.compile("no data|not initialised|nested tensor|cannot be read|sparse|MKL-DNN|its memory")
# Class names in the inheritance of a tensor, and the reason.
_TENSOR_CLASSES: tuple[tuple[str, str], ...] = (
    (r"DTensor", "sharded over several processes (DTensor): analyse the full state dict, or the saved checkpoint"),
    (
        r"FlatParameter",
        "flattened by FSDP: analyse the full state dict (FSDP.summon_full_params), or the saved checkpoint",
    ),
    (r"Params4bit", f"bitsandbytes 4-bit: {IN_MEMORY}"),
    (r"Int8Params", f"bitsandbytes 8-bit: {IN_MEMORY}"),
    (r"(Weight)?Q(Bytes|Bits)?Tensor|WeightQ\w+Tensor", f"quanto: {IN_MEMORY}"),
    (r"GGUFParameter", f"GGUF: {IN_MEMORY}"),
    (r"UninitializedTensorMixin", "not initialised yet (lazy module): run one forward pass first"),
    (r"FakeTensor", _NO_DATA),
    (r"NestedTensor", _NESTED),
)
_ZERO3 = (
    "partitioned by DeepSpeed ZeRO-3: gather it (deepspeed.zero.GatheredParameters), or analyse the saved checkpoint"
)


def _class_reason(tensor: Tensor) -> str | None:
    """Return the reason for the class of a tensor subclass."""
    if {type(tensor), type(tensor.data)} <= {torch.Tensor, torch.nn.Parameter}:  # nearly always, and many times
        return None
    for cls in (*type(tensor).__mro__, *type(tensor.data).__mro__):
        if cls.__module__.partition(".")[0] == "torchao":
            return f"torchao ({cls.__name__}): {IN_MEMORY}"
        for pattern, reason in _TENSOR_CLASSES:
            if re.fullmatch(pattern, cls.__name__):
                return reason
    return None


def _storage_reason(tensor: Tensor) -> str | None:
    """Return the reason for a tensor whose numbers are not in memory of its own, one after the other."""
    if tensor.is_nested:
        return _NESTED
    if tensor.layout is not torch.strided:
        kind = "MKL-DNN" if tensor.is_mkldnn else "sparse"
        return f"{kind} tensor: its weights are those of tensor.to_dense()"
    if type(tensor) in {torch.Tensor, torch.nn.Parameter} and tensor.device.type in {"cpu", "cuda"}:
        last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
        needed = (tensor.storage_offset() + last + 1) * tensor.itemsize if tensor.numel() else 0
        if tensor.untyped_storage().nbytes() < needed:
            return "its memory was freed (its storage is smaller than its shape)"
    return None


_CHECKS: tuple[Callable[[Tensor], str | None], ...] = (
    _class_reason,
    lambda t: _ZERO3 if hasattr(t, "ds_id") and t.numel() == 0 else None,
    lambda t: _NO_DATA if t.is_meta else None,
    lambda t: dtype_reason(t.dtype),
    _storage_reason,
    lambda t: f"is empty (shape {tuple(t.shape)})" if t.numel() == 0 else None,
)


def tensor_reason(tensor: Tensor, *, meta: bool = False, sharded: bool = False) -> str | None:
    """Return why a live tensor cannot be read; ``meta`` and ``sharded`` allow such tensors."""
    try:
        if sharded and is_sharded(tensor):
            return dtype_reason(tensor.dtype)
        for check in _CHECKS:
            reason = check(tensor)
            if reason and not (meta and tensor.is_meta and reason.startswith("no data")):
                return reason
    except Exception as error:  # whatever a subclass of a tensor raises
        return failure_reason(error)
    return None


def failure_reason(error: Exception) -> str:
    """Return the reason to skip a weight for which a library raised an error."""
    return f"cannot be read: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def hides_shape(reason: str | None) -> bool:
    """Return whether the shape of a tensor that is skipped for a reason is missing or misleading."""
    return reason is not None and _NO_SHAPE.match(reason) is not None


def is_broken(reason: str) -> bool:
    """Return whether a tensor that is skipped for a reason may be a weight, and cannot be read."""
    return _BROKEN.match(reason) is not None
