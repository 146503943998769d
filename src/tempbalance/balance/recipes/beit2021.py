"""Layer-wise learning-rate decay, as in BEiT.

Bao, Dong, Piao and Wei, "BEiT: BERT Pre-Training of Image Transformers" (ICLR 2022, arXiv 2106.08254); code:
github.com/microsoft/unilm, beit/optim_factory.py. Before it: ELECTRA (Clark et al., ICLR 2020, arXiv 2003.10555).
"""

from __future__ import annotations

from tempbalance.balance.assign import LayerwiseDecay
from tempbalance.balance.recipe import Recipe

__all__ = ["layerwise_decay"]


def layerwise_decay(*, decay: float = 0.9) -> Recipe:
    """Layer-wise learning-rate decay for fine-tuning transformers.

    In our studies: no gain on digits (docs/results/digits.md); on text: docs/results/text.md.

    The multiplier of a parameter is ``decay ** depth``. Depth is 0 for everything after the last block (final norm,
    pooler, head), 1 for the last block, and the number of blocks plus 1 for embeddings. Use it instead of one learning
    rate for a pre-trained transformer. No spectrum is computed.

    Args:
        decay: Learning rate of a block divided by that of the block above it. BEiT uses 0.65 (base)
            and 0.75 (large), ELECTRA 0.8 (small, base) and 0.9 (large).

    Returns:
        The recipe; every parameter has a multiplier.

    Example:
        >>> layerwise_decay(decay=0.65).assignment
        LayerwiseDecay(decay=0.65)
    """
    return Recipe(
        name="layerwise_decay",
        source="BEiT (Bao et al., ICLR 2022, arXiv 2106.08254), github.com/microsoft/unilm, beit/optim_factory.py",
        deviations=(
            "Depth follows the order in which the model defines its parameters: position biases that all blocks share "
            "and that are defined before the blocks count as embeddings (BEiT: as the head).",
            "ELECTRA counts one more layer above the last block, whose factor is decay ** 2.",
            "In a model without blocks each layer has its own depth.",
        ),
        assignment=LayerwiseDecay(decay),
        unit="block",
    )
