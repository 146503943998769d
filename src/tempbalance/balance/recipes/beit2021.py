"""Layer-wise learning-rate decay, as in BEiT.

Bao, Dong, Piao and Wei, "BEiT: BERT Pre-Training of Image Transformers" (ICLR 2022, arXiv 2106.08254); code:
github.com/microsoft/unilm, beit/optim_factory.py. Before it: ELECTRA (Clark et al., ICLR 2020, arXiv 2003.10555).
"""

from __future__ import annotations

from tempbalance.balance.assign import LayerwiseDecay
from tempbalance.balance.recipe import Recipe

__all__ = ["layerwise_decay"]


def layerwise_decay(*, decay: float = 0.9) -> Recipe:
    """Fine-tuning of transformers: each block learns by a factor slower than the one above it, embeddings slowest.

    The multiplier of a parameter is ``decay ** depth``: depth 0 for all that comes after the last block (final norm,
    pooler, head), 1 for the last block, the number of blocks plus 1 for embeddings. Use it whenever a pre-trained
    transformer is fine-tuned with one rate so far; no spectrum is computed.

    Args:
        decay: BEiT has 0.65 (base) and 0.75 (large), ELECTRA 0.8 (small, base) and 0.9 (large).

    Returns:
        The recipe; a factor on every parameter.

    Example:
        >>> layerwise_decay(decay=0.65).assignment
        LayerwiseDecay(decay=0.65)
    """
    return Recipe(
        name="layerwise_decay",
        source="BEiT (Bao et al., ICLR 2022, arXiv 2106.08254), github.com/microsoft/unilm, beit/optim_factory.py",
        deviations=(
            "Parameters have the depth of their place in the definition of the model: position biases that all blocks "
            "share and that are defined before them count as embeddings (BEiT: as the head).",
            "ELECTRA counts a layer more above the last block, whose factor there is decay ** 2.",
            "A model without blocks has a step of depth per layer.",
        ),
        assignment=LayerwiseDecay(decay),
        unit="block",
    )
