"""Compression: allocate a budget of zeros, bits or LoRA ranks over layers, prune, recover, evaluate, export."""

from __future__ import annotations

from tempbalance.compress.allocation import Allocation
from tempbalance.compress.bits import allocate_bits
from tempbalance.compress.evaluation.causal_lm import load_causal_lm
from tempbalance.compress.evaluation.harness import evaluate
from tempbalance.compress.evaluation.likelihood import Perplexity, perplexity
from tempbalance.compress.evaluation.tokens import Calibration, draw_calibration, load_tokens
from tempbalance.compress.export.alphapruning_npy import export_npy
from tempbalance.compress.export.llmcompressor_recipe import export_llmcompressor
from tempbalance.compress.export.peft_config import lora_config
from tempbalance.compress.export.torch_masks import export_torch
from tempbalance.compress.layer_allocation import LayerAllocation, UnitAllocation
from tempbalance.compress.prune_workflow import SparsitySettings, allocate_folder, prune_folder
from tempbalance.compress.pruning.outliers import outlier_ratios
from tempbalance.compress.pruning.pruned_checkpoint import prune_checkpoint, save_pruned
from tempbalance.compress.pruning.pruner import prune
from tempbalance.compress.pruning_result import PruningResult, UnitSparsity
from tempbalance.compress.ranks import allocate_ranks
from tempbalance.compress.recover_workflow import recover_folder
from tempbalance.compress.recovery.lora_recovery import RecoveryResult, RecoverySettings, recover, save_recovered
from tempbalance.compress.sparsity import allocate_sparsity

__all__ = [
    "Allocation",
    "Calibration",
    "LayerAllocation",
    "Perplexity",
    "PruningResult",
    "RecoveryResult",
    "RecoverySettings",
    "SparsitySettings",
    "UnitAllocation",
    "UnitSparsity",
    "allocate_bits",
    "allocate_folder",
    "allocate_ranks",
    "allocate_sparsity",
    "draw_calibration",
    "evaluate",
    "export_llmcompressor",
    "export_npy",
    "export_torch",
    "load_causal_lm",
    "load_tokens",
    "lora_config",
    "outlier_ratios",
    "perplexity",
    "prune",
    "prune_checkpoint",
    "prune_folder",
    "recover",
    "recover_folder",
    "save_pruned",
    "save_recovered",
]
