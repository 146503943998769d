"""Assignments by alpha: functions from the alphas of all units to one multiplier each.

The smaller alpha, the heavier the tail and the better trained the unit, so a multiplier never falls as alpha rises. All
are pure functions, and neutral where there is nothing to compare: a unit whose alpha is NaN or infinite gets 1 and does
not count for the others; where fewer than two units can be judged, or all of them are equal up to the error of alpha
(1e-6, relative), every multiplier is 1. The code released with the papers then gives every layer the highest rate, or
NaN.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from statistics import fmean

from tempbalance.balance.assign.assignment import Assignment, UnitFacts

__all__ = ["ByAlpha", "Linear", "Log2", "Rank", "RankAsReleased", "Sigmoid", "Sqrt"]

_EQUAL = 1e-6  # relative: alpha is not known better than that
_PAIR = 2


@dataclass(frozen=True)
class ByAlpha(Assignment):
    """Turns the alphas of all units into multipliers; subclasses differ in the map.

    Attributes:
        normalize: Whether to divide by the mean multiplier of the judged units, so that balancing moves learning rate
            between units but leaves its mean alone. Off by default, as in the papers: their maps may change the mean
            rate, and a part of their gain may be just that.
    """

    _: KW_ONLY
    normalize: bool = False

    @property
    def uses_alpha(self) -> bool:
        """It does."""
        return True

    def assign(self, units: Sequence[UnitFacts]) -> list[float]:
        """Assign a multiplier to every unit, by its alpha alone."""
        return self([unit.alpha for unit in units])

    def __call__(self, alphas: Sequence[float]) -> list[float]:
        """Assign a multiplier to every unit.

        Args:
            alphas: One exponent per unit, greater than 1; NaN or infinite where a unit cannot be judged.

        Returns:
            One multiplier per unit, finite and not negative; 1 where a unit cannot be judged.

        Raises:
            ValueError: A finite alpha is not greater than 1, so it is no exponent of a density.
        """
        judged = [alpha for alpha in alphas if math.isfinite(alpha)]
        if any(alpha <= 1 for alpha in judged):
            raise ValueError(f"an exponent must be greater than 1, got {min(judged)}")
        if len(judged) < _PAIR or max(judged) - min(judged) <= _EQUAL * max(judged):
            return [1.0] * len(alphas)
        found = self._map(judged)
        if self.normalize:
            mean = fmean(found)
            found = [multiplier / mean for multiplier in found]
        values = iter(found)
        return [next(values) if math.isfinite(alpha) else 1.0 for alpha in alphas]

    @abstractmethod
    def _map(self, alphas: list[float]) -> list[float]:
        """Multipliers of two or more finite alphas, not all equal."""


@dataclass(frozen=True)
class _Bounded(ByAlpha):
    """An assignment between two bounds.

    Attributes:
        low: Multiplier of the unit with the heaviest tail.
        high: Multiplier of the unit with the lightest tail.
    """

    low: float = 0.5
    high: float = 1.5

    def __post_init__(self) -> None:
        """Check the bounds.

        Raises:
            ValueError: Not ``0 <= low <= high < inf``.
        """
        if not 0 <= self.low <= self.high < math.inf:
            raise ValueError(f"the bounds must satisfy 0 <= low <= high, got low={self.low}, high={self.high}")


@dataclass(frozen=True)
class Linear(_Bounded):
    """A straight line from ``low`` at the smallest alpha to ``high`` at the largest (TempBalance, Algorithm 1).

    Attributes:
        low: Multiplier of the unit with the heaviest tail; 0.5 in TempBalance, 0.67 in AlphaDecay, 1 in LLR.
        high: Multiplier of the unit with the lightest tail; 1.5, 3 or 5, and 5.

    Example:
        >>> Linear(0.5, 1.5)([2.0, 3.0, 4.0, float("nan")])
        [0.5, 1.0, 1.5, 1.0]
        >>> Linear(0.5, 1.5)([2.0, 2.0])
        [1.0, 1.0]
    """

    def _map(self, alphas: list[float]) -> list[float]:
        least, span = min(alphas), max(alphas) - min(alphas)
        return [self.low + (alpha - least) / span * (self.high - self.low) for alpha in alphas]


@dataclass(frozen=True)
class Sqrt(ByAlpha):
    """In proportion to the square root of alpha, with mean 1 (released code of TempBalance, ``tb_sqrt``).

    Example:
        >>> Sqrt()([4.0, 9.0])
        [0.8, 1.2]
    """

    def _map(self, alphas: list[float]) -> list[float]:
        return _in_proportion([math.sqrt(alpha) for alpha in alphas])


@dataclass(frozen=True)
class Log2(ByAlpha):
    """In proportion to the logarithm of alpha, with mean 1 (released code of TempBalance, ``tb_log2``).

    Example:
        >>> Log2()([2.0, 8.0])
        [0.5, 1.5]
    """

    def _map(self, alphas: list[float]) -> list[float]:
        return _in_proportion([math.log2(alpha) for alpha in alphas])


@dataclass(frozen=True)
class Rank(_Bounded):
    """Evenly spaced from ``low`` to ``high`` in the order of alpha; equal alphas share the mean of their places.

    Attributes:
        low: Multiplier of the unit with the heaviest tail.
        high: Multiplier of the unit with the lightest tail.

    Example:
        >>> Rank(0.5, 1.5)([2.0, 9.0, 2.1])
        [0.5, 1.5, 1.0]
    """

    def _map(self, alphas: list[float]) -> list[float]:
        places = [(sum(b < a for b in alphas) + sum(b <= a for b in alphas) - 1) / 2 for a in alphas]
        return [self.low + (self.high - self.low) * place / (len(alphas) - 1) for place in places]


@dataclass(frozen=True)
class RankAsReleased(_Bounded):
    """``Rank`` as in the code released with TempBalance (``tb_step``): the top unit stays a step below ``high``.

    Of ``n`` units the one at place ``i = 0, 1, ...`` gets ``low + (high - low) i / n``; among equal alphas the first
    gets less.

    Attributes:
        low: Multiplier of the unit with the heaviest tail.
        high: Never reached.

    Example:
        >>> RankAsReleased(0.5, 1.5)([2.0, 9.0])
        [0.5, 1.0]
    """

    def _map(self, alphas: list[float]) -> list[float]:
        order = sorted(range(len(alphas)), key=alphas.__getitem__)
        places = dict(zip(order, range(len(alphas)), strict=True))
        return [self.low + (self.high - self.low) * places[i] / len(alphas) for i in range(len(alphas))]


@dataclass(frozen=True)
class Sigmoid(ByAlpha):
    """A power of ten that saturates on both sides of the mean alpha (Model Balancing, section 3, "TB_Sigmoid").

    ``10^phi`` with ``phi = s (1 / (1 + exp(-temperature (alpha - mean))) - 1/2)``, so the multiplier lies between
    ``10^(-s/2)`` and ``10^(s/2)``.

    Attributes:
        strength: ``s``: one number, or a pair (of units below the mean alpha, of units above it); the paper tunes it
            among 0.25 .. 1.25 and (2, 1) for language, 0.125 .. 1.5 for PDEs. 0 turns balancing off.
        temperature: How soon it saturates; 10 in the paper.

    Example:
        >>> [round(multiplier, 3) for multiplier in Sigmoid(1.0)([2.0, 2.2, 2.4])]
        [0.416, 1.0, 2.403]
        >>> Sigmoid((2.0, 1.0)).strength
        (2.0, 1.0)
    """

    strength: float | tuple[float, float] = 1.0
    temperature: float = 10.0

    def __post_init__(self) -> None:
        """Check the parameters.

        Raises:
            ValueError: A strength or the temperature is negative or not finite.
        """
        if not all(0 <= number < math.inf for number in (*self._strengths(), self.temperature)):
            raise ValueError(
                f"strength and temperature must be finite and not negative, got {self.strength} and {self.temperature}"
            )

    def _strengths(self) -> tuple[float, float]:
        if isinstance(self.strength, (int, float)):
            return self.strength, self.strength
        below, above = self.strength
        return below, above

    def _map(self, alphas: list[float]) -> list[float]:
        mean = fmean(alphas)
        below, above = self._strengths()
        # 1 / (1 + exp(-x)) - 1/2 = tanh(x / 2) / 2, which does not overflow
        return [
            10 ** ((above if alpha > mean else below) * math.tanh(self.temperature * (alpha - mean) / 2) / 2)
            for alpha in alphas
        ]


def _in_proportion(values: list[float]) -> list[float]:
    mean = fmean(values)
    return [value / mean for value in values]
