"""Evaluation of a causal language model: token files, perplexity, and tasks of lm-evaluation-harness."""

__all__: list[str] = []
