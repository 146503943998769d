"""Set weights to zero as allocated: by magnitude, Wanda or SparseGPT, in a live model or a checkpoint."""

from __future__ import annotations

from tempbalance.compress.pruning.outliers import outlier_ratios
from tempbalance.compress.pruning.pruned_checkpoint import prune_checkpoint, save_pruned
from tempbalance.compress.pruning.pruner import prune

__all__ = ["outlier_ratios", "prune", "prune_checkpoint", "save_pruned"]
