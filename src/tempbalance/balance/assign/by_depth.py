"""Assignments by depth: rates that fall from the head of a model to its embeddings, whatever the spectra."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from tempbalance.balance.assign.assignment import Assignment, UnitFacts

__all__ = ["LayerwiseDecay", "SlowLearner"]


@dataclass(frozen=True)
class _ByDepth(Assignment):
    """A function of the depth alone."""

    @property
    def uses_depth(self) -> bool:
        """It does."""
        return True

    def assign(self, units: Sequence[UnitFacts]) -> list[float]:
        """Assign a multiplier to every unit, by its depth alone."""
        return [self._at(unit.depth) for unit in units]

    @abstractmethod
    def _at(self, depth: int) -> float:
        """The multiplier at a depth, 0 being the head."""


@dataclass(frozen=True)
class LayerwiseDecay(_ByDepth):
    """A power of the depth, ``decay ** depth``: the head learns at the full rate, each block below it a bit slower.

    Source: ULMFiT (Howard and Ruder 2018, arXiv 1801.06146, section 3.2, "discriminative fine-tuning"), ELECTRA (2020)
    and BEiT (2021), which has exactly these depths. Use it when a pre-trained transformer is fine-tuned: general
    features lie low in the model and need the least change.

    Attributes:
        decay: The ratio of the rates of a block and of the one above it, greater than 0; 0.65 to 0.9 in transformers,
            1/2.6 in ULMFiT.

    Example:
        >>> LayerwiseDecay(0.5).assign([UnitFacts(depth=2), UnitFacts(depth=1), UnitFacts(depth=0)])
        [0.25, 0.5, 1.0]
    """

    decay: float = 0.9

    def __post_init__(self) -> None:
        """Check the ratio.

        Raises:
            ValueError: It is not greater than 0 and at most 1.
        """
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay must be greater than 0 and at most 1, got {self.decay}")

    def _at(self, depth: int) -> float:
        return float(self.decay**depth)


@dataclass(frozen=True)
class SlowLearner(_ByDepth):
    """The head at the full rate, all below it at a fraction of that.

    Source: SLCA (Zhang et al., ICCV 2023, arXiv 2303.05118), "slow learner". Use it when a new head is trained on a
    pre-trained model and the features must not be forgotten, above all on one task after the other.

    Attributes:
        fraction: Of the head's rate, from 0 to 1; 0.01 in the released code of SLCA. With 0 only the head learns.

    Example:
        >>> SlowLearner(0.1).assign([UnitFacts(depth=2), UnitFacts(depth=1), UnitFacts(depth=0)])
        [0.1, 0.1, 1.0]
    """

    fraction: float = 0.01

    def __post_init__(self) -> None:
        """Check the fraction.

        Raises:
            ValueError: It is not from 0 to 1.
        """
        if not 0 <= self.fraction <= 1:
            raise ValueError(f"fraction must be from 0 to 1, got {self.fraction}")

    def _at(self, depth: int) -> float:
        return 1.0 if depth == 0 else self.fraction
