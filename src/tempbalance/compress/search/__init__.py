"""Search an allocation of sparsity on calibration text, and measure the simple methods on it."""

__all__: list[str] = []
