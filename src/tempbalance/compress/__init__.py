"""One budget (of zeros, bits, LoRA parameters), allocated over layers by what their spectra say; pruning by it."""

from __future__ import annotations

from tempbalance.compress.bits import BitAllocation, BitShare, allocate_bits, export_bits
from tempbalance.compress.evaluation.causal_lm import load_causal_lm
from tempbalance.compress.evaluation.likelihood import Perplexity, perplexity
from tempbalance.compress.evaluation.tokens import draw_calibration, load_tokens
from tempbalance.compress.pruning.outliers import outlier_ratios
from tempbalance.compress.pruning.pruned_folder import prune_checkpoint, save_pruned
from tempbalance.compress.pruning.pruner import prune
from tempbalance.compress.ranks import RankAllocation, RankShare, allocate_ranks, lora_config
from tempbalance.compress.recovery.recovery import Recovered, Recovery, recover, save_recovered
from tempbalance.compress.sparsity import Allocation, LayerShare, allocate_sparsity

__all__ = [
    "Allocation",
    "BitAllocation",
    "BitShare",
    "LayerShare",
    "Perplexity",
    "RankAllocation",
    "RankShare",
    "Recovered",
    "Recovery",
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
    "recover",
    "save_pruned",
    "save_recovered",
]
