"""The choice of trainable layers as in the code released with Spectrum.

github.com/cognitivecomputations/spectrum, commit 0ed1756.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["spectrum_snr", "spectrum_unfrozen"]


def spectrum_snr(weight: Tensor) -> float:
    """Compute the signal-to-noise ratio of a weight as the code released with Spectrum does.

    Its noise is ``sigma = IQR / 1.349``, the standard deviation of normal numbers with the interquartile range of the
    singular values, and its threshold ``sigma (1 + sqrt(short / long))``. That of a random matrix with entries of
    standard deviation ``s`` is ``s sqrt(long) (1 + sqrt(short / long))``; ``compress.signal_to_noise`` compares with
    it. In a Gaussian matrix of 64 x 64, whose largest singular value is near 16, the released threshold is near 10, so
    a third of the noise counts as signal.

    Args:
        weight: The weight; a vector is one row. Its ratio is then 1, because nothing is below the threshold 0.

    Returns:
        The sum of the singular values above the threshold over the sum of the others (1 if there are none), divided by
        the largest.

    Example:
        >>> spectrum_snr(torch.ones(8))
        1.0
        >>> round(spectrum_snr(torch.diag(torch.tensor([8.0, 2.0, 1.5, 1.0]))), 4)  # threshold 3.06
        0.2222
    """
    values = torch.linalg.svdvals((weight if weight.ndim > 1 else weight[None]).float())
    sigma = (torch.quantile(values, 0.75) - torch.quantile(values, 0.25)) / 1.349
    rows, columns = (1, *weight.shape)[-2:]
    above = values > sigma * (1 + math.sqrt(min(rows, columns) / max(rows, columns)))
    noise = values[~above].sum() if bool((~above).any()) else torch.tensor(1.0)
    ratio = values[above].sum() / noise if noise != 0 else math.inf
    return float(ratio / values[0])


def spectrum_unfrozen(scores: Mapping[str, float], types: Mapping[str, str], percent: int) -> list[str]:
    """Return the entries of ``unfrozen_parameters`` that the code released with Spectrum writes.

    Args:
        scores: Signal-to-noise ratio of each module.
        types: Type of each module, its name after the number of its block.
        percent: Share of the modules of each type; their number is rounded down, so it may be none.

    Returns:
        Head and embeddings by the names of LLaMA, and the chosen modules of each type, largest ratio first.

    Example:
        >>> scores = {"layers.0.fc": 0.2, "layers.1.fc": 0.4, "layers.2.fc": 0.3}
        >>> spectrum_unfrozen(scores, dict.fromkeys(scores, "fc"), 50)[2:]
        ['layers.1.fc']
    """
    by_type: dict[str, list[str]] = {}
    for name in scores:
        by_type.setdefault(types[name], []).append(name)
    chosen = ["^lm_head.weight$", "^model.embed_tokens.weight$"]
    for names in by_type.values():
        ranked = sorted(names, key=scores.__getitem__, reverse=True)
        chosen += ranked[: int(len(names) * percent / 100)]
    return chosen
