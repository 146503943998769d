"""Allocations in the formats of other tools. Keep the allocation's own file: every other format loses something."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tempbalance.compress.export.alphapruning_npy import export_npy
from tempbalance.compress.export.llmcompressor_recipe import export_llmcompressor
from tempbalance.compress.export.peft_config import lora_config
from tempbalance.compress.export.torch_masks import export_torch

__all__ = ["EXPORTERS", "export_llmcompressor", "export_npy", "export_torch", "lora_config"]

# By the name of the tool. Each takes an allocation first, and refuses one of a quantity that the tool has no use for.
EXPORTERS: Mapping[str, Callable[..., Any]] = {
    "llm-compressor": export_llmcompressor,
    "alphapruning": export_npy,
    "torch": export_torch,
    "peft": lora_config,
}
