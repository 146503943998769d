"""Compress: share a global sparsity out over layers by what their spectra say."""

from __future__ import annotations

from tempbalance.pruning.allocation import Allocation, LayerShare, allocate_sparsity

__all__ = ["Allocation", "LayerShare", "allocate_sparsity"]
