"""Integers in words of 32 bits with a scale for each group: compressed-tensors, GPTQ, AWQ, MLX."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tempbalance.layers.dequantise.module import ADVICE, Module, QuantisedWeight, Read, UnreadableError, scaled
from tempbalance.layers.dequantise.packing import decode_scale, fp4_values, unpack_words
from tempbalance.layers.dequantise.with_scales import decode_packed_floats

__all__ = ["decode_awq_or_gptq", "decode_compressed", "decode_gptq", "decode_mlx"]

_WORD = 32
_BITS = range(1, 9)
_AWQ_BITS, _AWQ_ORDER = 4, (0, 4, 1, 5, 2, 6, 3, 7)  # position in its word of each of eight columns


def decode_compressed(module: Module, packed: str) -> QuantisedWeight:
    """Describe a weight of compressed-tensors: integers in words, or 4-bit floats in bytes."""
    name = packed.removesuffix("_packed")
    scale, zero, indices = f"{name}_scale", module.first(f"{name}_zero_point"), module.first(f"{name}_g_idx")
    if module.tensors[packed].dtype == torch.uint8:
        return decode_packed_floats(module, name, packed, scale)
    *outer, width = module.shape(packed)
    module.check(f"{name}_shape", (len(outer) + 1,))
    shape = tuple(map(int, module.read(f"{name}_shape").tolist()))
    bits = _bits(width, shape[-1])
    module.check(packed, (*shape[:-1], width if bits else math.ceil(shape[-1] / _WORD)))
    grid, steps = module.grid(scale, shape), module.steps(name, shape, scale)
    if zero is not None and _bits(module.shape(zero)[-2], shape[-2]) != bits:
        module.check(zero, (*shape[:-2], math.ceil(shape[-2] * bits / _WORD), grid[-1]))
    if indices is not None:
        module.check(indices, shape[-1:])
    parts = [packed, f"{name}_shape", scale, *filter(None, (zero, indices))]

    def decode(read: Read) -> Tensor:
        """Unpack, and multiply by the scales of the groups; the middle of the range stands for zero."""
        scales = read(scale).to(torch.float32).reshape(grid)
        zeros = torch.full_like(scales, 1 << (bits - 1))
        if zero is not None:
            zeros = unpack_words(read(zero), bits, shape[-2], axis=-2).to(torch.float32)
        values, own = unpack_words(read(packed), bits, shape[-1]), steps
        if indices is not None:  # groups of columns that are not neighbours
            chosen, own = _checked(read(indices), grid[-1]), [*steps[:-1], 1]
            scales, zeros = scales[..., chosen], zeros[..., chosen]
        return scaled(values, scales, own, zeros)

    label = f"compressed-tensors, {bits} bits"
    return QuantisedWeight(name=name, shape=shape, quantisation=label, parts=tuple(parts), decode=decode)


def _bits(words: int, count: int) -> int:
    """Return the bits of integers that are packed in words, without gaps or whole ones in each word; 0 if none fit."""
    dense = [bits for bits in _BITS if words == math.ceil(count * bits / _WORD)]
    whole = [bits for bits in _BITS if words == math.ceil(count / (_WORD // bits))]
    return next(iter([*dense, *whole]), 0)


def _checked(indices: Tensor, groups: int) -> Tensor:
    """Return the group of each column; an UnreadableError if there is no such group."""
    if not bool(((indices >= 0) & (indices < groups)).all()):
        raise UnreadableError(f"its g_idx names a group that is not one of its {groups}: {ADVICE}")
    return indices.to(torch.int64)


def decode_awq_or_gptq(module: Module, packed: str) -> QuantisedWeight:
    """Describe a weight that AWQ packs along its outputs, or GPTQ along its inputs."""
    outputs = module.shape("scales")[-1:]
    return (decode_gptq if module.shape(packed)[-1:] == outputs else _decode_awq)(module, packed)


def decode_gptq(module: Module, packed: str) -> QuantisedWeight:
    """Describe a weight of GPTQ: ``(in * bits / 32, out)``, with the group of each input in ``g_idx``."""
    words, outputs = module.shape(packed) if len(module.shape(packed)) > 1 else (0, 0)
    groups = math.prod(module.shape("scales")[:-1])
    module.check("scales", (groups, outputs))
    zero, indices = module.first("qzeros"), module.first("g_idx")
    bits = (module.shape("qzeros")[-1] * _WORD // max(outputs, 1)) if zero else module.integer("bits")
    if bits is None or bits not in _BITS:
        raise UnreadableError(f"its number of bits ({bits}) is not known: put config.json beside the file")
    if zero is not None:
        module.check(zero, (groups, outputs * bits // _WORD))
    inputs = words * _WORD // bits
    if indices is not None:
        module.check(indices, (inputs,))
    offset = 0 if module.setting("checkpoint_format") == "gptq_v2" else 1
    steps = [inputs // max(groups, 1), 1]
    if groups * steps[0] != inputs and indices is None:
        raise UnreadableError(f"its {groups} groups do not divide {inputs} inputs: {ADVICE}")

    def decode(read: Read) -> Tensor:
        """Unpack, subtract the zero of each group, which the first version stores minus one, and multiply."""
        values, scales = unpack_words(read(packed), bits, inputs, axis=0), read("scales").to(torch.float32)
        zeros = torch.full_like(scales, 1 << (bits - 1))
        if zero is not None:
            zeros = ((unpack_words(read(zero), bits, outputs).int() + offset) & ((1 << bits) - 1)).to(torch.float32)
        chosen = None if indices is None else _checked(read(indices), groups)
        if chosen is None or (groups * steps[0] == inputs and torch.equal(chosen, torch.arange(inputs) // steps[0])):
            return scaled(values, scales, steps, zeros).mT
        return scaled(values, scales[chosen], (1, 1), zeros[chosen]).mT

    parts = (packed, "scales", *filter(None, (zero, indices)))
    return QuantisedWeight(
        name="weight", shape=(outputs, inputs), quantisation=f"GPTQ, {bits} bits", parts=parts, decode=decode
    )


def _decode_awq(module: Module, packed: str) -> QuantisedWeight:
    """Describe a weight of AWQ: ``(in, out / 8)``, the columns of a word in an order of their own."""
    inputs, words = module.shape(packed) if len(module.shape(packed)) > 1 else (0, 0)
    groups, outputs = math.prod(module.shape("scales")[:-1]), words * _WORD // _AWQ_BITS
    module.check("scales", (groups, outputs))
    module.check("qzeros", (groups, words))
    if not groups or inputs % groups:
        raise UnreadableError(f"its {groups} groups do not divide {inputs} inputs: {ADVICE}")

    def unpack(words: Tensor) -> Tensor:
        """Return the columns in their order."""
        values = unpack_words(words, _AWQ_BITS, outputs).view(-1, len(_AWQ_ORDER))
        return values[:, list(_AWQ_ORDER)].view(-1, outputs)

    def decode(read: Read) -> Tensor:
        """Unpack, subtract the zero of each group and multiply."""
        zeros, scales = unpack(read("qzeros")).to(torch.float32), read("scales").to(torch.float32)
        return scaled(unpack(read(packed)), scales, (inputs // groups, 1), zeros).mT

    return QuantisedWeight(
        name="weight", shape=(outputs, inputs), quantisation=f"AWQ, {_AWQ_BITS} bits",
        parts=(packed, "scales", "qzeros"), decode=decode,
    )  # fmt: skip


def decode_mlx(module: Module, packed: str) -> QuantisedWeight:
    """Describe a weight of MLX; the number of bits is in config.json only."""
    *outer, words = module.shape(packed)
    groups = module.shape("scales")[-1] if outer else 0
    module.check("scales", (*outer, groups))
    mode, bias = module.setting("mode"), module.first("biases")
    bits = module.integer("bits")
    if bits is None or bits not in _BITS or module.tensors[packed].dtype not in {torch.uint32, torch.int32}:
        raise UnreadableError("its number of bits is not known: put the config.json of the model beside the file")
    if mode not in {None, "affine", "mxfp4", "mxfp8", "nvfp4"} or (mode in {None, "affine"}) == (bias is None):
        raise UnreadableError(f"mode {mode!r} is not read: dequantise it with mlx")
    if bias is not None:
        module.check(bias, (*outer, groups))
    columns = words * _WORD // bits
    if not groups or columns % groups:
        raise UnreadableError(f"its {groups} scales do not divide rows of {columns} entries: {ADVICE}")
    steps = [*(1,) * len(outer), columns // groups]

    def decode(read: Read) -> Tensor:
        """Multiply by the scale of each group, and add its bias."""
        values, scales = read(packed), read("scales")
        own = steps[-values.ndim :]
        if bias is not None:  # q * scale + bias = (q + bias / scale) * scale, without a division by zero
            result = scaled(unpack_words(values, bits, columns), scales.to(torch.float32), own)
            return result.view(*values.shape[:-1], groups, -1).add_(read(bias).to(torch.float32)[..., None]).flatten(-2)
        if mode == "nvfp4":
            scales = scales.view(torch.float8_e4m3fn)
        numbers = values.view(torch.float8_e4m3fn) if mode == "mxfp8" else fp4_values(values)
        return scaled(numbers, decode_scale(scales), own)

    return QuantisedWeight(
        name=packed,
        shape=(*outer, columns),
        quantisation=f"MLX{'' if mode in {None, 'affine'} else f' {mode}'}, {bits} bits",
        parts=(packed, "scales", *filter(None, (bias,))),
        decode=decode,
        stacked=len(outer) > 1,
    )
