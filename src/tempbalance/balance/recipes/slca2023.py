"""The slow learner of SLCA, ICCV 2023.

Zhang, Wang, Kang, Chen and Wei, "SLCA: Slow Learner with Classifier Alignment for Continual Learning on a Pre-trained
Model" (arXiv 2303.05118); code: github.com/GengDavid/SLCA.
"""

from __future__ import annotations

from tempbalance.balance.assign import SlowLearner
from tempbalance.balance.recipe import Recipe

__all__ = ["slow_learner"]


def slow_learner(*, fraction: float = 0.01) -> Recipe:
    """Fine-tuning with a new head: all other parameters learn at a fraction of the head's rate.

    In our studies: worse on digits (docs/results/digits.md).

    The optimizer's learning rate is that of the head, larger than usual for the full model. Use it for continual
    learning, or with very little data. No spectrum is computed.

    Args:
        fraction: Fraction of the head's learning rate; 0.01 in the released code.

    Returns:
        The recipe; every parameter has a multiplier.

    Example:
        >>> slow_learner().assignment
        SlowLearner(fraction=0.01)
    """
    return Recipe(
        name="slow_learner",
        source="SLCA (Zhang et al., ICCV 2023, arXiv 2303.05118), github.com/GengDavid/SLCA",
        deviations=(
            "Everything after the last block counts as the head, including the final norm and the pooler (SLCA: the "
            "classifier alone).",
            "The alignment of the classifier after training is not included.",
        ),
        assignment=SlowLearner(fraction),
        unit="block",
    )
