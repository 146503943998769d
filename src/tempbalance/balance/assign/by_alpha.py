"""Assignments by alpha alone.

The smaller alpha, the heavier the tail and the better trained the unit, so a multiplier never falls as alpha rises. A
unit whose alpha is NaN or infinite gets the multiplier 1 and does not affect the others. If fewer than two units have a
finite alpha, or all alphas are equal within 1e-6 (relative), every multiplier is 1. (The code released with the papers
then gives every layer the highest rate, or NaN.)
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from statistics import fmean

from tempbalance.balance.assign.assignment import Assignment, UnitFacts
from tempbalance.errors import ArgumentError, ArgumentTypeError, check_numbers

__all__ = ["Bounded", "ByAlpha", "Linear", "Log2", "Rank", "Sigmoid", "Sqrt"]

_EQUAL = 1e-6  # relative accuracy of alpha
_PAIR = 2


@dataclass(frozen=True)
class ByAlpha(Assignment):
    """Base class of assignments by alpha alone. To write your own, implement ``map_alphas``.

    Attributes:
        normalize: Whether to divide by the mean multiplier of the units with an alpha, so that balancing does not
            change the mean learning rate. False by default, as in the papers: their maps may change the mean rate,
            which may cause a part of their gain.

    Example:
        >>> class Squared(ByAlpha):
        ...     def map_alphas(self, alphas):
        ...         return [alpha**2 for alpha in alphas]
        >>> Squared(normalize=True)([2.0, 4.0, float("nan")])
        [0.4, 1.6, 1.0]
    """

    _: KW_ONLY
    normalize: bool = False

    def assign(self, units: Sequence[UnitFacts]) -> list[float]:
        """Assign a multiplier to every unit by its alpha."""
        return self([unit.alpha for unit in units])

    def __call__(self, alphas: Sequence[float]) -> list[float]:
        """Assign a multiplier to every unit.

        Args:
            alphas: One exponent per unit, greater than 1; NaN or infinite for a unit without an alpha.

        Returns:
            One multiplier per unit, finite and not negative; 1 for a unit without an alpha.

        Raises:
            ArgumentError: A finite alpha is not greater than 1, so it is not the exponent of a density.
        """
        finite = [alpha for alpha in alphas if math.isfinite(alpha)]
        if any(alpha <= 1 for alpha in finite):
            raise ArgumentError(f"an exponent must be greater than 1, got {min(finite)}")
        if len(finite) < _PAIR or max(finite) - min(finite) <= _EQUAL * max(finite):
            return [1.0] * len(alphas)
        found = self.map_alphas(finite)
        if self.normalize:
            mean = fmean(found)
            found = [multiplier / mean for multiplier in found]
        values = iter(found)
        return [next(values) if math.isfinite(alpha) else 1.0 for alpha in alphas]

    @abstractmethod
    def map_alphas(self, alphas: list[float]) -> list[float]:
        """Return the multipliers before normalization.

        Args:
            alphas: Two or more finite alphas, not all equal.

        Returns:
            One multiplier per alpha, finite and not negative.
        """


@dataclass(frozen=True)
class Bounded(ByAlpha):
    """Base class of assignments by alpha whose multipliers span the range from ``low`` to ``high``.

    Attributes:
        low: Multiplier of the unit with the heaviest tail.
        high: Multiplier of the unit with the lightest tail.

    Raises:
        ArgumentError: Not ``0 <= low <= high < inf``.
    """

    low: float = 0.5
    high: float = 1.5

    def __post_init__(self) -> None:
        check_numbers(low=self.low, high=self.high)
        if not 0 <= self.low <= self.high < math.inf:
            raise ArgumentError(f"the bounds must satisfy 0 <= low <= high, got low={self.low}, high={self.high}")

    @property
    def stretches_to_range(self) -> bool:
        """Always True, because the multipliers span the range however little the alphas differ."""
        return True


@dataclass(frozen=True)
class Linear(Bounded):
    """Linear interpolation from ``low`` at the smallest alpha to ``high`` at the largest (TempBalance, Algorithm 1).

    Attributes:
        low: Multiplier of the unit with the heaviest tail; 0.5 in TempBalance, 0.67 in AlphaDecay, 1 in LLR.
        high: Multiplier of the unit with the lightest tail; 1.5, 3 or 5, and 5.

    Example:
        >>> Linear(0.5, 1.5)([2.0, 3.0, 4.0, float("nan")])
        [0.5, 1.0, 1.5, 1.0]
        >>> Linear(0.5, 1.5)([2.0, 2.0])
        [1.0, 1.0]
    """

    def map_alphas(self, alphas: list[float]) -> list[float]:
        """See the base class."""
        least, span = min(alphas), max(alphas) - min(alphas)
        return [self.low + (alpha - least) / span * (self.high - self.low) for alpha in alphas]


@dataclass(frozen=True)
class Sqrt(ByAlpha):
    """Proportional to the square root of alpha, with mean 1 (released code of TempBalance, ``tb_sqrt``).

    Example:
        >>> Sqrt()([4.0, 9.0])
        [0.8, 1.2]
    """

    def map_alphas(self, alphas: list[float]) -> list[float]:
        """See the base class."""
        return _proportional([math.sqrt(alpha) for alpha in alphas])


@dataclass(frozen=True)
class Log2(ByAlpha):
    """Proportional to the logarithm of alpha, with mean 1 (released code of TempBalance, ``tb_log2``).

    Example:
        >>> Log2()([2.0, 8.0])
        [0.5, 1.5]
    """

    def map_alphas(self, alphas: list[float]) -> list[float]:
        """See the base class."""
        return _proportional([math.log2(alpha) for alpha in alphas])


@dataclass(frozen=True)
class Rank(Bounded):
    """Evenly spaced from ``low`` to ``high`` in the order of alpha; equal alphas get the mean of their ranks.

    Attributes:
        low: Multiplier of the unit with the heaviest tail.
        high: Multiplier of the unit with the lightest tail.

    Example:
        >>> Rank(0.5, 1.5)([2.0, 9.0, 2.1])
        [0.5, 1.5, 1.0]
    """

    def map_alphas(self, alphas: list[float]) -> list[float]:
        """See the base class."""
        ranks = [(sum(b < a for b in alphas) + sum(b <= a for b in alphas) - 1) / 2 for a in alphas]
        return [self.low + (self.high - self.low) * rank / (len(alphas) - 1) for rank in ranks]


@dataclass(frozen=True)
class Sigmoid(ByAlpha):
    """A power of ten with a sigmoid of alpha as its exponent (Model Balancing, section 3, "TB_Sigmoid").

    ``10^phi`` with ``phi = s (1 / (1 + exp(-temperature (alpha - mean))) - 1/2)``, so the multiplier lies between
    ``10^(-s/2)`` and ``10^(s/2)``.

    Attributes:
        strength: ``s``: one number, or a pair (for units below the mean alpha, for units above it). The paper tunes it
            among 0.25 .. 1.25 and (2, 1) for language, 0.125 .. 1.5 for PDEs. With 0 every multiplier is 1.
        temperature: Slope of the sigmoid at the mean alpha; 10 in the paper.

    Raises:
        ArgumentError: A strength or the temperature is negative or not finite.
        ArgumentTypeError: One is not a number.

    Example:
        >>> [round(multiplier, 3) for multiplier in Sigmoid(1.0)([2.0, 2.2, 2.4])]
        [0.416, 1.0, 2.403]
        >>> Sigmoid((2.0, 1.0)).strength
        (2.0, 1.0)
    """

    strength: float | tuple[float, float] = 1.0
    temperature: float = 10.0

    def __post_init__(self) -> None:
        if isinstance(self.strength, Sequence) and len(self.strength) != 2:  # noqa: PLR2004
            raise ArgumentTypeError(f"strength must be a number or a pair of numbers, got {self.strength!r}")
        numbers = (*self._strengths(), self.temperature)
        for number in numbers:
            check_numbers(strength=number)
        if not all(0 <= number < math.inf for number in numbers):
            raise ArgumentError(
                f"strength and temperature must be finite and not negative, got {self.strength} and {self.temperature}"
            )

    def _strengths(self) -> tuple[float, float]:
        below, above = self.strength if isinstance(self.strength, Sequence) else (self.strength, self.strength)
        return below, above

    def map_alphas(self, alphas: list[float]) -> list[float]:
        """See the base class."""
        mean = fmean(alphas)
        below, above = self._strengths()
        # 1 / (1 + exp(-x)) - 1/2 = tanh(x / 2) / 2, which does not overflow
        return [
            10 ** ((above if alpha > mean else below) * math.tanh(self.temperature * (alpha - mean) / 2) / 2)
            for alpha in alphas
        ]


def _proportional(values: list[float]) -> list[float]:
    mean = fmean(values)
    return [value / mean for value in values]
