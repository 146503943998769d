"""Compress: share a global sparsity out over layers by what their spectra say, and prune by that plan."""

from __future__ import annotations

from tempbalance.pruning.allocation import Allocation, LayerShare, allocate_sparsity
from tempbalance.pruning.apply import prune
from tempbalance.pruning.likelihood import Perplexity, perplexity
from tempbalance.pruning.outliers import outlier_ratios
from tempbalance.pruning.tokens import draw_calibration, load_tokens

__all__ = [
    "Allocation",
    "LayerShare",
    "Perplexity",
    "allocate_sparsity",
    "draw_calibration",
    "load_tokens",
    "outlier_ratios",
    "perplexity",
    "prune",
]
