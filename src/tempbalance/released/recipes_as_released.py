"""Recipes that follow the authors' released code where it differs from the papers.

TempBalance: github.com/YefanZhou/TempBalance, commit 9f0d9c7. Model Balancing: github.com/ZihangHLiu/ModelBalancing,
commit 9970cea. AlphaDecay: github.com/hed-ucas/AlphaDecay, commit 23ce27c. LLR:
github.com/hed-ucas/Layer-wise-Learning-Rate, commit bbd0dcf.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import nn

from tempbalance.balance.assign import Assignment, Bounded, Linear, Sigmoid
from tempbalance.balance.recipe import Every, Recipe
from tempbalance.layers import Select, Unit, Weight, find_norms
from tempbalance.released.farms import FARMSAsReleased
from tempbalance.released.tails import HillAsReleased

__all__ = [
    "RankAsReleased",
    "alphadecay_as_released",
    "llr_as_released",
    "model_balancing_as_released",
    "model_balancing_sciml_as_released",
    "tempbalance_as_released",
]

_ANALYSED = ("linear", "conv2d")
_FEWEST, _FEWEST_SCIML = 50, 12


@dataclass(frozen=True, kw_only=True)
class EveryAsReleased(Every):
    """All measurements but the first come one step early: before steps 0, 499, 999, ..."""

    def is_due(self, steps: int, interval: int) -> bool:
        """See the base class."""
        return steps == 0 or (steps + 1) % interval == 0


@dataclass(frozen=True, kw_only=True)
class NormsByName(Recipe):
    """A batch norm ``...bn1`` gets the multiplier of the convolution ``...conv1``; other norms keep the base value."""

    def find_units(self, model: nn.Module, weights: Sequence[Weight]) -> list[Unit]:
        """See the base class."""
        units = super().find_units(model, weights)
        batch_norms = [norm for norm in find_norms(model) if isinstance(norm.module, nn.BatchNorm2d)]
        members: dict[str, tuple[str, ...]] = {}
        for norm in batch_norms:
            layer = norm.name.replace("bn", "conv")
            members[layer] = members.get(layer, ()) + norm.parameters
        return [replace(unit, parameters=unit.parameters + members.get(unit.name, ())) for unit in units]


@dataclass(frozen=True, kw_only=True)
class OneStepLate(Recipe):
    """Multipliers take effect one step after they are computed."""

    effect_after: ClassVar[int] = 1


def tempbalance_as_released(*, assignment: Assignment | None = None, windows: FARMSAsReleased | None = None) -> Recipe:
    """``tempbalance`` as in the authors' code.

    Args:
        assignment: By default ``Linear(0.5, 1.5)``; the code also has ``Sqrt()``, ``Log2()`` and
            ``RankAsReleased(0.5, 1.5)``.
        windows: ``FARMSAsReleased(rows, ops_per_dim)`` for the FARMS variant.

    Returns:
        The recipe; its multipliers equal those of the code where these are finite and alphas differ.

    Example:
        >>> tempbalance_as_released().kinds
        ('linear', 'conv2d')
    """
    return NormsByName(
        name="tempbalance_as_released",
        source="github.com/YefanZhou/TempBalance, commit 9f0d9c7",
        deviations=(
            "Equal alphas give multiplier 1; a layer without a fit keeps the base rate (the code: the highest; NaN).",
            "The minimum of 50 eigenvalues counts non-zero ones.",
            "Convolutions whose kernel taps are vectors (depthwise) are not analysed.",
        ),
        assignment=assignment if assignment is not None else Linear(0.5, 1.5),
        estimator=HillAsReleased(min_eigenvalues=_FEWEST),
        windows=windows,
        select=Select(split=False),
        kinds=_ANALYSED,
        first=False,
        last=False,
        norms="base",
        every=Every(epochs=1.0),
    )


def model_balancing_as_released(*, strength: float | tuple[float, float] = (2.0, 1.0)) -> Recipe:
    """``model_balancing`` as in the authors' GLUE script: the tail is the top third, the last layer is left out.

    Args:
        strength: The script's ``sigmoid_min`` (below the mean) and ``sigmoid_max``; (2, 1) unless given.

    Returns:
        The recipe; its multipliers equal those of the code where these are finite.

    Example:
        >>> model_balancing_as_released().estimator.xmin_position
        1.5
    """
    return OneStepLate(
        name="model_balancing_as_released",
        source="github.com/ZihangHLiu/ModelBalancing, commit 9970cea, run_glue_block_tb_sigmoid_roberta_base_ratio.sh",
        deviations=(
            "A layer whose fit fails is left out of the mean (the code: NaN for every block).",
            "An encoder and a decoder have separate blocks (the code merges blocks of the same number).",
            "The last layer is left out among all linear and 2-D convolutional ones (the code: among those with 50 "
            "eigenvalues or more, so that a model without pooler loses its last block's last layer).",
        ),
        assignment=Sigmoid(strength),
        unit="block",
        estimator=HillAsReleased(xmin_position=1.5, min_eigenvalues=_FEWEST),
        select=Select(split=False),
        kinds=_ANALYSED,
        last=False,
        every=Every(steps=100, epochs=0.1),
    )


def model_balancing_sciml_as_released(*, strength: float | tuple[float, float] = 1.0) -> Recipe:
    """``model_balancing_sciml`` as in the authors' FNO code, which does not measure complex weights.

    Args:
        strength: ``lr_min_ratio`` (below the mean) and ``lr_slope`` of the released configuration, which are equal.

    Returns:
        The recipe.

    Example:
        >>> model_balancing_sciml_as_released().kinds
        ('linear', 'conv1d', 'conv2d')
    """
    return NormsByName(
        name="model_balancing_sciml_as_released",
        source="github.com/ZihangHLiu/ModelBalancing, commit 9970cea, sciml/pdebench/models/fno/train.py",
        deviations=(
            "A layer is measured if more than 12 of its eigenvalues are above 1e-5 (the code: 12 or more after the "
            "first epoch; if a layer has exactly 12, it then writes rates to the wrong groups, and they compound).",
            "Eigenvalues of convolutions are compared with 1e-5 (the code: half the eigenvalues).",
            "1-D convolutions are measured by kernel tap (the code takes the norms of their rows).",
        ),
        assignment=Sigmoid(strength),
        estimator=HillAsReleased(zero=1e-5, min_eigenvalues=_FEWEST_SCIML + 1),
        select=Select(split=False),
        kinds=("linear", "conv1d", "conv2d"),
        norms="base",
        every=Every(epochs=1.0),
    )


def alphadecay_as_released(*, low: float = 0.6666, high: float = 5.0) -> Recipe:
    """``alphadecay`` as in the authors' code: the first and the last measured layer keep the base value.

    Args:
        low: ``wd_min_ratio`` of the scripts.
        high: ``wd_max_ratio``.

    Returns:
        The recipe; its multipliers equal those of the code where these are finite and alphas differ.

    Example:
        >>> alphadecay_as_released().every
        EveryAsReleased(steps=500, epochs=None)
    """
    return NormsByName(
        name="alphadecay_as_released",
        source="github.com/hed-ucas/AlphaDecay, commit 23ce27c, LLaMa-pretraining",
        deviations=(
            "Equal alphas give multiplier 1 (the code: the highest for all); an all-zero layer keeps the base value "
            "(the code divides by zero).",
        ),
        assignment=Linear(low, high),
        target="weight_decay",
        estimator=HillAsReleased(min_eigenvalues=_FEWEST),
        select=Select(split=False),
        kinds=_ANALYSED,
        first=False,
        last=False,
        norms="base",
        every=EveryAsReleased(steps=500),
    )


def llr_as_released(*, low: float = 1.0, high: float = 5.0) -> Recipe:
    """``llr`` with the fit of the authors' code.

    Args:
        low: ``lr_min_ratio`` of the README's command; 0.666 in the defaults of the code.
        high: ``lr_max_ratio``; 3 in the defaults of the code.

    Returns:
        The recipe; between ramps its multipliers equal those of the code where these are finite.

    Example:
        >>> llr_as_released().estimator
        HillAsReleased(min_eigenvalues=50, xmin_position=2.0, zero=None)
    """
    return Recipe(
        name="llr_as_released",
        source="github.com/hed-ucas/Layer-wise-Learning-Rate, commit bbd0dcf, olmo/LRUnbalance.py",
        deviations=(
            "During a ramp the multiplier changes linearly (the code moves the rate linearly to the scheduled rate at "
            "the end of the ramp, and the rate of norms to the smallest rate of all layers).",
            "The first refresh comes before the first step, not after it.",
            "Equal alphas give multiplier 1 (the code: the highest for all).",
        ),
        assignment=Linear(low, high),
        estimator=HillAsReleased(min_eigenvalues=_FEWEST),
        select=Select(split=False),
        kinds=_ANALYSED,
        norms="base",
        embeddings_and_head_at_max=True,
        every=Every(steps=100),
        ramp=50,
    )


@dataclass(frozen=True)
class RankAsReleased(Bounded):
    """``Rank`` as in the code released with TempBalance (``tb_step``): no unit reaches ``high``.

    Of ``n`` units the one with rank ``i = 0, 1, ...`` gets ``low + (high - low) i / n``; of two equal alphas the first
    gets less.

    Attributes:
        low: Multiplier of the unit with the heaviest tail.
        high: Upper bound, which no unit reaches.

    Example:
        >>> RankAsReleased(0.5, 1.5)([2.0, 9.0])
        [0.5, 1.0]
    """

    def map_alphas(self, alphas: list[float]) -> list[float]:
        """See the base class."""
        order = sorted(range(len(alphas)), key=alphas.__getitem__)
        ranks = dict(zip(order, range(len(alphas)), strict=True))
        return [self.low + (self.high - self.low) * ranks[i] / len(alphas) for i in range(len(alphas))]
