"""AlphaDecay, NeurIPS 2025.

He et al., "AlphaDecay: Module-wise Weight Decay for Heavy-Tailed Balancing in LLMs" (arXiv 2506.14562); code:
github.com/hed-ucas/AlphaDecay, commit 23ce27c.
"""

from __future__ import annotations

from tempbalance.balance.assign import Linear
from tempbalance.balance.recipe import Every, Recipe
from tempbalance.spectra.windows import FARMS
from tempbalance.tail import Hill

__all__ = ["alphadecay"]


def alphadecay(*, low: float = 0.67, high: float = 5.0, windows: FARMS | None = None) -> Recipe:
    """Pre-training of language models: a weight decay per module, larger for lighter tails.

    In our study it was worse than one weight decay (docs/results/language.md).

    For Adam and AdamW. Each linear layer (q, k, v, o, gate, up, down) has its own weight decay; embeddings and norms
    keep the base value. Alphas are measured every 500 steps.

    Args:
        low: Multiplier of the module with the heaviest tail.
        high: Multiplier of the module with the lightest tail. The paper uses 3 with Adam at weight decay 1e-5,
            and 5 otherwise (always with AdamW).
        windows: ``FARMS()`` makes alpha independent of the shape of a layer.

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
            "xmin of Hill's estimator is the largest eigenvalue outside the tail (released code: the smallest inside).",
            "All modules are measured, as in the paper (the released code leaves out the first and the last).",
        ),
        assignment=Linear(low, high),
        target="weight_decay",
        estimator=Hill(min_eigenvalues=50),
        windows=windows,
        norms="base",
        every=Every(steps=500),
    )
