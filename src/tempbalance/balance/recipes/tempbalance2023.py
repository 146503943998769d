"""TempBalance, NeurIPS 2023.

Zhou, Pang, Liu, Martin, Mahoney and Yang, "Temperature Balancing, Layer-wise Weight Analysis, and Neural Network
Training" (arXiv 2312.00359); code: github.com/YefanZhou/TempBalance, commit 9f0d9c7.
"""

from __future__ import annotations

from tempbalance.balance.assign import Linear
from tempbalance.balance.recipe import Every, Recipe
from tempbalance.spectra.windows import FARMS
from tempbalance.tail import Hill

__all__ = ["tempbalance"]


def tempbalance(*, low: float = 0.5, high: float = 1.5, windows: FARMS | None = None) -> Recipe:
    """Vision models from scratch: a learning rate per layer, linear in alpha.

    In our studies: no gain over a tuned learning rate on images (docs/results/vision.md); on a language model a gain,
    and alphas of random matrices gained as much (docs/results/language.md).

    For SGD with momentum and a cosine schedule on convolutional networks. The first and the last layer keep the base
    rate, and norms follow their convolution. Alphas are measured once per epoch, so ``Balancer`` needs
    ``steps_per_epoch``.

    Args:
        low: Multiplier of the layer with the heaviest tail; 0.5 in most published runs, 0.6 on TinyImageNet and with
            spectral norm regularisation.
        high: Multiplier of the layer with the lightest tail; 1.5, or 1.4 in the same runs.
        windows: ``FARMS()`` makes alpha independent of the shape of a layer.

    Returns:
        The recipe.

    Example:
        >>> tempbalance(low=0.6, high=1.4).assignment
        Linear(normalize=False, low=0.6, high=1.4)
    """
    return Recipe(
        name="tempbalance",
        source="TempBalance (Zhou et al., NeurIPS 2023, arXiv 2312.00359), Algorithm 1",
        deviations=(
            "xmin of Hill's estimator is the largest eigenvalue outside the tail (released code: the smallest inside).",
            "Every layer with weight matrices is measured (the released code: linear and 2-D convolutional layers).",
            "A norm follows the layer before it, also in shortcuts (the released code matches names).",
            "Equal alphas give multiplier 1 (the released code: the highest for all).",
        ),
        assignment=Linear(low, high),
        estimator=Hill(min_eigenvalues=50),
        windows=windows,
        first=False,
        last=False,
        every=Every(epochs=1.0),
    )
