"""A check for formats that address whole modules only."""

from __future__ import annotations

from tempbalance.compress.allocation import Allocation
from tempbalance.errors import AllocationError

__all__ = ["check_whole_weights"]


def check_whole_weights(allocation: Allocation, target: str) -> None:
    """Raise an AllocationError unless sparsity is allocated, to whole weights of modules only."""
    allocation.check_quantity("sparsity")
    for name in allocation:
        if not name.endswith(".weight"):
            raise AllocationError(
                f"{name} is not the whole weight of a module, and {target} can address nothing else: prune with "
                "tempbalance, or allocate to whole fused weights (Select(split=False))"
            )
