"""Blockwise learning rates: one multiplier per role, after the sharpness of each role.

Wang et al., "The Sharpness Disparity Principle in Transformers for Accelerating Language Model Pre-Training" (ICML
2025, arXiv 2502.19002); code: github.com/Wongboo/BlockwiseLearningRate.
"""

from __future__ import annotations

import math

from tempbalance.balance.assign import ByRole
from tempbalance.balance.recipe import Recipe
from tempbalance.errors import ArgumentError, check_numbers

__all__ = ["blockwise_lr"]

_RATES = {
    "norm": 1.0,
    **dict.fromkeys(("v", "o"), 4.0),
    **dict.fromkeys(("gate", "up", "gate_up", "down"), 6.0),
    **dict.fromkeys(("q", "k"), 8.0),
    "embedding": 10.0,
}


def blockwise_lr(*, base: float = 6.0) -> Recipe:
    """Blockwise learning rates for pre-training language models with AdamW.

    The released code has rates in the ratio 1 (norms) : 4 (value and output projections) : 6 (MLP) : 8 (query and key)
    : 10 (embeddings), tuned on small GPT-2 and LLaMA models. Use it instead of one learning rate for all parameters of
    a transformer that is trained from scratch. No spectrum is computed.

    Args:
        base: The role with this number keeps the learning rate of the optimizer: 6 for the MLP, 1 for the norms as in
            the paper.

    Returns:
        The recipe.

    Raises:
        ArgumentError: ``base`` is not positive and finite.

    Example:
        >>> blockwise_lr(base=1.0).assignment.multipliers["q"]
        8.0
    """
    check_numbers(base=base)
    if not 0 < base < math.inf:
        raise ArgumentError(f"base must be positive and finite, got {base}")
    return Recipe(
        name="blockwise_lr",
        source="Blockwise LR (Wang et al., ICML 2025, arXiv 2502.19002), github.com/Wongboo/BlockwiseLearningRate",
        deviations=(
            "The numbers are relative to the MLP, so that a rate tuned for all parameters is near the best; in the "
            "paper they are relative to the norms (base=1).",
            "Roles without a number there (head, position embeddings, routers) keep the rate of the optimizer.",
            "A bias has the rate of its layer.",
        ),
        assignment=ByRole({role: rate / base for role, rate in _RATES.items()}, strict=False),
    )
