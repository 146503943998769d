"""The slow learner of SLCA, ICCV 2023.

Zhang, Wang, Kang, Chen and Wei, "SLCA: Slow Learner with Classifier Alignment for Continual Learning on a Pre-trained
Model" (arXiv 2303.05118); code: github.com/GengDavid/SLCA.
"""

from __future__ import annotations

from tempbalance.balance.assign import SlowLearner
from tempbalance.balance.recipe import Recipe

__all__ = ["slow_learner"]


def slow_learner(*, fraction: float = 0.01) -> Recipe:
    """Fine-tuning with a new head: all below the head learns at a fraction of its rate, so that features last.

    The rate of the optimizer is that of the head, larger than one would give to the whole model. Use it on one task
    after the other, or on very little data; no spectrum is computed.

    Args:
        fraction: Of the head's rate; the released code has 0.01.

    Returns:
        The recipe; a factor on every parameter.

    Example:
        >>> slow_learner().assignment
        SlowLearner(fraction=0.01)
    """
    return Recipe(
        name="slow_learner",
        source="SLCA (Zhang et al., ICCV 2023, arXiv 2303.05118), github.com/GengDavid/SLCA",
        deviations=(
            "All that comes after the last block counts as the head, its final norm and pooler too (SLCA: the "
            "classifier alone).",
            "The alignment of the classifier afterwards is no matter of rates, and not here.",
        ),
        assignment=SlowLearner(fraction),
        unit="block",
    )
