"""Number formats of quantized weights: what they cost in bits, and rounding to the nearest value."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from tempbalance.compress.layer_allocation import LayerAllocation
from tempbalance.errors import AllocationError, check_integer, check_type
from tempbalance.spectra.matrices import MATRIX_NDIM

__all__ = ["FORMATS", "WeightFormat", "find_format", "format_advice", "format_of", "integers_that_fit"]

_E4M3_MAX, _E2M1_MAX = 448.0, 6.0
_HALF = 16  # bits
_SMALLEST_BLOCK, _LARGEST_BLOCK = 16, 128  # of integers, as quantizers have them
_INTEGER = re.compile(r"int(?P<bits>[2-8])(_g(?P<block>[1-9][0-9]{0,5}))?")
_Rounding = Callable[[Tensor], Tensor]  # of float32 blocks (rows, blocks, columns of a block)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFormat:
    """A number format of weights.

    Attributes:
        name: Its name, such as ``"nvfp4"`` or ``"int4_g128"``.
        bits: Bits of one weight without its scale.
        block: Columns (inputs) of a row that share a scale; None for all columns of a row.
        scale_bits: Bits of that scale; 0 without one.
        tensor_bits: Bits of a scale of the whole weight.
        rounding: Rounds float32 blocks of shape ``(rows, blocks, columns)`` to the nearest values.

    Example:
        >>> nvfp4 = find_format("nvfp4")
        >>> nvfp4.cost((64, 64)) / 64**2  # 4 bits, 8 of a scale per 16 weights, 32 of the scale of the weight
        4.5078125
        >>> nvfp4.fits((64, 40))
        False
    """

    name: str
    bits: int
    block: int | None = None
    scale_bits: int = 0
    tensor_bits: int = 0
    rounding: _Rounding

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return whether a weight is a matrix ``(outputs, inputs)`` whose columns are whole blocks."""
        return len(shape) == MATRIX_NDIM and shape[1] % (self.block or 1) == 0

    def cost(self, shape: tuple[int, ...]) -> int:
        """Return the bits of a weight ``(outputs, inputs)`` with all its scales."""
        rows, columns = shape
        return rows * (columns * self.bits + columns // (self.block or columns) * self.scale_bits) + self.tensor_bits

    def round(self, weight: Tensor) -> Tensor:
        """Round a weight ``(outputs, inputs)`` to the nearest values, in its own dtype.

        Args:
            weight: The weight, of a shape that fits.

        Returns:
            The rounded weight.

        Example:
            >>> find_format("int2").round(torch.tensor([[0.5, -0.75, 0.2]]))
            tensor([[ 0.5000, -1.0000,  0.0000]])
        """
        rows, columns = weight.shape
        blocks = weight.detach().float().reshape(rows, -1, self.block or columns)
        return self.rounding(blocks).reshape(weight.shape).to(weight.dtype)


def find_format(name: str) -> WeightFormat:
    """Return a format by its name.

    ``int2`` to ``int8``: symmetric integers with a bfloat16 scale per row, or per 128 columns as ``int4_g128`` (any
    block). ``fp8``: E4M3 with a bfloat16 scale per row. ``mxfp4``, ``mxfp8``: OCP microscaling, E2M1 or E4M3 with a
    power of two per 32 columns. ``nvfp4``: E2M1 with an E4M3 scale per 16 columns and a float32 scale per weight.
    ``q4_0``, ``q5_0``, ``q8_0``: of GGUF, with a float16 scale per 32 columns. ``bf16``, ``fp16``: no scale.

    Args:
        name: The name.

    Returns:
        The format.

    Raises:
        AllocationError: There is no such format.

    Example:
        >>> find_format("int4_g128").block, find_format("mxfp4").scale_bits
        (128, 8)
    """
    check_type("a format", name, str)
    if name in FORMATS:
        return FORMATS[name]
    match = _INTEGER.fullmatch(name)
    if match is None:
        known = ", ".join(FORMATS)
        raise AllocationError(f"unknown format {name!r}: use int2 to int8, int4_g128 (any bits and block), {known}")
    bits = int(match["bits"])
    block = int(match["block"]) if match["block"] else None
    return WeightFormat(name=name, bits=bits, block=block, scale_bits=16, rounding=_integers(bits))


def format_of(layer: LayerAllocation, group_size: int | None = None) -> WeightFormat:
    """Return the format of a layer, that of integers for a plain width."""
    if group_size is not None:
        check_integer("group_size", group_size, 1)
    if layer.format or layer.bits == _HALF:
        return find_format(layer.format or "bf16")
    try:
        return find_format(f"int{layer.bits:g}" + (f"_g{group_size}" if group_size else ""))
    except AllocationError:
        raise AllocationError(
            f"{layer.name} has {layer.bits:g} bits and no format: plain widths are rounded to 2 to 8 or 16 bits"
        ) from None


def integers_that_fit(shapes: Iterable[tuple[int, ...]]) -> str:
    """Return the format of 4-bit integers with the largest block, up to 128, that divides the columns of all weights.

    Example:
        >>> integers_that_fit([(96, 576), (576, 1536)])
        'int4_g64'
    """
    common = math.gcd(*(shape[-1] for shape in shapes), _LARGEST_BLOCK)
    return f"int4_g{common}" if common >= _SMALLEST_BLOCK else "int4"


def format_advice(layers: Iterable[LayerAllocation]) -> str:
    """Return which formats fit all layers, and how to ask for them."""
    fitting = integers_that_fit(layer.shape for layer in layers)
    others = fitting.replace("4", "8", 1)
    return f"allocate with formats that fit, such as --formats {fitting},{others}, or export with another group_size"


def _largest(blocks: Tensor) -> Tensor:
    return blocks.abs().amax(dim=-1, keepdim=True)


def _divide(blocks: Tensor, scale: Tensor) -> Tensor:
    """Divide by a scale; where it is zero, so is the result."""
    return torch.where(scale == 0, 0.0, blocks / torch.where(scale == 0, 1.0, scale))


def _integers(bits: int) -> _Rounding:
    """Round as compressed-tensors does: the range of ``2^bits`` integers is twice the largest weight."""
    half = 1 << (bits - 1)

    def rounding(blocks: Tensor) -> Tensor:
        scale = (_largest(blocks) / (half - 0.5)).bfloat16().float()
        return _divide(blocks, scale).round().clamp(-half, half - 1) * scale

    return rounding


def _e2m1(x: Tensor) -> Tensor:
    """Round to 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives, ties to the even mantissa."""
    size = x.abs()
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))  # noqa: PLR2004
    return ((x / step).round() * step).clamp(-_E2M1_MAX, _E2M1_MAX)


