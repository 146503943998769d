"""Fine-tune a pruned language model and keep its zeros."""

__all__: list[str] = []
