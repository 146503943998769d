"""Weights of 8 bits with scales, and of 4-bit floats with scales: FP8, INT8, MXFP4, MXFP8, NVFP4."""

from __future__ import annotations

import dataclasses
import math
import re

import torch
from torch import Tensor

from tempbalance.layers.dequantise.module import ADVICE, Module, QuantisedWeight, Read, UnreadableError, scaled
from tempbalance.layers.dequantise.packing import decode_scale, fp4_values, untiled
from tempbalance.spectra.matrices import MATRIX_NDIM

__all__ = ["decode_mxfp4", "decode_packed_floats", "decode_with_scale", "eight_bits"]

_MX_GROUP, _NV_GROUP = 32, 16
_POWERS = {torch.uint8, getattr(torch, "float8_e8m0fnu", torch.uint8)}  # dtypes of scales that are powers of two
_STACK_NDIM = 3
_COMFY = "comfy_quant"  # tensor in which ComfyUI describes the format of a module
_TILED, _TILE = ("nvfp4", "mxfp8"), (128, 4)  # formats of ComfyUI with scales in tiles, and the size of these
_IN_ROWS = re.compile(r"float8_e\w+|int8_(tensor|channel|row|block)wise")  # formats of ComfyUI that others have, too


def decode_with_scale(module: Module, weight: str) -> QuantisedWeight:
    """Describe a weight of 8 bits with a scale for all, each channel or each block, or of packed 4-bit floats."""
    if _COMFY in module.tensors and _comfy_format(module) in _TILED:
        return _decode_tiled(module, weight)
    info = module.tensors[weight]
    stem, _, attribute = weight.rpartition(".")
    found = [f"{weight}_scale", f"{weight}_scale_inv", f"{weight}_scales", f"{weight}.scale", f"{weight}.scale_weight"]
    scale = module.first(*found, f"{stem}.scale_{attribute}" if stem else f"scale_{weight}", "scale")
    if scale is None:
        raise UnreadableError(f"its scale is missing: {ADVICE}")
    powers = module.tensors[scale].dtype in _POWERS
    is_pairs = info.dtype == torch.uint8 or "float4" in str(info.dtype)
    if info.dtype == torch.uint8 and math.prod(module.shape(scale)) == 1:
        raise UnreadableError("packed ternary weights (BitNet) are not read: dequantise it with Transformers")
    if is_pairs or (info.dtype == torch.int8 and (powers or module.setting("quant_method") == "fp8")):
        return decode_packed_floats(module, weight, weight, scale)
    if scale == "scale" and not info.dtype.is_floating_point:  # it may be that of the outputs
        raise UnreadableError(f"{_short(info.dtype)} with a tensor named scale is not a layout that is read: {ADVICE}")
    if info.dtype != torch.int8 and not info.dtype.is_floating_point:
        raise UnreadableError(f"{_short(info.dtype)} with scales is not a layout that is read")
    kind = "MXFP8" if powers and module.shape(scale)[-1] * _MX_GROUP == info.shape[-1] else _short(info.dtype)
    zero = module.first(f"{weight}_zero_point")
    return eight_bits(module, weight, (weight, scale, zero), f"{kind} with scales, 8 bits")


def _comfy_format(module: Module) -> str:
    """Return the format by ComfyUI's description of a module; an UnreadableError if it is not read."""
    described = module.described(_COMFY)
    name = str(described.get("format"))
    if described.get("convrot") or not (name in _TILED or _IN_ROWS.fullmatch(name)):
        rotated = " (rotated)" if described.get("convrot") else ""
        raise UnreadableError(f"ComfyUI's format {name}{rotated} is not read: load the unquantised checkpoint")
    return name


