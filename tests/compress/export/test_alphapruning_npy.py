"""Sparsities as the array of the AlphaPruning scripts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tempbalance.compress import Allocation, export_npy


def test_the_array_has_the_sparsities_in_model_order(
    allocation_for: Callable[..., Allocation], make_llama: Any, tmp_path: Path
):
    allocation = allocation_for(make_llama())
    export_npy(allocation, tmp_path / "ratios.npy")
    array = np.load(tmp_path / "ratios.npy", allow_pickle=False)
    assert (array.dtype, array.tolist()) == (np.float64, list(allocation.values()))
