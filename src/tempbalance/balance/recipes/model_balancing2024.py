"""Model Balancing, EMNLP 2024.

Liu, Hu, Pang, Zhou, Ren and Yang, "Model Balancing Helps Low-data Training and Fine-tuning" (arXiv 2410.12178); code:
github.com/ZihangHLiu/ModelBalancing, commit 9970cea.
"""

from __future__ import annotations

from tempbalance.balance.assign import Sigmoid
from tempbalance.balance.recipe import Every, Recipe
from tempbalance.spectra.windows import FARMS
from tempbalance.tail import Hill

__all__ = ["model_balancing", "model_balancing_sciml"]

_SOURCE = "Model Balancing (Liu et al., EMNLP 2024, arXiv 2410.12178), TB_Sigmoid"


def model_balancing(
    *, strength: float | tuple[float, float] = 1.0, normalize: bool = False, windows: FARMS | None = None
) -> Recipe:
    """Fine-tuning of transformers on little data: a learning rate per block, a sigmoid of its mean alpha.

    In our studies: no gain over a tuned learning rate on digits (docs/results/digits.md); on text:
    docs/results/text.md. Tune the learning rate first.

    For AdamW with warm-up and linear decay. All parameters of a block get its multiplier; embeddings, pooler and head
    keep the base rate. With LoRA, alpha is that of the merged weights of the adapted layers.

    A weight is measured again only if its alpha can have changed by more than 0.3 since it was last measured. This is a
    worst-case bound: when MiniLM was fine-tuned on SST-2, no alpha was more than 0.0014 from the exact one.
    ``Balancer(..., exact=True)`` measures all weights at every refresh.

    Args:
        strength: Multipliers lie between ``10^(-strength/2)`` and ``10^(strength/2)``. The paper tunes it per data set
            among 0.25, 0.5, 0.75, 1, 1.25 and the pair (2, 1) (below the mean alpha, above it).
        normalize: Whether to keep the mean multiplier of the blocks at 1. The published sigmoid raises it, so a higher
            learning rate causes a part of its effect.
        windows: ``FARMS()`` makes alpha independent of the shape of a layer.

    Returns:
        The recipe.

    Example:
        >>> model_balancing(strength=(2.0, 1.0)).assignment
        Sigmoid(normalize=False, strength=(2.0, 1.0), temperature=10.0)
    """
    return Recipe(
        name="model_balancing",
        source=_SOURCE,
        deviations=(
            "xmin of Hill's estimator is the largest eigenvalue outside the tail (the released code: the smallest "
            "inside); the tail is the top half (the released GLUE script: the top third).",
            "With LoRA, alpha is that of W + (lora_alpha / r) B A, as the model applies it (the released code omits "
            "the factor).",
            "An encoder and a decoder have separate blocks (the released code merges their blocks 0).",
            "Alphas are measured every min(100, a tenth of an epoch) steps as published, but only those that can have "
            "changed by more than the tolerance.",
        ),
        assignment=Sigmoid(strength, normalize=normalize),
        unit="block",
        estimator=Hill(),
        windows=windows,
        every=Every(steps=100, epochs=0.1),
        tolerance=0.3,
    )


def model_balancing_sciml(*, strength: float = 1.0, normalize: bool = False, windows: FARMS | None = None) -> Recipe:
    """Neural PDE solvers on few simulations: a learning rate per layer of an FNO or a UNet, a sigmoid of its alpha.

    In our studies, with ``normalize`` and a tuned ``strength``: 2.7 % less error on Darcy flow (2.4 % as published),
    and alphas of random matrices gained as much; 8 % more on Burgers' equation (docs/results/pde.md).

    For Adam with a step schedule. The complex spectral weights of an FNO are measured too: each mode is one complex
    matrix, and the spectra of all modes are pooled. On Darcy flow with 4 simulations this recipe lowers the error of an
    FNO, but no more than alphas of random matrices of the same shapes; on Burgers' equation it raises the error,
    through the complex weights (docs/results/pde.md). Tune the learning rate together with it.

    Args:
        strength: Multipliers lie between ``10^(-strength/2)`` and ``10^(strength/2)``. The paper tunes it per data
            set among 0.125, 0.25, 0.5, 0.75, 1, 1.25 and 1.5.
        normalize: Whether to keep the mean multiplier at 1; on Darcy flow the gain is the same.
        windows: ``FARMS()`` makes alpha independent of the shape of a layer.

    Returns:
        The recipe.

    Example:
        >>> model_balancing_sciml().unit
        'layer'
    """
    return Recipe(
        name="model_balancing_sciml",
        source=_SOURCE,
        deviations=(
            "Complex spectral weights are measured (not specified in the paper; the released code skips them).",
            "xmin of Hill's estimator is the largest eigenvalue outside the tail, which matters for the 20 eigenvalues "
            "of an FNO's layers.",
            "1-D convolutions are measured per kernel tap (the released code takes the norms of their rows).",
            "Alphas are measured every 25 steps (published: every epoch, which is every step or two with a few "
            "simulations; docs/results/pde.md was measured at 25).",
        ),
        assignment=Sigmoid(strength, normalize=normalize),
        estimator=Hill(min_eigenvalues=12),
        windows=windows,
        every=Every(steps=25),
    )
