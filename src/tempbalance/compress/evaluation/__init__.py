"""Tokens, perplexity and downstream tasks of a language model."""

__all__: list[str] = []
