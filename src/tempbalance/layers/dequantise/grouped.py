"""Weights of HQQ, quanto and torchao."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tempbalance.layers.dequantise.module import ADVICE, Module, QuantisedWeight, Read, UnreadableError
from tempbalance.layers.dequantise.with_scales import eight_bits

__all__ = ["decode_hqq", "decode_quanto", "decode_torchao"]

# Packing of HQQ: bits, and how many values are in a number; the first rows have the highest bits.
_PACKINGS = {"8bit_u8": (8, 1), "4bit_u8": (4, 2), "2bit_u8": (2, 4), "1bit_u8": (1, 8), "3bit_32": (3, 10)}
_BYTE = 8


def decode_hqq(module: Module, packed: str) -> QuantisedWeight:
    """Describe a weight of HQQ: rows (or columns) are groups, each with a scale and a zero."""
    if "shape" not in module.tensors or "packing" not in module.tensors:
        raise UnreadableError("its shape and packing are missing: save it again with hqq 0.2 or later")
    module.check("shape", (2,))
    shape = tuple(map(int, module.read("shape").tolist()))
    packing = bytes(module.read("packing").to(torch.uint8).tolist()).decode(errors="replace")
    if packing not in _PACKINGS or module.tensors[packed].dtype not in {torch.uint8, torch.int32}:
        raise UnreadableError(
            f"packing {packing!r} of {module.tensors[packed].dtype} is not read: dequantise it with hqq"
        )
    bits, count = _PACKINGS[packing]
    size, axis = module.number("group_size") or 0, module.number("axis")
    if size < 1 or math.prod(shape) % size or axis not in {0, 1}:
        raise UnreadableError(f"its groups of {size} do not divide a weight of shape {shape}: {ADVICE}")
    groups = math.prod(shape) // size
    rows, columns = (groups, size) if axis == 1 else (size, groups)
    module.check(packed, (-(-rows // count), columns))
    for name in ("scale", "zero"):
        if math.prod(module.shape(name)) != 1:
            module.check(name, (rows, 1) if axis == 1 else (1, columns))

    def decode(read: Read) -> Tensor:
        """Unpack, subtract the zero of each group and multiply by its scale."""
        numbers = read(packed)
        parts = [(numbers >> (bits * (count - 1 - place))) & ((1 << bits) - 1) for place in range(count)]
        values = torch.cat(parts)[:rows].to(torch.float32)
        return values.sub_(read("zero").to(torch.float32)).mul_(read("scale").to(torch.float32)).view(shape)

    return QuantisedWeight(
        name="weight",
        shape=shape,
        quantisation=f"HQQ, {bits} bits",
        parts=(packed, "scale", "zero", "shape", "packing"),
        decode=decode,
    )


def decode_quanto(module: Module, stored: str) -> QuantisedWeight:
    """Describe a weight of quanto: 8 bits with a scale for each row, or 2 or 4 bits in groups."""
    name = stored.partition("._data")[0]
    scale, shift = f"{name}._scale", f"{name}._shift"
    if not stored.endswith("._data._data"):
        return eight_bits(module, name, (stored, scale, None), "quanto, 8 bits")
    rows, size = module.shape(stored) if len(module.shape(stored)) > 1 else (0, 0)
    groups = module.shape(scale)[0] if module.shape(scale) else 0
    module.check(scale, (groups, 1))
    module.check(shift, (groups, 1))
    count = -(-groups // max(rows, 1))
    if count not in {2, 4}:
        raise UnreadableError(f"its {groups} scales do not fit {rows} packed rows: {ADVICE}")
    outputs = module.shape("bias")[0] if "bias" in module.tensors else 0
    if not outputs or groups * size % outputs:
        raise UnreadableError(
            "its shape is not in the file, and there is no bias to tell it: dequantise it with quanto"
        )
    bits = _BYTE // count

    def decode(read: Read) -> Tensor:
        """Unpack, and take each group to its range."""
        packed, offset = read(stored), read(shift)
        values = torch.cat([(packed >> (bits * place)) & ((1 << bits) - 1) for place in range(count)])[:groups].float()
        scales = read(scale).to(torch.float32)
        if offset.dtype.is_floating_point:
            values = values.mul_(scales).sub_(offset.to(torch.float32))
        else:
            values = values.sub_(offset.to(torch.float32)).mul_(scales)
        return values.view(outputs, -1)

    return QuantisedWeight(
        name=name,
        shape=(outputs, groups * size // outputs),
        quantisation=f"quanto, {bits} bits",
        parts=(stored, scale, shift),
        decode=decode,
    )


def decode_torchao(module: Module, stored: str) -> QuantisedWeight:
    """Describe a weight of torchao: integers or floats of 8 bits each, with scales for rows or groups."""
    name = stored.removeprefix("_").removesuffix("_qdata")
    scale, zero = f"_{name}_scale", module.first(f"_{name}_zero_point")
    info = module.tensors[stored]
    grid = module.grid(scale, info.shape)
    integers = info.dtype == torch.int8
    # Packed tensors have scales of other shapes, and those of MX formats may be in the order of a GPU.
    plain = (integers and grid[0] in {1, *info.shape[:1]}) or (info.dtype.is_floating_point and zero is None)
    if not plain or not module.tensors[scale].dtype.is_floating_point or module.tensors[scale].dtype.itemsize == 1:
        raise UnreadableError(
            f"tensors of {info.dtype} with scales of shape {grid} are not read: dequantise it with torchao"
        )
    return eight_bits(module, name, (stored, scale, zero), "torchao, 8 bits")