def _decode_tiled(module: Module, weight: str) -> QuantisedWeight:
    """Describe NVFP4 or MXFP8 of ComfyUI: scales in tiles, and the higher half of a byte first."""
    scale, is_pairs = f"{weight}_scale", module.tensors[weight].dtype == torch.uint8
    if len(module.shape(weight)) != MATRIX_NDIM:
        raise UnreadableError(f"its tensor {weight} has shape {module.shape(weight)}, expected a matrix: {ADVICE}")
    rows, width = module.shape(weight)
    columns = 2 * width // _NV_GROUP if is_pairs else width // _MX_GROUP
    module.check(scale, [-(-size // step) * step for size, step in zip((rows, columns), _TILE, strict=True)])
    tensors = {name: info for name, info in module.tensors.items() if name != _COMFY}
    tensors[scale] = tensors[scale]._replace(shape=(rows, columns))
    plain = decode_with_scale(dataclasses.replace(module, tensors=tensors), weight)

    def decode(read: Read) -> Tensor:
        """Decode the layout without tiles, in which the lower half of a byte is the first."""

        def read_plain(part: str) -> Tensor:
            stored = read(part)
            if part == scale:
                return untiled(stored, rows, columns)
            return (stored << 4) | (stored >> 4) if part == weight and is_pairs else stored

        return plain.decode(read_plain)

    return dataclasses.replace(plain, decode=decode)


def eight_bits(module: Module, name: str, stored: tuple[str, str, str | None], quantisation: str) -> QuantisedWeight:
    """Describe a weight of 8 bits; ``stored`` has the names of its values, its scales, and its zeros or None."""
    values, scale, zero = stored
    shape, block = module.shape(values), module.setting("weight_block_size")
    block = block if isinstance(block, list) and all(type(size) is int for size in block) else []
    grid, steps = module.grid(scale, shape), module.steps(name, shape, scale, block[-len(shape) :])
    if zero is not None and math.prod(module.shape(zero)) != math.prod(grid):
        module.check(zero, module.shape(scale))

    def decode(read: Read) -> Tensor:
        """Subtract the zeros and multiply by the scales."""
        numbers = read(values)
        own = grid[-numbers.ndim :]  # of one matrix of a stack
        zeros = None if zero is None else read(zero).to(torch.float32).reshape(own)
        return scaled(numbers, decode_scale(read(scale)).reshape(own), steps[-numbers.ndim :], zeros)

    return QuantisedWeight(
        name=name,
        shape=shape,
        quantisation=quantisation,
        parts=(values, scale) if zero is None else (values, scale, zero),
        decode=decode,
        stacked=len(shape) == _STACK_NDIM,
    )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def decode_packed_floats(module: Module, name: str, packed: str, scale: str) -> QuantisedWeight:
    """Describe a weight of 4-bit floats, two in a byte, with a scale for each group of a row: NVFP4 or MXFP4."""
    *outer, width = module.shape(packed)
    shape = (*outer, 2 * width)
    power = module.tensors[scale].dtype in _POWERS or module.shape(scale)[-1:] == (shape[-1] // _MX_GROUP,)
    group = _MX_GROUP if power else _NV_GROUP
    module.check(scale, (*outer, shape[-1] // group))
    over, times = module.first(f"{name}_global_scale"), module.first(f"{name}_scale_2")
    whole = over or times
    if not power and whole is None:
        raise UnreadableError(f"its global scale is missing: {ADVICE}")
    if whole is not None and math.prod(module.shape(whole)) != 1:
        raise UnreadableError(f"its tensor {whole} has shape {module.shape(whole)}, expected one number: {ADVICE}")
    steps = [*(1,) * len(outer), group]

    def decode(read: Read) -> Tensor:
        """Multiply by the scales of the groups, which are relative to one of the tensor."""
        scales = decode_scale(read(scale))
        if over is not None:  # compressed-tensors stores the inverse
            scales = scales / read(over).to(torch.float32).reshape(())
        elif times is not None:
            scales = scales * read(times).to(torch.float32).reshape(())
        return scaled(fp4_values(read(packed)), scales, steps[-scales.ndim :])

    return QuantisedWeight(
        name=name,
        shape=shape,
        quantisation="MXFP4, 4 bits" if power else "NVFP4, 4 bits",
        parts=(packed, scale) if whole is None else (packed, scale, whole),
        decode=decode,
        stacked=len(shape) == _STACK_NDIM,
    )


def decode_mxfp4(module: Module, blocks: str) -> QuantisedWeight:
    """Describe experts in MXFP4 as gpt-oss has them: ``(experts, out, groups, 16)``, for ``(experts, in, out)``."""
    name = blocks.removesuffix("_blocks")
    scale = f"{name}_scales"
    *outer, groups, size = module.shape(blocks)
    module.check(scale, (*outer, groups))
    if 2 * size != _MX_GROUP or not outer:
        raise UnreadableError(f"its blocks have shape {module.shape(blocks)}, expected {_MX_GROUP // 2} bytes a block")
    stack = len(outer) == _STACK_NDIM - 1  # Transformers transposes the matrices of experts
    shape = (*outer[:-1], groups * _MX_GROUP, outer[-1]) if stack else (*outer, groups * _MX_GROUP)

    def decode(read: Read) -> Tensor:
        """Multiply each group by its power of two."""
        values = fp4_values(read(blocks)).mul_(decode_scale(read(scale)).unsqueeze(-1)).flatten(-2)
        return values.mT if stack else values

    return QuantisedWeight(
        name=name, shape=shape, quantisation="MXFP4, 4 bits", parts=(blocks, scale), decode=decode, stacked=stack
    )
