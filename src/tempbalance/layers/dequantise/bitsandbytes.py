"""Weights of bitsandbytes: NF4, FP4 and INT8."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tempbalance.layers.dequantise.module import ADVICE, Module, QuantisedWeight, Read, UnreadableError
from tempbalance.layers.dequantise.packing import byte_pairs

__all__ = ["decode_4bit", "decode_8bit"]

_TABLE, _LARGEST_INT8, _NDIM = 16, 127, 2


def decode_4bit(module: Module, weight: str) -> QuantisedWeight:
    """Describe a weight of 4 bits in blocks along the flattened weight; their scales may be quantised, too."""
    state = next((name for name in module.tensors if name.startswith(f"{weight}.quant_state.")), None)
    if state is None:
        raise UnreadableError(f"its quant_state, which has its shape, is missing: {ADVICE}")
    settings = module.described(state)
    shape = settings.get("shape")
    if not isinstance(shape, list) or not all(type(size) is int and size > 0 for size in shape):
        raise UnreadableError(f"its quant_state has no shape: {ADVICE}")
    entries, info = math.prod(shape), module.tensors[weight]
    if math.prod(info.shape) * info.dtype.itemsize * 2 != entries + entries % 2:
        raise UnreadableError(
            f"it has {math.prod(info.shape)} x {info.dtype}, too few or many for shape {shape}: {ADVICE}"
        )
    scale, nested = f"{weight}.absmax", module.first(f"{weight}.nested_absmax")
    blocks = math.ceil(entries / _size(settings, "blocksize"))
    module.check(scale, (blocks,))
    module.check(f"{weight}.quant_map", (_TABLE,))
    parts = [weight, state, scale, f"{weight}.quant_map"]
    if nested is not None:
        module.check(nested, (math.ceil(blocks / _size(settings, "nested_blocksize")),))
        module.check(f"{weight}.nested_quant_map", (256,))
        parts += [nested, f"{weight}.nested_quant_map"]

    def decode(read: Read) -> Tensor:
        """Look the values up, and multiply each block by its scale."""
        scales = read(scale)
        if nested is not None:
            values = read(f"{weight}.nested_quant_map").to(torch.float32)[scales.to(torch.int64)]
            size = settings["nested_blocksize"]
            outer = read(nested).to(torch.float32).repeat_interleave(size)[:blocks]
            scales = values * outer + float(settings.get("nested_offset", 0.0))
        table = read(f"{weight}.quant_map").to(torch.float32)
        result = byte_pairs(read(weight).contiguous().view(torch.uint8).reshape(-1), table, low_first=False)[:entries]
        size = settings["blocksize"]
        whole = entries // size * size
        result[:whole].view(-1, size).mul_(scales.to(torch.float32)[: whole // size, None])
        result[whole:].mul_(scales[-1].to(torch.float32))
        return result.view(shape)

    label = f"bitsandbytes {str(settings.get('quant_type', '')).upper()}, 4 bits"
    return QuantisedWeight(name=weight, shape=tuple(shape), quantisation=label, parts=tuple(parts), decode=decode)


def _size(settings: dict[str, Any], key: str) -> int:
    size = settings.get(key)
    if type(size) is not int or size < 1:
        raise UnreadableError(f"its quant_state has no {key}: {ADVICE}")
    return size


def decode_8bit(module: Module, weight: str) -> QuantisedWeight:
    """Describe a weight of 8 bits, with the largest absolute value of each row in ``SCB``."""
    shape = module.shape(weight)
    layout = module.number("weight_format")
    if module.tensors[weight].dtype != torch.int8 or len(shape) != _NDIM or layout not in {None, 0}:
        raise UnreadableError(
            "only int8 matrices stored row by row are read: save it again with bitsandbytes 0.43 or later"
        )
    module.check("SCB", shape[:1])

    def decode(read: Read) -> Tensor:
        """Multiply each row by its scale."""
        return read(weight).to(torch.float32).mul_(read("SCB").to(torch.float32)[:, None] / _LARGEST_INT8)

    return QuantisedWeight(
        name=weight, shape=shape, quantisation="bitsandbytes INT8, 8 bits", parts=(weight, "SCB"), decode=decode
    )
