"""Sparsities as the array that the AlphaPruning, FARMS and OWL scripts read."""

from __future__ import annotations

import io
import os

import numpy as np

from tempbalance._files import write_atomically
from tempbalance.compress.allocation import Allocation

__all__ = ["export_npy"]


def export_npy(allocation: Allocation, path: str | os.PathLike[str]) -> None:
    """Write the sparsities as a float64 array in model order, as the AlphaPruning, FARMS and OWL scripts store them.

    One number per linear layer, seven per block of a LLaMA. The array has no names and no shapes, so those scripts
    apply it to any model without an error; check that they use the same order of layers.

    Args:
        allocation: An allocation of sparsity.
        path: The file, usually ``.npy``.

    Raises:
        AllocationError: It allocates bits or ranks, or one of its weights is a part of a fused weight or an expert in a
            stack, which those scripts do not support.
        AnalysisError: The file cannot be written.

    Example:
        >>> import tempfile, pathlib
        >>> from tempbalance.compress import LayerAllocation
        >>> layer = LayerAllocation(name="h.0.fc.weight", unit="h.0", shape=(4, 5), zeros=7)
        >>> allocation = Allocation(source="model", budget=0.35, method="uniform", unit="block", layers=(layer,))
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "ratios.npy"
        >>> export_npy(allocation, path)
        >>> np.load(path)
        array([0.35])
    """
    allocation.check_whole_weights("the array")
    content = io.BytesIO()
    np.save(content, np.array(list(allocation.values()), dtype=np.float64))
    write_atomically(path, content.getvalue())
