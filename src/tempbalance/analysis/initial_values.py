"""Whether the weights of a layer have the size that an initialisation gives them."""

from __future__ import annotations

import math

from tempbalance.types import LayerStats

__all__ = ["exceeds_initial", "initialisation"]

_ERRORS = 3  # standard errors of a standard deviation
_LARGEST = 4.0  # times 1 / sqrt(inputs); usual initialisations give at most sqrt(2)
_UNIFORM, _NORMAL = -1.2, 0.0  # excess kurtosis, which gives the error of a standard deviation


def initialisation(row: LayerStats) -> str:
    """Return the initialisation whose standard deviation a layer has, within three standard errors; empty for none.

    Example:
        >>> import torch, tempbalance as tb
        >>> _ = torch.manual_seed(0)
        >>> (row,) = tb.analyze(torch.nn.Linear(128, 64)).layers
        >>> initialisation(row)
        "PyTorch's default"
    """
    known = {"PyTorch's default": (1 / math.sqrt(3 * _inputs(row)), _UNIFORM), "deviation 0.02": (0.02, _NORMAL)}
    return next((name for name, (deviation, kurtosis) in known.items() if _has(row, deviation, kurtosis)), "")


def exceeds_initial(row: LayerStats) -> bool:
    """Return whether the weights are larger than initialisations give; those of deviation 1 are scaled when used."""
    return math.sqrt(row.mean_square * _inputs(row)) > _LARGEST and not _has(row, 1.0, _NORMAL)


def _inputs(row: LayerStats) -> int:
    """Return how many products an output adds; of a recurrent layer its hidden size, by which PyTorch initialises."""
    if row.kind == "rnn":
        return row.shape[0]
    return row.shape[-1] if row.kind == "experts" else math.prod(row.shape[1:])


def _has(row: LayerStats, deviation: float, kurtosis: float) -> bool:
    """Return whether independent entries of a standard deviation and kurtosis are of this size."""
    error = math.sqrt((2 + kurtosis) / (4 * math.prod(row.shape)))
    return abs(math.sqrt(row.mean_square) / deviation - 1) < _ERRORS * error
