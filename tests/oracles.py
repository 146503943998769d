"""The definitions, as naively as they can be written, in float64; slow on purpose."""

from __future__ import annotations

import numpy as np


def _double(array):
    return array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)


def eigenvalues(matrices):
    """Squared singular values of ``(B, rows, columns)``, pooled, ascending, by SVD."""
    return np.sort(np.linalg.svd(_double(np.asarray(matrices)), compute_uv=False).ravel() ** 2)


def cut(matrices, size, starts):
    """The submatrices of one size at these upper left corners: ``(W * B, rows, columns)``."""
    height, width = size
    return np.concatenate([matrices[:, row : row + height, column : column + width] for row, column in starts])


def hill(values, share=0.5):
    """Model Balancing, eq. 2: 1 + k / sum ln(x_{n-i+1} / x_{n-k})."""
    x = np.sort(values)
    n = len(x)
    k = int(np.floor(share * n))
    return 1 + k / sum(np.log(x[n - i] / x[n - k - 1]) for i in range(1, k + 1))


def hill_as_released(values, xmin_position=2.0):
    """METHODS 1.1: the smallest eigenvalue inside the tail is the threshold."""
    x = np.sort(values)
    i = int(len(x) / xmin_position)
    n = len(x) - i
    return 1 + n / (np.log(x[i:]).sum() - n * np.log(x[i]))


def power_law(values, i):
    """Exponent (Clauset et al. 2009, eq. 3.1) and KS distance of the tail from ascending index ``i``."""
    tail = np.sort(values)[i:]
    n = len(tail)
    alpha = 1 + n / np.log(tail / tail[0]).sum()
    law = 1 - (tail / tail[0]) ** (1 - alpha)
    return alpha, np.abs(law - np.arange(n) / n).max()


def ks(values, candidates=None):
    """The first index with the least KS distance: ``(distance, alpha, xmin, num_tail)``."""
    x = np.sort(values)
    best = None
    for i in range(len(x) - 1) if candidates is None else candidates:
        alpha, distance = power_law(x, i)
        if best is None or distance < best[0]:
            best = (distance, alpha, x[i], len(x) - i)
    return best


def ks_alpha(values):
    """Alpha of the exhaustive search."""
    return ks(values)[1]


def peak_window(values, bins=100):
    """Left edge of the fullest of 100 bins of log10 of the eigenvalues."""
    counts, edges = np.histogram(np.log10(values), bins=bins)
    return 10 ** edges[np.argmax(counts)]


def peak(values, lowest):
    """KS search between ``lowest(p)`` and ``1.5 p``."""
    x = np.sort(values)
    p = peak_window(x)
    window = [i for i in range(len(x) - 1) if lowest(p) <= x[i] <= 1.5 * p]
    return ks(x, window)
