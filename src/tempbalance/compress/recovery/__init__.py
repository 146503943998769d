"""Fine-tune a pruned causal language model by LoRA that keeps every zero."""

__all__: list[str] = []
