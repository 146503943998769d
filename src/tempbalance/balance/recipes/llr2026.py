"""LLR, ICML 2026.

He et al., "One LR Doesn't Fit All: Heavy-Tail Guided Layerwise Learning Rates for LLMs" (arXiv 2605.22297); code:
github.com/hed-ucas/Layer-wise-Learning-Rate, commit bbd0dcf.
"""

from __future__ import annotations

from tempbalance.balance.assign import Linear
from tempbalance.balance.recipe import Every, Recipe
from tempbalance.layers import Select
from tempbalance.spectra.windows import FARMS
from tempbalance.tail import Hill
from tempbalance.tail.as_released import HillAsReleased

__all__ = ["llr", "llr_as_released"]


def llr(*, low: float = 1.0, high: float = 5.0, windows: FARMS | None = None) -> Recipe:
    """Pre-training of language models: a learning rate per module, never below the base rate.

    For AdamW and Muon. Embeddings and head count as having the lightest tail of all; norms keep the base rate. Alphas
    are measured every 100 steps, and multipliers move to their new values in 50 steps. Every rate is at least the base
    rate, so a part of the effect may be that of a higher mean rate: compare with a tuned base rate.

    Args:
        low: Multiplier of the module with the heaviest tail.
        high: Multiplier of the module with the lightest tail, of embeddings and head.
        windows: ``FARMS()`` frees alpha of the shape of the layers.

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
            "The threshold of Hill's estimator is the largest eigenvalue outside the tail (the released code takes the "
            "smallest one inside).",
            "During a ramp the multiplier moves in a straight line (the released code moves the rate to where its "
            "schedule will be at the end of the ramp).",
        ),
        assignment=Linear(low, high),
        estimator=Hill(min_eigenvalues=50),
        windows=windows,
        norms="base",
        lightest=True,
        every=Every(steps=100),
        ramp=50,
    )


def llr_as_released(*, low: float = 1.0, high: float = 5.0) -> Recipe:
    """``llr`` with the fit of the authors' code.

    Args:
        low: ``lr_min_ratio`` of the README's command; 0.666 in the defaults of the code.
        high: ``lr_max_ratio``; 3 in the defaults of the code.

    Returns:
        The recipe; between ramps its multipliers equal those of the code wherever that gives finite ones.

    Example:
        >>> llr_as_released().estimator
        HillAsReleased(min_eigenvalues=50, xmin_position=2.0, zero=None)
    """
    return Recipe(
        name="llr_as_released",
        source="github.com/hed-ucas/Layer-wise-Learning-Rate, commit bbd0dcf, olmo/LRUnbalance.py",
        deviations=(
            "During a ramp the multiplier moves in a straight line (the code moves the rate to where its schedule will "
            "be at the end of the ramp, and norms towards the smallest of the layers' rates).",
            "The first refresh comes before the first step, not after it.",
            "Equal alphas give multiplier 1 (the code: the highest for all).",
        ),
        assignment=Linear(low, high),
        estimator=HillAsReleased(min_eigenvalues=50),
        select=Select(split=False),
        kinds=("linear", "conv2d"),
        norms="base",
        lightest=True,
        every=Every(steps=100),
        ramp=50,
    )
