"""Integers packed in words, 4-bit floats in bytes, and scales of groups and blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["byte_pairs", "decode_scale", "fp4_values", "in_blocks", "unpack_words", "untiled"]

_WORD = 32
_FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # e2m1; the highest bit is the sign
_E8M0_BIAS = 127
_TILE_ROWS, _TILE_COLUMNS = (4, 32), 4  # cuBLAS stores the four rows r, r + 32, r + 64, r + 96 of a tile together


def unpack_words(words: Tensor, bits: int, count: int, axis: int = -1) -> Tensor:
    """Return unsigned integers of 1 to 8 bits, as uint8, from int32 words along an axis, the lowest bits first.

    If ``count`` integers need all bits of the words, an integer may be in two of them; else each word has
    ``32 // bits`` integers.

    Example:
        >>> unpack_words(torch.tensor([[0x07654321]], dtype=torch.int32), 4, 8)
        tensor([[1, 2, 3, 4, 5, 6, 7, 0]], dtype=torch.uint8)
    """
    words, mask = words.view(torch.int32).movedim(axis, -1), (1 << bits) - 1
    per_word = _WORD // bits
    if _WORD % bits == 0 or words.shape[-1] != math.ceil(count * bits / _WORD):
        parts = [((words >> (bits * place)) & mask).to(torch.uint8) for place in range(per_word)]
        values = torch.stack(parts, -1).flatten(-2)[..., :count]
    else:
        long = torch.nn.functional.pad(words.to(torch.int64) & 0xFFFFFFFF, (0, 1))
        starts = torch.arange(count) * bits
        first, shift = starts // _WORD, starts % _WORD
        values = (((long[..., first] | (long[..., first + 1] << _WORD)) >> shift) & mask).to(torch.uint8)
    return values.movedim(-1, axis)


def byte_pairs(packed: Tensor, table: Tensor, *, low_first: bool) -> Tensor:
    """Return the entries of a table of 16 that the two halves of each byte stand for, next to each other.

    Example:
        >>> byte_pairs(torch.tensor([0x21], dtype=torch.uint8), torch.arange(16.0), low_first=True)
        tensor([1., 2.])
    """
    every = torch.arange(256)
    low, high = table[every % 16], table[every // 16]
    pairs = torch.stack((low, high) if low_first else (high, low), -1)
    return pairs[packed.view(torch.uint8).to(torch.int32)].flatten(-2)


def fp4_values(packed: Tensor) -> Tensor:
    """Return the 4-bit floats (e2m1) in bytes, the lower half of a byte first, as float32.

    Example:
        >>> fp4_values(torch.tensor([0xA3], dtype=torch.uint8))
        tensor([ 1.5000, -1.0000])
    """
    return byte_pairs(packed, torch.tensor([*_FP4, *(-value for value in _FP4)]), low_first=True)


def decode_scale(scale: Tensor) -> Tensor:
    """Return scales as float32; bytes are powers of two (e8m0).

    Example:
        >>> decode_scale(torch.tensor([126, 128], dtype=torch.uint8))
        tensor([0.5000, 2.0000])
    """
    if scale.dtype == torch.uint8:
        return torch.ldexp(torch.ones_like(scale, dtype=torch.float32), scale.to(torch.int32) - _E8M0_BIAS)
    return scale.to(torch.float32)


def untiled(tiles: Tensor, rows: int, columns: int) -> Tensor:
    """Return scales in rows, without padding, that are stored in tiles of 128 x 4, in the order that cuBLAS needs.

    Example:
        >>> untiled(torch.arange(512).view(128, 4), 34, 4)[[0, 1, 32]].tolist()
        [[0, 1, 2, 3], [16, 17, 18, 19], [4, 5, 6, 7]]
    """
    groups, size = _TILE_ROWS
    grid = tiles.reshape(-1, tiles.shape[-1] // _TILE_COLUMNS, size, groups, _TILE_COLUMNS)
    return grid.permute(0, 3, 2, 1, 4).reshape(tiles.shape)[:rows, :columns]


def in_blocks(values: Tensor, factors: Tensor, steps: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return views of contiguous values and of the factors of their blocks that broadcast, to be combined in place.

    ``steps`` are the lengths of a block along each axis; the last block of an axis may be shorter.

    Example:
        >>> values, factors = in_blocks(torch.ones(2, 4), torch.tensor([[2.0, 3.0]]), (2, 2))
        >>> values.mul_(factors).view(2, 4)[0]
        tensor([2., 2., 3., 3.])
    """
    counts = factors.shape
    if all(size == count * step for size, count, step in zip(values.shape, counts, steps, strict=True)):
        grid = [length for pair in zip(counts, steps, strict=True) for length in pair]
        return values.view(grid), factors.reshape([length for count in counts for length in (count, 1)])
    for axis, step in enumerate(steps):
        factors = factors.repeat_interleave(step, axis).narrow(axis, 0, values.shape[axis])
    return values, factors
