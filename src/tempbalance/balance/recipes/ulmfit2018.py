"""Gradual unfreezing with discriminative rates: ULMFiT, ACL 2018.

Howard and Ruder, "Universal Language Model Fine-tuning for Text Classification" (arXiv 1801.06146).
"""

from __future__ import annotations

from tempbalance.balance.assign import LayerwiseDecay
from tempbalance.balance.recipe import Every, Recipe

__all__ = ["gradual_unfreezing"]

_DECAY = 1 / 2.6


def gradual_unfreezing(*, decay: float = _DECAY, epochs: float = 1.0) -> Recipe:
    """Fine-tuning from the top: first the head alone, then one block more per epoch, each slower than the one above.

    Until its turn, a block needs no gradient, no optimizer state and no backward pass. Use it where a new head would
    at first send large, random gradients through good features; ``Balancer`` needs ``steps_per_epoch``, and the run
    about as many epochs as there are blocks. No spectrum is computed.

    Args:
        decay: The ratio of the rates of a block and of the one above it; 1/2.6 in the paper.
        epochs: From one block to the next.

    Returns:
        The recipe; a factor on every parameter, and when it is freed.

    Example:
        >>> gradual_unfreezing().unfreeze
        Every(steps=None, epochs=1.0, early=0)
    """
    return Recipe(
        name="gradual_unfreezing",
        source="ULMFiT (Howard and Ruder, ACL 2018, arXiv 1801.06146), sections 3.2 and 3.3",
        deviations=(
            "A group of layers is a block of the model, or what lies above or below the blocks (ULMFiT: a layer of an "
            "LSTM).",
            "The slanted triangular schedule is left to the scheduler.",
        ),
        assignment=LayerwiseDecay(decay),
        unit="block",
        unfreeze=Every(epochs=epochs),
    )
