"""A check for formats that address whole modules only."""

from __future__ import annotations

from tempbalance.compress.allocation import Allocation
from tempbalance.errors import AllocationError

__all__ = ["check_whole_weights"]


def check_whole_weights(allocation: Allocation, target: str) -> None:
    """Check that an allocation is one of sparsity, over whole weights of modules.

    Args:
        allocation: The allocation.
        target: Name of the format, for the message.

    Raises:
        AllocationError: It allocates another quantity, or a layer is a part of a fused weight or an expert in a stack.
    """
    allocation.check_quantity("sparsity")
    for name in allocation:
        if not name.endswith(".weight"):
            raise AllocationError(
                f"{name} is not the whole weight of a module, and {target} can address nothing else: prune with "
                "tempbalance, or allocate to whole fused weights (Select(split=False))"
            )
