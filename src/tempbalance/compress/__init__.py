"""Compression: allocate zeros, bits, LoRA ranks or trainable layers, prune, recover, evaluate, export."""

from __future__ import annotations

from tempbalance.compress.allocation import Allocation
from tempbalance.compress.bits import allocate_bits
from tempbalance.compress.evaluation.causal_lm import load_causal_lm
from tempbalance.compress.evaluation.fake_quantization import quantized
from tempbalance.compress.evaluation.harness import evaluate
from tempbalance.compress.evaluation.likelihood import Perplexity, perplexity
from tempbalance.compress.evaluation.tokens import Calibration, draw_calibration, load_tokens
from tempbalance.compress.export.alphapruning_npy import export_npy
from tempbalance.compress.export.axolotl_yaml import export_axolotl
from tempbalance.compress.export.llama_quantize import export_llama_quantize
from tempbalance.compress.export.llmcompressor_recipe import export_llmcompressor
from tempbalance.compress.export.peft_config import export_peft, lora_config
from tempbalance.compress.export.quantizer_json import export_autoround, export_gptqmodel, export_torchao
from tempbalance.compress.export.torch_masks import export_torch
from tempbalance.compress.format_errors import quantization_errors
from tempbalance.compress.formats import WeightFormat, find_format
from tempbalance.compress.layer_allocation import LayerAllocation, MethodScore, UnitAllocation
from tempbalance.compress.prune_workflow import allocate_folder, prune_folder
from tempbalance.compress.pruning.outliers import outlier_ratios
from tempbalance.compress.pruning.pruned_checkpoint import prune_checkpoint, save_pruned
from tempbalance.compress.pruning.pruner import prune
from tempbalance.compress.pruning_result import PruningResult, UnitSparsity
from tempbalance.compress.ranks import allocate_ranks
from tempbalance.compress.recover_workflow import recover_folder
from tempbalance.compress.recovery.lora_recovery import RecoveryResult, RecoverySettings, recover, save_recovered
from tempbalance.compress.search.bits_search import search_bits
from tempbalance.compress.search.evolution import SearchSettings
from tempbalance.compress.search.simple_methods import measure_sparsity, score_allocations
from tempbalance.compress.search.sparsity_search import search_sparsity
from tempbalance.compress.sparsity import allocate_sparsity
from tempbalance.compress.sparsity_settings import SparsitySettings
from tempbalance.compress.trainable import allocate_trainable, set_trainable, signal_to_noise

__all__ = [
    "Allocation",
    "Calibration",
    "LayerAllocation",
    "MethodScore",
    "Perplexity",
    "PruningResult",
    "RecoveryResult",
    "RecoverySettings",
    "SearchSettings",
    "SparsitySettings",
    "UnitAllocation",
    "UnitSparsity",
    "WeightFormat",
    "allocate_bits",
    "allocate_folder",
    "allocate_ranks",
    "allocate_sparsity",
    "allocate_trainable",
    "draw_calibration",
    "evaluate",
    "export_autoround",
    "export_axolotl",
    "export_gptqmodel",
    "export_llama_quantize",
    "export_llmcompressor",
    "export_npy",
    "export_peft",
    "export_torch",
    "export_torchao",
    "find_format",
    "load_causal_lm",
    "load_tokens",
    "lora_config",
    "measure_sparsity",
    "outlier_ratios",
    "perplexity",
    "prune",
    "prune_checkpoint",
    "prune_folder",
    "quantization_errors",
    "quantized",
    "recover",
    "recover_folder",
    "save_pruned",
    "save_recovered",
    "score_allocations",
    "search_bits",
    "search_sparsity",
    "set_trainable",
    "signal_to_noise",
]
