"""How balanced a network is at the end of a run, measured alike for every method, plain training too.

The arena records the imbalance that a balancer saw, so plain training has none. A task adds these numbers to what it
returns:

    return {"validation": ..., "test": ..., **final_alpha(model)}
"""

from __future__ import annotations

import math

from torch import nn

import tempbalance as tb


def final_alpha(model: nn.Module) -> dict[str, float]:
    """Alphas over the layers of a network, by ``tb.analyze`` with its defaults.

    Args:
        model: The network after its last step.

    Returns:
        ``imbalance``, the standard deviation of alpha over the layers (Model Balancing, section 4.4); ``mean_alpha``;
        and ``judged``, how many layers have an alpha: one that still looks random has none. The first two are NaN if
        that is 0.
    """
    analysis = tb.analyze(model, progress=False)
    alphas = [layer.alpha for layer in analysis.layers if math.isfinite(layer.alpha)]
    mean = math.fsum(alphas) / len(alphas) if alphas else math.nan
    return {"imbalance": analysis.imbalance, "mean_alpha": mean, "judged": len(alphas)}
