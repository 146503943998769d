"""Model Balancing, EMNLP 2024.

Liu, Hu, Pang, Zhou, Ren and Yang, "Model Balancing Helps Low-data Training and Fine-tuning" (arXiv 2410.12178); code:
github.com/ZihangHLiu/ModelBalancing, commit 9970cea.
"""

from __future__ import annotations

from tempbalance.balance.assign import Sigmoid
from tempbalance.balance.recipe import Every, Recipe
from tempbalance.layers import Select
from tempbalance.spectra.windows import FARMS
from tempbalance.tail import Hill
from tempbalance.tail.as_released import HillAsReleased

__all__ = [
    "model_balancing",
    "model_balancing_as_released",
    "model_balancing_sciml",
    "model_balancing_sciml_as_released",
]

_SOURCE = "Model Balancing (Liu et al., EMNLP 2024, arXiv 2410.12178), TB_Sigmoid"
_FEWEST, _FEWEST_SCIML = 50, 12
_TOLERANCE = 0.3


def model_balancing(
    *, strength: float | tuple[float, float] = 1.0, normalize: bool = False, windows: FARMS | None = None
) -> Recipe:
    """Fine-tuning of transformers on little data: a learning rate per block, by a sigmoid of the mean alpha.

    For AdamW with warm-up and linear decay. All parameters of a block follow it; embeddings, pooler and head keep the
    base rate. With LoRA alpha is that of the merged weights of the adapted layers.

    A weight is measured again only when its alpha can have moved by more than 0.3 since it was last measured. That
    bounds the worst change; when MiniLM was fine-tuned on SST-2, no alpha was in the end further than 0.0014 from an
    exact one. ``Balancer(..., exact=True)`` measures all at every refresh.

    On MiniLM the published gains were not seen once every method had its learning rate tuned (docs/results/text.md):
    tune the rate first.

    Args:
        strength: How far multipliers spread: between ``10^(-strength/2)`` and ``10^(strength/2)``. The paper tunes it
            per data set among 0.25, 0.5, 0.75, 1, 1.25 and the pair (2, 1), which is (below the mean, above it).
        normalize: Whether to keep the mean multiplier of the blocks at 1. The published sigmoid raises it, so that a
            part of its effect is that of a higher learning rate.
        windows: ``FARMS()`` frees alpha of the shape of the layers.

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
            "The threshold of Hill's estimator is the largest eigenvalue outside the tail (the released code takes the "
            "smallest one inside); the tail is the top half (the released GLUE script: the top third).",
            "With LoRA alpha is that of W + (lora_alpha / r) B A, as the model applies it (the released code leaves "
            "the factor out).",
            "Stacks of blocks are kept apart (the released code merges an encoder's and a decoder's block 0).",
            "Alphas are measured every min(100, a tenth of an epoch) steps as published, but only of weights that can "
            "have changed theirs.",
        ),
        assignment=Sigmoid(strength, normalize=normalize),
        unit="block",
        estimator=Hill(),
        windows=windows,
        every=Every(steps=100, epochs=0.1),
        tolerance=_TOLERANCE,
    )


def model_balancing_as_released(*, strength: float | tuple[float, float] = (2.0, 1.0)) -> Recipe:
    """``model_balancing`` as the authors' GLUE script does it: top third of the spectrum, last layer dropped.

    Args:
        strength: The script's ``sigmoid_min`` (below the mean) and ``sigmoid_max``; (2, 1) unless given.

    Returns:
        The recipe; its multipliers equal those of the code wherever that gives finite ones.

    Example:
        >>> model_balancing_as_released().estimator.xmin_position
        1.5
    """
    return Recipe(
        name="model_balancing_as_released",
        source="github.com/ZihangHLiu/ModelBalancing, commit 9970cea, run_glue_block_tb_sigmoid_roberta_base_ratio.sh",
        deviations=(
            "A failed fit leaves its layer out (the code: NaN for every block).",
            "Blocks of several stacks are kept apart (the code merges those of one number).",
            "The last layer is dropped among all linear and 2-D convolutional ones (the code: among those with 50 "
            "eigenvalues or more, so that a model without pooler loses its last block's last layer).",
        ),
        assignment=Sigmoid(strength),
        unit="block",
        estimator=HillAsReleased(xmin_position=1.5, min_eigenvalues=_FEWEST),
        select=Select(split=False),
        kinds=("linear", "conv2d"),
        last=False,
        every=Every(steps=100, epochs=0.1),
        delay=True,
    )


def model_balancing_sciml(*, strength: float = 1.0, normalize: bool = False, windows: FARMS | None = None) -> Recipe:
    """Neural PDE solvers on few simulations: a learning rate per layer of an FNO or a UNet, by a sigmoid of alpha.

    For Adam with a step schedule. The complex spectral weights of an FNO are judged too: each mode is one complex
    matrix, and their spectra are pooled. On Darcy flow with 4 simulations it lowers the error of an FNO, though no more
    than the alphas of random matrices of the same shapes do; on Burgers' equation it did harm, by the complex weights
    (docs/results/pde.md). So try it, and tune the learning rate with it.

    Args:
        strength: The paper tunes it per data set among 0.125, 0.25, 0.5, 0.75, 1, 1.25 and 1.5.
        normalize: Whether to keep the mean multiplier at 1; on Darcy flow the gain is the same.
        windows: ``FARMS()`` frees alpha of the shape of the layers.

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
            "Complex spectral weights are judged (the paper does not say; the released code never sees them).",
            "The threshold of Hill's estimator is the largest eigenvalue outside the tail, which matters for the 20 "
            "eigenvalues of an FNO's layers.",
            "1-D convolutions are measured by kernel tap (the released code takes the norms of their rows).",
            "Alphas are measured every 25 steps (published: every epoch, with a few simulations every step or two; "
            "docs/results/pde.md was measured at 25).",
        ),
        assignment=Sigmoid(strength, normalize=normalize),
        estimator=Hill(min_eigenvalues=_FEWEST_SCIML),
        windows=windows,
        every=Every(steps=25),
    )


def model_balancing_sciml_as_released(*, strength: float | tuple[float, float] = 1.0) -> Recipe:
    """``model_balancing_sciml`` as the authors' FNO code does it: without the complex weights.

    Args:
        strength: ``lr_min_ratio`` (below the mean) and ``lr_slope`` of the released configuration, which are equal.

    Returns:
        The recipe.

    Example:
        >>> model_balancing_sciml_as_released().kinds
        ('linear', 'conv1d', 'conv2d')
    """
    return Recipe(
        name="model_balancing_sciml_as_released",
        source="github.com/ZihangHLiu/ModelBalancing, commit 9970cea, sciml/pdebench/models/fno/train.py",
        deviations=(
            "A layer is judged with more than 12 eigenvalues above 1e-5 (the code: 12 or more after the first "
            "epoch; where one has exactly 12, it then writes rates to the wrong groups, and they compound).",
            "Eigenvalues of convolutions are compared with 1e-5 as they are (the code: half of them).",
            "1-D convolutions are measured by kernel tap (the code takes the norms of their rows).",
        ),
        assignment=Sigmoid(strength),
        estimator=HillAsReleased(zero=1e-5, min_eigenvalues=_FEWEST_SCIML + 1),
        select=Select(split=False),
        kinds=("linear", "conv1d", "conv2d"),
        norms="by_name",
        every=Every(epochs=1.0),
    )
