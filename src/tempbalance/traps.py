"""WeightWatcher's two other signals: correlation traps and the ERG condition."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from tempbalance.metrics import FEWEST_EIGENVALUES, bulk_variance, highest_random_eigenvalue
from tempbalance.spectra.gram import GramOptions, gram_matrices, power_of_two_scale, readable
from tempbalance.types import Spectrum

__all__ = ["count_traps", "delta_erg"]

_OPTIONS = GramOptions(dtype=torch.float32)  # enough to count eigenvalues above an edge


def count_traps(matrices: Tensor, *, device: torch.device | str | None = None, seed: int = 0) -> int | None:
    """Count correlation traps: large eigenvalues that remain when the entries of a matrix are shuffled.

    A shuffle destroys correlations, so what remains beyond the spectrum of a random matrix is due to a few huge
    entries (Prakash and Martin 2025, 2506.04434). The limit is the upper edge of the Marchenko-Pastur bulk, its
    variance from the median eigenvalue, plus a Tracy-Widom allowance with a probability of 1 in 1000. The mean of the
    entries is subtracted first: it would remain too. This costs about as much as the spectrum itself.

    Args:
        matrices: Shape ``(B, rows, columns)``, finite; each matrix is shuffled for itself.
        device: Device for the computation; by default that of the weight.
        seed: Seed of the shuffles.

    Returns:
        The number for all matrices; None if they have fewer than 50 eigenvalues.

    Example:
        >>> weight = torch.randn(100, 100, generator=torch.Generator().manual_seed(0))
        >>> count_traps(weight[None])
        0
        >>> weight[3, 5] = weight[40, 2] = 50.0
        >>> count_traps(weight[None])
        2
    """
    rows, columns = matrices.shape[1:]
    if len(matrices) * min(rows, columns) < FEWEST_EIGENVALUES:
        return None
    random = np.random.default_rng(seed)
    values = []
    scale = power_of_two_scale(readable(matrices), torch.float32)
    for matrix in readable(matrices):
        work = torch.promote_types(matrix.dtype, torch.float32)
        entries = matrix.to("cpu", work, copy=True).flatten()
        entries -= entries.mean()
        random.shuffle(entries.numpy())
        shuffled = entries.view(1, rows, columns).to(matrix.device if device is None else device)
        values.append(
            torch.linalg.eigvalsh(gram_matrices(shuffled, scale, _OPTIONS), UPLO="L").to("cpu", torch.float64)
        )
    pooled = torch.cat(values).flatten().clamp(min=0).sort().values
    spectrum = Spectrum(eigenvalues=pooled, shape=(rows, columns), num_matrices=len(matrices), error_bound=math.nan)
    limit = bulk_variance(spectrum) * highest_random_eigenvalue(spectrum.shape, len(matrices))
    return int((pooled > limit).sum())


def delta_erg(eigenvalues: Tensor, xmin: float) -> float:
    """Return how far the ERG threshold is above the threshold of a tail, with the mean eigenvalue as the unit.

    Eigenvalues are scaled to a mean of 1 and multiplied from the largest down; the ERG threshold is the one at which
    the product falls below 1 (``detX_val`` of WeightWatcher 0.7.7). In the ideal layer of SETOL (Martin and Hinrichs
    2025, 2507.17912) both thresholds are equal.

    Args:
        eigenvalues: All eigenvalues ``(n,)``, ascending.
        xmin: Threshold of the tail.

    Returns:
        The difference; NaN if xmin is, or if the product of all positive eigenvalues is at least 1 (of low rank).

    Example:
        >>> delta_erg(torch.tensor([0.1, 0.2, 0.3, 0.4, 4.0], dtype=torch.float64), 0.3)
        0.0
    """
    descending = eigenvalues[eigenvalues > 0].flip(0) / eigenvalues.mean()
    below = (descending.log().cumsum(0) < 0).nonzero()
    return float(descending[below[0]]) - xmin / float(eigenvalues.mean()) if len(below) else math.nan
