"""Learning rates by shape: the maximal update parametrisation.

Yang et al., "Tensor Programs V: Tuning Large Neural Networks via Zero-Shot Hyperparameter Transfer" (2022, arXiv
2203.03466), table 3; code: github.com/microsoft/mup. Spectral form: Yang, Simon and Bernstein, "A Spectral Condition
for Feature Learning" (2023, arXiv 2310.17813).
"""

from __future__ import annotations

from typing import Literal

from tempbalance.balance.assign import ByShape
from tempbalance.balance.recipe import Recipe

__all__ = ["mup"]


def mup(
    *, rule: Literal["mup", "spectral"] = "mup", optimizer: Literal["adam", "sgd"] = "adam", width: int | None = None
) -> Recipe:
    """Learning rates of muP: by the shape of each layer.

    With Adam the multiplier of a layer is ``width / fan_in``, so wide inputs learn more slowly; the other cases are in
    :class:`~tempbalance.balance.assign.ByShape`. Use it to keep one tuned learning rate for models of several widths.
    No spectrum is computed.

    Args:
        rule: ``"mup"`` or ``"spectral"``; with Adam they are the same.
        optimizer: Family of the optimizer.
        width: Width at which the learning rate was tuned; None for the median fan-in of the model's own layers.

    Returns:
        The recipe.

    Example:
        >>> mup(width=256).assignment
        ByShape(rule='mup', optimizer='adam', width=256)
    """
    return Recipe(
        name="mup",
        source="muP (Yang et al. 2022, arXiv 2203.03466, table 3), github.com/microsoft/mup; arXiv 2310.17813",
        deviations=(
            "Only learning rates: initialisation, output multipliers and the attention scale 1/d are the model's own.",
            "Relative to a reference width, at which a square layer has multiplier 1.",
            "The fan-in of a convolution includes the kernel taps.",
        ),
        assignment=ByShape(rule, optimizer, width),
    )