def _e4m3(x: Tensor) -> Tensor:
    return x.clamp(-_E4M3_MAX, _E4M3_MAX).to(torch.float8_e4m3fn).float()


def _fp8(blocks: Tensor) -> Tensor:
    scale = (_largest(blocks) / _E4M3_MAX).bfloat16().float()
    return _e4m3(_divide(blocks, scale)) * scale


def _microscaling(elements: _Rounding, most: float) -> _Rounding:
    """Round by the OCP MX specification 1.0, section 6.3: the power of two is that of the largest weight, floored."""
    offset = math.floor(math.log2(most))

    def rounding(blocks: Tensor) -> Tensor:
        largest = _largest(blocks)
        exponent = torch.frexp(largest).exponent - 1 - offset
        scale = torch.ldexp(torch.ones_like(largest), exponent.clamp(-126, 127))
        return elements(blocks / scale) * scale

    return rounding


def _nvfp4(blocks: Tensor) -> Tensor:
    whole = blocks.abs().amax() / (_E4M3_MAX * _E2M1_MAX)
    scale = _e4m3(_divide(_largest(blocks) / _E2M1_MAX, whole)) * whole
    return _e2m1(_divide(blocks, scale)) * scale


def _gguf(bits: int) -> _Rounding:
    """Round as GGUF's Q4_0 and Q5_0: the weight of largest magnitude is the lowest integer; ties away from zero."""
    half = 1 << (bits - 1)

    def rounding(blocks: Tensor) -> Tensor:
        scale = blocks.gather(-1, blocks.abs().argmax(dim=-1, keepdim=True)) / -half
        places = (_divide(blocks, scale) + half + 0.5).floor().clamp(0, 2 * half - 1)
        return (places - half) * scale.half().float()

    return rounding


def _q8_0(blocks: Tensor) -> Tensor:
    scale = _largest(blocks) / 127
    exact = _divide(blocks, scale)
    return exact.sign() * (exact.abs() + 0.5).floor() * scale.half().float()


FORMATS: dict[str, WeightFormat] = {
    each.name: each
    for each in (
        WeightFormat(name="fp8", bits=8, scale_bits=16, rounding=_fp8),
        WeightFormat(name="mxfp4", bits=4, block=32, scale_bits=8, rounding=_microscaling(_e2m1, _E2M1_MAX)),
        WeightFormat(name="mxfp8", bits=8, block=32, scale_bits=8, rounding=_microscaling(_e4m3, _E4M3_MAX)),
        WeightFormat(name="nvfp4", bits=4, block=16, scale_bits=8, tensor_bits=32, rounding=_nvfp4),
        WeightFormat(name="q4_0", bits=4, block=32, scale_bits=16, rounding=_gguf(4)),
        WeightFormat(name="q5_0", bits=5, block=32, scale_bits=16, rounding=_gguf(5)),
        WeightFormat(name="q8_0", bits=8, block=32, scale_bits=16, rounding=_q8_0),
        WeightFormat(name="bf16", bits=16, rounding=lambda blocks: blocks.bfloat16().float()),
        WeightFormat(name="fp16", bits=16, rounding=lambda blocks: blocks.half().float()),
    )
}
