"""Sharded parameters (DTensor: FSDP2, tensor parallelism)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "FullTensorCache",
    "class_name",
    "full_tensor",
    "is_sharded",
    "local_tensor",
    "mesh_ranks",
    "num_shards",
    "refresh_fsdp",
    "reshard",
]


def is_sharded(tensor: Tensor) -> bool:
    """Return whether a tensor is a DTensor, by its class name, without an import of torch.distributed."""
    return any(cls.__name__ == "DTensor" for cls in type(tensor).__mro__)


def class_name(module: nn.Module) -> str:
    """Return the name of a module's class, without the subclass that FSDP2 adds."""
    names = [cls.__name__ for cls in type(module).__mro__]
    return names[names.index("FSDPModule") + 1] if "FSDPModule" in names else names[0]


def local_tensor(tensor: Tensor) -> Tensor:
    """Return the shard of this process, or the tensor itself if it is not sharded."""
    sharded: Any = tensor
    return sharded.to_local() if is_sharded(tensor) else tensor


def num_shards(tensor: Tensor) -> int:
    """Return the number of shards of a tensor, 1 if it is not sharded."""
    if not is_sharded(tensor):
        return 1
    sharded: Any = tensor
    return math.prod(
        sharded.device_mesh.size(axis) for axis, placement in enumerate(sharded.placements) if placement.is_shard()
    )


def mesh_ranks(tensor: Tensor) -> tuple[int, ...]:
    """Return the global ranks of the processes with a shard; empty if the tensor is not sharded."""
    sharded: Any = tensor
    return tuple(sharded.device_mesh.mesh.flatten().tolist()) if is_sharded(tensor) else ()


def reshard(model: nn.Module) -> None:
    """Free the full parameters that FSDP2 keeps after an evaluation; the optimizer contains only the shards."""
    for module in _fsdp_modules(model):
        module.reshard()


def refresh_fsdp(model: nn.Module) -> None:
    """Unshard and reshard: FSDP2 reads ``requires_grad`` and dtype of its parameters when it unshards them."""
    for module in _fsdp_modules(model):
        module.unshard()
        module.reshard()


def _fsdp_modules(model: nn.Module) -> list[Any]:
    return [each for each in model.modules() if any(cls.__name__ == "FSDPModule" for cls in type(each).__mro__)]


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor on every rank, which is a collective; return any other tensor unchanged."""
    if not is_sharded(tensor):
        return tensor
    sharded: Any = tensor
    with torch.no_grad():  # shards on the CPU are gathered on the device of the mesh
        full: Tensor = sharded.to(sharded.device_mesh.device_type).full_tensor()
    return full


class FullTensorCache:
    """Gathers parameters and keeps the last one: the parts of a fused parameter are read one after the other."""

    def __init__(self) -> None:
        self._last: tuple[Tensor, Tensor] | None = None

    def __call__(self, parameter: Tensor) -> Tensor:
        """Return the full parameter; one that is not sharded is returned unchanged."""
        if not is_sharded(parameter):
            return parameter
        if self._last is None or self._last[0] is not parameter:
            self._last = None  # free its memory first
            self._last = parameter, full_tensor(parameter.detach())
        return self._last[1]
