"""TempBalance, NeurIPS 2023.

Zhou, Pang, Liu, Martin, Mahoney and Yang, "Temperature Balancing, Layer-wise Weight Analysis, and Neural Network
Training" (arXiv 2312.00359); code: github.com/YefanZhou/TempBalance, commit 9f0d9c7.
"""

from __future__ import annotations

from tempbalance.balance.assign import Assignment, Linear
from tempbalance.balance.recipe import Every, Recipe
from tempbalance.layers import Select
from tempbalance.spectra.farms_as_released import FARMSAsReleased
from tempbalance.spectra.windows import FARMS
from tempbalance.tail import Hill
from tempbalance.tail.as_released import HillAsReleased

__all__ = ["tempbalance", "tempbalance_as_released"]

_SOURCE = "TempBalance (Zhou et al., NeurIPS 2023, arXiv 2312.00359), Algorithm 1"
_ANALYSED = ("linear", "conv2d")
_FEWEST = 50


def tempbalance(*, low: float = 0.5, high: float = 1.5, windows: FARMS | None = None) -> Recipe:
    """Vision from scratch: a learning rate per layer, in a straight line from the heaviest tail to the lightest.

    For SGD with momentum and a cosine schedule on convolutional networks. The first and last layer are left out, norms
    follow their convolution, alphas are measured once an epoch, so ``Balancer`` needs ``steps_per_epoch``.

    Args:
        low: Multiplier of the layer with the heaviest tail; 0.5 in most of the published runs, 0.6 on TinyImageNet and
            with spectral norm regularisation.
        high: Multiplier of the layer with the lightest tail; 1.5, or 1.4.
        windows: ``FARMS()`` frees alpha of the shape of the layers.

    Returns:
        The recipe.

    Example:
        >>> tempbalance(low=0.6, high=1.4).assignment
        Linear(normalize=False, low=0.6, high=1.4)
    """
    return Recipe(
        name="tempbalance",
        source=_SOURCE,
        deviations=(
            "The threshold of Hill's estimator is the largest eigenvalue outside the tail (the released code takes the "
            "smallest one inside).",
            "Every layer with weight matrices is judged, not linear and 2-D convolutional ones alone.",
            "A norm follows the layer before it, in shortcuts too (the released code matches names).",
            "Equal alphas give multiplier 1 (the released code gives all layers the highest).",
        ),
        assignment=Linear(low, high),
        estimator=Hill(min_eigenvalues=_FEWEST),
        windows=windows,
        first=False,
        last=False,
        every=Every(epochs=1.0),
    )


def tempbalance_as_released(*, assignment: Assignment | None = None, windows: FARMSAsReleased | None = None) -> Recipe:
    """``tempbalance`` as the authors' code does it.

    Args:
        assignment: By default ``Linear(0.5, 1.5)``; the code also has ``Sqrt()``, ``Log2()`` and
            ``RankAsReleased(0.5, 1.5)``.
        windows: ``FARMSAsReleased()`` for the FARMS variant.

    Returns:
        The recipe; its multipliers equal those of the code wherever that gives finite ones and alphas differ.

    Example:
        >>> tempbalance_as_released().norms
        'by_name'
    """
    return Recipe(
        name="tempbalance_as_released",
        source="github.com/YefanZhou/TempBalance, commit 9f0d9c7",
        deviations=(
            "Equal alphas give multiplier 1, a failed fit leaves its layer alone (the code: the highest rate, NaN).",
            "The threshold of 50 eigenvalues counts non-zero ones.",
            "Convolutions whose kernel taps are vectors (depthwise) are not analysed.",
        ),
        assignment=assignment if assignment is not None else Linear(0.5, 1.5),
        estimator=HillAsReleased(min_eigenvalues=_FEWEST),
        windows=windows,
        select=Select(split=False),
        kinds=_ANALYSED,
        first=False,
        last=False,
        norms="by_name",
        every=Every(epochs=1.0),
    )
