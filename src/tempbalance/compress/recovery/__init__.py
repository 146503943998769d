"""Fine-tune a pruned causal language model by LoRA that keeps every zero."""

from __future__ import annotations

from tempbalance.compress.recovery.lora_recovery import RecoveryResult, RecoverySettings, recover, save_recovered

__all__ = ["RecoveryResult", "RecoverySettings", "recover", "save_recovered"]
