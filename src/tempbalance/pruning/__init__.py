"""Set weights to zero by a plan; measure what that costs, and win it back."""

from __future__ import annotations

from tempbalance.pruning.apply import prune
from tempbalance.pruning.folder import prune_checkpoint, save_pruned
from tempbalance.pruning.likelihood import Perplexity, perplexity
from tempbalance.pruning.lm import load_causal_lm
from tempbalance.pruning.outliers import outlier_ratios
from tempbalance.pruning.recovery import Recovered, Recovery, recover, save_recovered
from tempbalance.pruning.tokens import draw_calibration, load_tokens

__all__ = [
    "Perplexity",
    "Recovered",
    "Recovery",
    "draw_calibration",
    "load_causal_lm",
    "load_tokens",
    "outlier_ratios",
    "perplexity",
    "prune",
    "prune_checkpoint",
    "recover",
    "save_pruned",
    "save_recovered",
]
