"""A quantised weight, and the stored tensors of the module that it is in."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tempbalance.errors import WeightError
from tempbalance.layers.dequantise.packing import in_blocks
from tempbalance.layers.fused import Index
from tempbalance.layers.names import TensorInfo

__all__ = ["ADVICE", "Decoder", "Module", "QuantisedWeight", "Read", "UnreadableError", "scaled"]

Read = Callable[[str], Tensor]
ADVICE = "download or convert the checkpoint again, or load the unquantised one if it is of another format"
_BLOCK, _SHORTEST = 128, 8  # length of a block of FP8 weights if no other is known; what a length is a multiple of


class UnreadableError(WeightError):
    """A quantised weight that does not have the layout of its format."""


@dataclass(frozen=True, kw_only=True)
class QuantisedWeight:
    """A weight that is stored quantised.

    Attributes:
        name: Its name in its module, when it is not quantised.
        shape: Its shape.
        quantisation: Format and bits.
        parts: Names in its module of the stored tensors that it consists of.
        decode: Returns the weight as float32, given a function that reads a part.
        stacked: Whether the first axis of each part is that of the weight, so that one entry of it can be read alone.
    """

    name: str
    shape: tuple[int, ...]
    quantisation: str
    parts: tuple[str, ...]
    decode: Callable[[Read], Tensor]
    stacked: bool = False


@dataclass(frozen=True, kw_only=True)
class Module:
    """The stored tensors of one module.

    Attributes:
        path: Name of the module.
        tensors: Shapes and dtypes, by names in the module.
        read_at: Reads a tensor, or the part of it at an index.
        settings: ``quantization_config`` of the configuration (``quantization`` of MLX), or an empty mapping.
    """

    path: str
    tensors: Mapping[str, TensorInfo]
    read_at: Callable[[str, Index], Tensor]
    settings: Mapping[str, Any]

    def read(self, name: str) -> Tensor:
        """Read a tensor."""
        return self.read_at(name, ())

    def first(self, *names: str) -> str | None:
        """Return the first of these names that is stored."""
        return next((name for name in names if name in self.tensors), None)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor; an UnreadableError if it is missing."""
        if name not in self.tensors:
            raise UnreadableError(f"its tensor {name} is missing: {ADVICE}")
        return self.tensors[name].shape

    def check(self, name: str, expected: Sequence[int]) -> None:
        """Raise an UnreadableError unless a tensor has a shape."""
        found = self.shape(name)
        if found != tuple(expected):
            raise UnreadableError(f"its tensor {name} has shape {found}, expected {tuple(expected)}: {ADVICE}")

    def number(self, name: str) -> int | None:
        """Return a stored integer, or None if there is none."""
        if name not in self.tensors or math.prod(self.tensors[name].shape) != 1:
            return None
        return int(self.read(name).item())

    def setting(self, *names: str) -> Any:
        """Return the first of these settings that there is, one of this module before one of all; else None."""
        own = self.settings.get(self.path)
        sources = [own, self.settings] if isinstance(own, Mapping) else [self.settings]
        return next((source[name] for source in sources for name in names if source.get(name) is not None), None)

    def integer(self, *names: str) -> int | None:
        """Return the first of these settings if it is a positive integer, else None."""
        value = self.setting(*names)
        return value if type(value) is int and value > 0 else None

    def described(self, name: str) -> dict[str, Any]:
        """Return the JSON object that a tensor of bytes spells."""
        try:
            parsed = json.loads(bytes(self.read(name).view(torch.uint8).tolist()))
        except ValueError as error:
            raise UnreadableError(f"its tensor {name} is not JSON: download the checkpoint again") from error
        if not isinstance(parsed, dict):
            raise UnreadableError(f"its tensor {name} is not a JSON object: download the checkpoint again")
        return parsed

    def steps(self, weight: str, shape: Sequence[int], factors: str, block: Sequence[int | None] = ()) -> list[int]:
        """Return the lengths, along each axis, of the blocks of a weight that have one factor each.

        There is one factor in all, one for each entry of the first axes, or one for each block. ``block`` has the
        lengths by the configuration, for the last axes, or None if it has none; by default those of compressed-tensors.

        Raises:
            UnreadableError: The factors do not fit the weight.
        """
        counts = self.grid(factors, shape)
        block = (block or self._configured_block())[-len(shape) :]
        known = [*(None,) * (len(shape) - len(block)), *block]
        fp8 = any("float8" in str(info.dtype) for name, info in self.tensors.items() if name != factors)
        found = []
        for size, count, configured in zip(shape, counts, known, strict=True):
            equal = size // max(count, 1)
            equal = 0 if equal % _SHORTEST else equal
            guesses = (_BLOCK, equal) if fp8 else (equal, _BLOCK)  # only the last block of FP8 may be shorter
            steps = [size] if count == 1 else [1] if count == size else [configured or 0, *guesses]
            step = next((step for step in steps if step and -(-size // step) == count), None)
            if step is None:
                raise UnreadableError(
                    f"its scales ({factors}) of shape {self.shape(factors)} do not fit {weight} of shape "
                    f"{tuple(shape)}: {ADVICE}"
                )
            found.append(step)
        return found

    def _configured_block(self) -> Sequence[int | None]:
        """Return the lengths of blocks along the last axes by compressed-tensors; empty if it has none, or several."""
        groups = self.setting("config_groups")
        each = [group for group in groups.values() if isinstance(group, Mapping)] if isinstance(groups, Mapping) else []
        schemes = [group["weights"] for group in each if isinstance(group.get("weights"), Mapping)]
        blocks = [scheme.get("block_structure") or [scheme.get("group_size")] for scheme in schemes]
        block = blocks[0] if blocks and all(other == blocks[0] for other in blocks) else []
        return block if isinstance(block, list) and all(type(size) is int and size > 0 for size in block) else []

    def grid(self, factors: str, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of factors with as many axes as the weight."""
        counts = self.shape(factors)
        if math.prod(counts) == 1:
            return (1,) * len(shape)
        if len(counts) > len(shape):
            raise UnreadableError(f"its scales ({factors}) have shape {counts}: {ADVICE}")
        return (*counts, *(1,) * (len(shape) - len(counts)))


Decoder = Callable[[Module, str], QuantisedWeight]


def scaled(values: Tensor, scales: Tensor, steps: Sequence[int], zeros: Tensor | None = None) -> Tensor:
    """Return ``(values - zeros) * scales`` as float32, with one scale and zero for each block."""
    result = values.to(torch.float32).contiguous()
    for factors, combine in ((zeros, Tensor.sub_), (scales, Tensor.mul_)):
        if factors is not None:
            combine(*in_blocks(result, factors, steps))
    return result
