"""LLR, ICML 2026.

He et al., "One LR Doesn't Fit All: Heavy-Tail Guided Layerwise Learning Rates for LLMs" (arXiv 2605.22297); code:
github.com/hed-ucas/Layer-wise-Learning-Rate, commit bbd0dcf.
"""

from __future__ import annotations

from tempbalance.balance.assign import Linear
from tempbalance.balance.recipe import Every, Recipe
from tempbalance.spectra.windows import FARMS
from tempbalance.tail import Hill

__all__ = ["llr"]


def llr(*, low: float = 1.0, high: float = 5.0, windows: FARMS | None = None) -> Recipe:
    """Pre-training of language models: a learning rate per module, never below the base rate.

    Our studies did not test it.

    For AdamW and Muon. Embeddings and head get the largest alpha of all modules; norms keep the base rate. Alphas are
    measured every 100 steps, and multipliers move to their new values in 50 steps. Every rate is at least the base
    rate, so a higher mean rate may cause a part of the effect: compare with a tuned base rate.

    Args:
        low: Multiplier of the module with the heaviest tail.
        high: Multiplier of the module with the lightest tail, of embeddings and head.
        windows: ``FARMS()`` makes alpha independent of the shape of a layer.

    Returns:
        The recipe.

    Example:
        >>> llr().ramp
        50
    """
    return Recipe(
        name="llr",
        source="LLR (He et al., ICML 2026, arXiv 2605.22297), command of the README",
        deviations=(
            "xmin of Hill's estimator is the largest eigenvalue outside the tail (released code: the smallest inside).",
            "During a ramp the multiplier changes linearly (the released code moves the rate linearly to the scheduled "
            "rate at the end of the ramp).",
        ),
        assignment=Linear(low, high),
        estimator=Hill(min_eigenvalues=50),
        windows=windows,
        norms="base",
        embeddings_and_head_at_max=True,
        every=Every(steps=100),
        ramp=50,
    )
