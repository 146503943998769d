"""Compress: share one budget (of sparsity, bits, LoRA parameters) out over layers by what their spectra say; prune."""

from __future__ import annotations

from tempbalance.pruning.allocation import Allocation, LayerShare, allocate_sparsity
from tempbalance.pruning.apply import prune
from tempbalance.pruning.bits import BitAllocation, BitShare, allocate_bits, export_bits
from tempbalance.pruning.folder import prune_checkpoint, save_pruned
from tempbalance.pruning.likelihood import Perplexity, perplexity
from tempbalance.pruning.lm import load_causal_lm
from tempbalance.pruning.outliers import outlier_ratios
from tempbalance.pruning.ranks import RankAllocation, RankShare, allocate_ranks, lora_config
from tempbalance.pruning.tokens import draw_calibration, load_tokens

__all__ = [
    "Allocation",
    "BitAllocation",
    "BitShare",
    "LayerShare",
    "Perplexity",
    "RankAllocation",
    "RankShare",
    "allocate_bits",
    "allocate_ranks",
    "allocate_sparsity",
    "draw_calibration",
    "export_bits",
    "load_causal_lm",
    "load_tokens",
    "lora_config",
    "outlier_ratios",
    "perplexity",
    "prune",
    "prune_checkpoint",
    "save_pruned",
]
