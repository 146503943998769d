"""Balancing in other people's training loops, and its numbers in their loggers; import the module you need.

``tempbalance.integrations.transformers``, ``.lightning`` and ``.loggers``: each loads its framework, ``import
tempbalance`` none of them.
"""

__all__: list[str] = []
