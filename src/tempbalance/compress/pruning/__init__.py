"""Set weights to zero as allocated: by magnitude, Wanda or SparseGPT, in a live model or a checkpoint."""

__all__: list[str] = []
