"""One budget (of zeros, bits, LoRA parameters), shared out over layers by what their spectra say: plans, and files."""

from __future__ import annotations

from tempbalance.allocation.bits import BitAllocation, BitShare, allocate_bits, export_bits
from tempbalance.allocation.ranks import RankAllocation, RankShare, allocate_ranks, lora_config
from tempbalance.allocation.sparsity import Allocation, LayerShare, allocate_sparsity

__all__ = [
    "Allocation",
    "BitAllocation",
    "BitShare",
    "LayerShare",
    "RankAllocation",
    "RankShare",
    "allocate_bits",
    "allocate_ranks",
    "allocate_sparsity",
    "export_bits",
    "lora_config",
]
