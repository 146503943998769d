"""Balancing in Hugging Face Trainer and Lightning, and loggers; import the module you need.

``tempbalance.integrations.transformers``, ``.lightning`` and ``.loggers`` each import their framework; ``import
tempbalance`` imports none of them.
"""

__all__: list[str] = []
