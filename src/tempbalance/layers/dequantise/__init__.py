"""Quantised weights of checkpoints and state dicts, read as float32 one at a time.

``reasons`` recognises a format by the names of tensors; ``decoders`` is the table of the functions that describe a
weight of each format, without reading it; ``view`` is a store with these weights in place of their parts.
"""

from __future__ import annotations

from tempbalance.layers.dequantise.view import dequantised

__all__ = ["dequantised"]
