"""Parameters that lie in shards over several processes (DTensor: FSDP2, tensor parallelism)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "FullTensorCache",
    "class_name",
    "is_sharded",
    "local",
    "mesh_ranks",
    "refresh_fsdp",
    "reshard",
    "shards",
    "whole",
]


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor, told by its class so that torch.distributed need not be loaded."""
    return any(cls.__name__ == "DTensor" for cls in type(tensor).__mro__)


def class_name(module: nn.Module) -> str:
    """The name of a module's class, without the subclass that FSDP2 makes of it."""
    names = [cls.__name__ for cls in type(module).__mro__]
    return names[names.index("FSDPModule") + 1] if "FSDPModule" in names else names[0]


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    sharded: Any = tensor
    return sharded.to_local() if is_sharded(tensor) else tensor


def shards(tensor: Tensor) -> int:
    """Into how many pieces a tensor is divided."""
    if not is_sharded(tensor):
        return 1
    sharded: Any = tensor
    return math.prod(
        sharded.device_mesh.size(axis) for axis, placement in enumerate(sharded.placements) if placement.is_shard()
    )


def mesh_ranks(tensor: Tensor) -> tuple[int, ...]:
    """Numbers of the processes that hold a sharded tensor together; none for any other."""
    sharded: Any = tensor
    return tuple(sharded.device_mesh.mesh.flatten().tolist()) if is_sharded(tensor) else ()


def reshard(model: nn.Module) -> None:
    """Give up what FSDP2 has left whole after an evaluation: the optimizer knows the shards only."""
    for module in model.modules():
        if any(cls.__name__ == "FSDPModule" for cls in type(module).__mro__):
            wrapped: Any = module
            wrapped.reshard()


def refresh_fsdp(model: nn.Module) -> None:
    """Let FSDP2 see which parameters are trained now: it looks at them, and their dtypes, when it makes them whole."""
    for module in model.modules():
        if any(cls.__name__ == "FSDPModule" for cls in type(module).__mro__):
            wrapped: Any = module
            wrapped.unshard()
            wrapped.reshard()


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor made whole, on every rank: a collective call. Any other tensor as it is."""
    if not is_sharded(tensor):
        return tensor
    sharded: Any = tensor
    with torch.no_grad():  # shards that are kept on the CPU meet where the processes do
        full: Tensor = sharded.to(sharded.device_mesh.device_type).full_tensor()
    return full


class FullTensorCache:
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
