"""Negative controls: recipes that share training out as unevenly, or raise it as much, but not by what alpha says.

If one of them does as well as the recipe, the gain is not what the theory says it is.
"""

from __future__ import annotations

import math
import random
import sys
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import fmean

import torch
from torch import nn

from tempbalance.balance import Recipe
from tempbalance.balance.assign import Assignment, UnitFacts

__all__ = ["CONTROLS", "Inverted", "Shuffled", "Uniform", "random_weights"]


@dataclass(frozen=True)
class _Rearranged(Assignment):
    """The multipliers of another assignment, in another place.

    Attributes:
        of: The other assignment.
    """

    of: Assignment

    @property
    def uses_alpha(self) -> bool:
        """Whether the other does."""
        return self.of.uses_alpha

    @property
    def uses_depth(self) -> bool:
        """Whether the other does."""
        return self.of.uses_depth

    def assign(self, units: Sequence[UnitFacts]) -> list[float]:
        """Assign a multiplier to every unit; one that the other does not judge keeps its own."""
        multipliers = self.of.assign(units)
        judged = [i for i, unit in enumerate(units) if self.uses_depth or math.isfinite(unit.alpha)]
        moved = self._rearrange([multipliers[i] for i in judged]) if judged else []
        for i, multiplier in zip(judged, moved, strict=True):
            multipliers[i] = multiplier
        return multipliers

    @abstractmethod
    def _rearrange(self, multipliers: list[float]) -> list[float]:
        """The same number of multipliers with the same mean."""


@dataclass(frozen=True)
class Inverted(_Rearranged):
    """The same multipliers in the opposite order: the largest to the unit with the heaviest tail.

    Example:
        >>> from tempbalance.balance.assign import Linear
        >>> units = [UnitFacts(alpha=alpha) for alpha in (2.0, 2.5, 4.0)]
        >>> Inverted(Linear(0.5, 1.5)).assign(units)
        [1.5, 0.75, 0.5]
    """

    def _rearrange(self, multipliers: list[float]) -> list[float]:
        order = sorted(range(len(multipliers)), key=multipliers.__getitem__)
        opposite = {i: multipliers[j] for i, j in zip(order, reversed(order), strict=True)}
        return [opposite[i] for i in range(len(multipliers))]


@dataclass(frozen=True)
class Shuffled(_Rearranged):
    """The same multipliers dealt out at random: to the same units at every refresh, as long as as many are judged.

    Attributes:
        seed: Which of the possible orders.

    Example:
        >>> from tempbalance.balance.assign import Linear
        >>> units = [UnitFacts(alpha=alpha) for alpha in (2.0, 2.5, 4.0)]
        >>> Shuffled(Linear(0.5, 1.5), seed=2).assign(units)
        [0.5, 1.5, 0.75]
    """

    seed: int

    def _rearrange(self, multipliers: list[float]) -> list[float]:
        return random.Random(self.seed).sample(multipliers, len(multipliers))


@dataclass(frozen=True)
class Uniform(_Rearranged):
    """To every unit the mean of the multipliers: the same mean rate without any balance.

    Example:
        >>> from tempbalance.balance.assign import Linear
        >>> units = [UnitFacts(alpha=alpha) for alpha in (2.0, 3.0, 4.0)]
        >>> Uniform(Linear(0.5, 1.5)).assign(units)
        [1.0, 1.0, 1.0]
    """

    def _rearrange(self, multipliers: list[float]) -> list[float]:
        return [fmean(multipliers)] * len(multipliers)


CONTROLS: dict[str, Callable[[Recipe, int], Recipe]] = {
    "inverted": lambda recipe, _seed: replace(recipe, assignment=Inverted(recipe.assignment)),
    "shuffled": lambda recipe, seed: replace(recipe, assignment=Shuffled(recipe.assignment, seed)),
    "uniform": lambda recipe, _seed: replace(recipe, assignment=Uniform(recipe.assignment)),
    "untrained": lambda recipe, _seed: replace(recipe, start=sys.maxsize),  # measured once, by hand, on random weights
}


@contextmanager
def random_weights(model: nn.Module, seed: int) -> Iterator[None]:
    """Within it all weights of two or more dimensions are Gaussian, so that an alpha tells nothing but the shape.

    Args:
        model: The model; it is put back exactly.
        seed: Of the random numbers; the global generator is left alone.

    Yields:
        Nothing.
    """
    weights = [p for p in model.parameters() if p.ndim > 1 and (p.is_floating_point() or p.is_complex())]
    kept = [weight.detach().clone() for weight in weights]
    try:
        with torch.no_grad():
            for place, weight in enumerate(weights):
                weight.normal_(generator=torch.Generator(weight.device).manual_seed(seed + place))
        yield
    finally:
        with torch.no_grad():
            for weight, original in zip(weights, kept, strict=True):
                weight.copy_(original)
