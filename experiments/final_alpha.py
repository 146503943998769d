"""How balanced a network is at the end of a run, measured alike for every method, plain training too.

The arena records the imbalance that a balancer saw, so plain training has none. A task adds these numbers to what it
returns:

    return {"validation": ..., "test": ..., **final_alpha(model)}
"""

from __future__ import annotations

import math
from statistics import fmean

import torch
from torch import nn

import tempbalance as tb

RECIPE = tb.Recipe(name="final", assignment=tb.assign.Linear(1.0, 1.0), estimator=tb.Hill(min_eigenvalues=50))


def final_alpha(model: nn.Module) -> dict[str, float]:
    """Alphas of the trained layers, as a balancer measures them, so that they stand beside those the arena records.

    A balancer fits a layer that still looks random, too, and its alpha then says no more than its shape. So how many
    there are is returned as well; after a short training from scratch it is most of them.

    Args:
        model: The network after its last step.

    Returns:
        ``imbalance``, the standard deviation of alpha over the layers (Model Balancing, section 4.4), and
        ``mean_alpha``, both NaN where no layer has an alpha; ``layers``, how many have one; ``random``, how many
        weight matrices ``tb.analyze`` cannot tell from random ones.
    """
    balancer = tb.Balancer(torch.optim.SGD(model.parameters(), lr=0.0), model, RECIPE)
    refresh = balancer.refresh()
    alphas = [unit.alpha for unit in refresh.units if math.isfinite(unit.alpha)]
    status = [layer.status for layer in tb.analyze(model, progress=False).layers]
    return {
        "imbalance": refresh.imbalance,
        "mean_alpha": fmean(alphas) if alphas else math.nan,
        "layers": len(alphas),
        "random": status.count(tb.types.Status.RANDOM),
    }
