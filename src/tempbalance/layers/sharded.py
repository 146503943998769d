"""Parameters that lie in shards over several processes (DTensor: FSDP2, tensor parallelism)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["Whole", "is_sharded", "whole"]


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor, told by its class so that torch.distributed need not be loaded."""
    return any(cls.__name__ == "DTensor" for cls in type(tensor).__mro__)


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor made whole, on every rank: a collective call. Any other tensor as it is."""
    if not is_sharded(tensor):
        return tensor
    sharded: Any = tensor
    with torch.no_grad():
        full: Tensor = sharded.full_tensor()
    return full


class Whole:
    """Makes parameters whole and keeps the last one: the parts of a fused parameter are read one after the other."""

    def __init__(self) -> None:
        self._last: tuple[Tensor, Tensor] | None = None

    def __call__(self, parameter: Tensor) -> Tensor:
        """The whole of a parameter; of one that is not sharded, itself."""
        if not is_sharded(parameter):
            return parameter
        if self._last is None or self._last[0] is not parameter:
            self._last = None  # its memory first
            self._last = parameter, whole(parameter.detach())
        return self._last[1]
