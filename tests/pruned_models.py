"""Results of pruning for the tests of the terminal and the page."""

import dataclasses
import math

import tempbalance as tb


def layer(block, part, zeros, alpha):
    """Return the row of a weight with 100 entries."""
    return tb.compress.LayerAllocation(
        name=f"h.{block}.{part}.weight",
        unit=f"h.{block}",
        shape=(10, 10),
        alpha=alpha,
        stderr=0.3,
        zeros=zeros,
    )


def pruned_model(blocks=3, **changes):
    """Return blocks of two weights, pruned as allocated, the first least; the last weight has no alpha."""
    layers = [layer(i, part, 30 + i, 2.0 + i) for i in range(blocks) for part in ("up", "down")]
    layers[-1] = dataclasses.replace(layers[-1], alpha=math.nan, stderr=math.nan)
    allocation = tb.Allocation(
        source="some/model",
        budget=0.31,
        method="alpha, epsilon 0.3",
        unit="block",
        layers=tuple(layers),
        settings={"estimator": "Hill()"},
    )
    return tb.compress.PruningResult(allocation=allocation, method="wanda", achieved=dict(allocation), **changes)


MEASURED = (
    tb.compress.Perplexity(value=7.6764, stderr=0.1832, tokens=5000, windows=20),
    tb.compress.Perplexity(value=9.1, stderr=math.nan, tokens=5000, windows=20),
)
