"""The imbalance of a network at the end of a trial, measured in the same way for every method, plain training included.

A study records the imbalance that a balancer measured, and plain training has no balancer. A task adds these numbers
to its metrics:

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
    """Measure the alphas of the trained layers as a balancer does.

    A balancer also fits layers that look random, whose alpha depends on their shape only. Their number is returned as
    well; after a short training from scratch it is most of them.

    Args:
        model: The network after its last step.

    Returns:
        ``imbalance``, the standard deviation of alpha over the layers (Model Balancing, section 4.4), and
        ``mean_alpha``, both NaN if no layer has an alpha; ``layers``, the number of layers with one; ``random``, the
        number of weight matrices that ``tb.analyze`` reports as random.
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
