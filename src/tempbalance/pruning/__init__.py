"""Compress: share a global sparsity out over layers by what their spectra say, and prune by that plan."""

from __future__ import annotations

from tempbalance.pruning.allocation import Allocation, LayerShare, allocate_sparsity
from tempbalance.pruning.apply import prune
from tempbalance.pruning.folder import prune_checkpoint, save_pruned
from tempbalance.pruning.likelihood import Perplexity, perplexity
from tempbalance.pruning.lm import load_causal_lm
from tempbalance.pruning.outliers import outlier_ratios
from tempbalance.pruning.tokens import draw_calibration, load_tokens

__all__ = [
    "Allocation",
    "LayerShare",
    "Perplexity",
    "allocate_sparsity",
    "draw_calibration",
    "load_causal_lm",
    "load_tokens",
    "outlier_ratios",
    "perplexity",
    "prune",
    "prune_checkpoint",
    "save_pruned",
]
