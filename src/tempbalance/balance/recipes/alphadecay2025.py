"""AlphaDecay, NeurIPS 2025.

He et al., "AlphaDecay: Module-wise Weight Decay for Heavy-Tailed Balancing in LLMs" (arXiv 2506.14562); code:
github.com/hed-ucas/AlphaDecay, commit 23ce27c.
"""

from __future__ import annotations

from tempbalance.balance.assign import Linear
from tempbalance.balance.recipe import Every, Recipe
from tempbalance.layers import Select
from tempbalance.spectra.windows import FARMS
from tempbalance.tail import Hill
from tempbalance.tail.as_released import HillAsReleased

__all__ = ["alphadecay", "alphadecay_as_released"]


def alphadecay(*, low: float = 0.67, high: float = 5.0, windows: FARMS | None = None) -> Recipe:
    """Pre-training of language models: a weight decay per module, larger where the tail is lighter.

    For Adam and AdamW. Each linear layer (q, k, v, o, gate, up, down) has its own; embeddings and norms keep the base
    value. Alphas are measured every 500 steps.

    Args:
        low: Multiplier of the module with the heaviest tail.
        high: Multiplier of the module with the lightest tail. The paper uses 3 with Adam at weight decay 1e-5, and 5
            elsewhere, with AdamW always.
        windows: ``FARMS()`` frees alpha of the shape of the layers.

    Returns:
        The recipe.

    Example:
        >>> alphadecay().target
        'weight_decay'
    """
    return Recipe(
        name="alphadecay",
        source="AlphaDecay (He et al., NeurIPS 2025, arXiv 2506.14562), section 3",
        deviations=(
            "The threshold of Hill's estimator is the largest eigenvalue outside the tail (the released code takes the "
            "smallest one inside).",
            "All modules take part, as in the paper (the released code leaves out the first and the last).",
        ),
        assignment=Linear(low, high),
        target="weight_decay",
        estimator=Hill(min_eigenvalues=50),
        windows=windows,
        norms="base",
        every=Every(steps=500),
    )


def alphadecay_as_released(*, low: float = 0.6666, high: float = 5.0) -> Recipe:
    """``alphadecay`` as the authors' code does it: the first and the last analysed layer keep the base value.

    Args:
        low: ``wd_min_ratio`` of the scripts.
        high: ``wd_max_ratio``.

    Returns:
        The recipe; its multipliers equal those of the code wherever that gives finite ones and alphas differ.

    Example:
        >>> alphadecay_as_released().every
        Every(steps=500, epochs=None, early=1)
    """
    return Recipe(
        name="alphadecay_as_released",
        source="github.com/hed-ucas/AlphaDecay, commit 23ce27c, LLaMa-pretraining",
        deviations=(
            "Equal alphas give multiplier 1 (the code: the highest for all); an all-zero layer keeps the base value "
            "(the code divides by zero).",
        ),
        assignment=Linear(low, high),
        target="weight_decay",
        estimator=HillAsReleased(min_eigenvalues=50),
        select=Select(split=False),
        kinds=("linear", "conv2d"),
        first=False,
        last=False,
        norms="by_name",
        every=Every(steps=500, early=1),
    )
