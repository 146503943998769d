"""Eigenvalues of weights, from Gram matrices of full matrices or of FARMS windows."""

from __future__ import annotations

from tempbalance.spectra.eigenvalues import spectra, weight_spectrum
from tempbalance.spectra.matrices import Layout, as_matrices, matrix_shape
from tempbalance.spectra.windowed_gram import WindowValues, window_values
from tempbalance.spectra.windows import FARMS, WindowGrid, Windows, coverage

__all__ = [
    "FARMS",
    "Layout",
    "WindowGrid",
    "WindowValues",
    "Windows",
    "as_matrices",
    "coverage",
    "matrix_shape",
    "spectra",
    "weight_spectrum",
    "window_values",
]
