"""Negative controls: a recipe whose multipliers are assigned to the wrong units.

If a control does as well as the recipe, the gain of the recipe does not come from alpha.
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
    """The multipliers of another assignment, rearranged over the units that have an alpha, a depth or a role.

    Attributes:
        base: The other assignment.
    """

    base: Assignment

    @property
    def inner(self) -> tuple[Assignment, ...]:
        """The other assignment."""
        return (self.base,)

    def assign(self, units: Sequence[UnitFacts]) -> list[float]:
        """Assign multipliers; a unit without alpha keeps the multiplier that ``base`` gives it."""
        multipliers, every = self.base.assign(units), self.uses_depth or self.uses_parameters
        places = [i for i, unit in enumerate(units) if every or math.isfinite(unit.alpha)]
        rearranged = self._rearrange([multipliers[i] for i in places]) if places else []
        for i, multiplier in zip(places, rearranged, strict=True):
            multipliers[i] = multiplier
        return multipliers

    @abstractmethod
    def _rearrange(self, multipliers: list[float]) -> list[float]:
        """Return as many multipliers with the same mean."""


@dataclass(frozen=True)
class Inverted(_Rearranged):
    """The same multipliers in the opposite order: the unit with the heaviest tail gets the largest.

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
    """The same multipliers in a random order, the same at every refresh with the same number of units.

    Attributes:
        seed: Seed of the order.

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
    """The mean of the multipliers for every unit: the same mean rate without balancing.

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
    "untrained": lambda recipe, _seed: replace(recipe, start=sys.maxsize),  # Method measures once, on random weights
}


@contextmanager
def random_weights(model: nn.Module, seed: int) -> Iterator[None]:
    """Use Gaussian weights of the same shapes inside the block, so that alpha depends on the shape only.

    Weights of two or more dimensions are replaced, and restored exactly. The global generator is not used.
    """
    weights = [p for p in model.parameters() if p.ndim > 1 and (p.is_floating_point() or p.is_complex())]
    originals = [weight.detach().clone() for weight in weights]
    try:
        with torch.no_grad():
            for place, weight in enumerate(weights):
                weight.normal_(generator=torch.Generator(weight.device).manual_seed(seed + place))
        yield
    finally:
        with torch.no_grad():
            for weight, original in zip(weights, originals, strict=True):
                weight.copy_(original)
