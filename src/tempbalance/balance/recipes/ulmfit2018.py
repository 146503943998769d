"""Gradual unfreezing with discriminative rates: ULMFiT, ACL 2018.

Howard and Ruder, "Universal Language Model Fine-tuning for Text Classification" (arXiv 1801.06146).
"""

from __future__ import annotations

from tempbalance.balance.assign import LayerwiseDecay
from tempbalance.balance.recipe import Every, Recipe

__all__ = ["gradual_unfreezing"]


def gradual_unfreezing(*, decay: float = 1 / 2.6, epochs: float = 1.0) -> Recipe:
    """Gradual unfreezing: train the head alone, then one more block per epoch, each more slowly than the one above.

    In our studies: worse on digits (docs/results/digits.md).

    A frozen block needs no gradient, no optimizer state and no backward pass. Use it where a new head would at first
    send large, random gradients into pre-trained features. ``Balancer`` needs ``steps_per_epoch``, and the run needs
    about as many epochs as the model has blocks. No spectrum is computed.

    Args:
        decay: Learning rate of a block divided by that of the block above it; 1/2.6 in the paper.
        epochs: Epochs from one block to the next.

    Returns:
        The recipe; every parameter has a multiplier.

    Example:
        >>> gradual_unfreezing().unfreeze
        Every(steps=None, epochs=1.0)
    """
    return Recipe(
        name="gradual_unfreezing",
        source="ULMFiT (Howard and Ruder, ACL 2018, arXiv 1801.06146), sections 3.2 and 3.3",
        deviations=(
            "A group of layers is a block of the model, or all layers above or below the blocks (ULMFiT: a layer of an "
            "LSTM).",
            "The slanted triangular schedule is not included; use a scheduler.",
        ),
        assignment=LayerwiseDecay(decay),
        unit="block",
        unfreeze=Every(epochs=epochs),
    )
