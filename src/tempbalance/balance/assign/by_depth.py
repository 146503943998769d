"""Assignments by depth alone: learning rates that fall from the head of a model to its embeddings."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from tempbalance.balance.assign.assignment import Assignment, UnitFacts
from tempbalance.errors import ArgumentError, check_numbers

__all__ = ["ByDepth", "LayerwiseDecay", "SlowLearner"]


@dataclass(frozen=True)
class ByDepth(Assignment):
    """Base class of assignments by depth alone. To write your own, implement ``multiplier_at``."""

    @property
    def uses_alpha(self) -> bool:
        """Always False, so no spectrum is computed."""
        return False

    @property
    def uses_depth(self) -> bool:
        """Always True, so every trained parameter gets a multiplier."""
        return True

    def assign(self, units: Sequence[UnitFacts]) -> list[float]:
        """Assign a multiplier to every unit by its depth."""
        return [self.multiplier_at(unit.depth) for unit in units]

    @abstractmethod
    def multiplier_at(self, depth: int) -> float:
        """Return the multiplier at a depth, finite and not negative; depth 0 is the head."""


@dataclass(frozen=True)
class LayerwiseDecay(ByDepth):
    """Layer-wise learning-rate decay, ``decay ** depth``: the head learns at the full rate, lower blocks more slowly.

    Source: ULMFiT (Howard and Ruder 2018, arXiv 1801.06146, section 3.2, "discriminative fine-tuning"), ELECTRA (2020)
    and BEiT (2021), whose depths are used here. Use it to fine-tune a pre-trained transformer: the lower blocks contain
    general features that need the least change.

    Attributes:
        decay: Learning rate of a block divided by that of the block above it, in (0, 1]; 0.65 to 0.9 for transformers,
            1/2.6 in ULMFiT.

    Raises:
        ArgumentError: ``decay`` is not in (0, 1].

    Example:
        >>> LayerwiseDecay(0.5).assign([UnitFacts(depth=2), UnitFacts(depth=1), UnitFacts(depth=0)])
        [0.25, 0.5, 1.0]
    """

    decay: float = 0.9

    def __post_init__(self) -> None:
        check_numbers(decay=self.decay)
        if not 0 < self.decay <= 1:
            raise ArgumentError(f"decay must be greater than 0 and at most 1, got {self.decay}")

    def multiplier_at(self, depth: int) -> float:
        """See the base class."""
        return float(self.decay**depth)


@dataclass(frozen=True)
class SlowLearner(ByDepth):
    """The full learning rate for the head, a fraction of it for all other parameters.

    Source: SLCA (Zhang et al., ICCV 2023, arXiv 2303.05118), "slow learner". Use it to train a new head on a
    pre-trained model without forgetting its features, in particular in continual learning.

    Attributes:
        fraction: Fraction of the head's learning rate, in [0, 1]; 0.01 in the released code of SLCA. With 0 only the
            head is trained.

    Raises:
        ArgumentError: ``fraction`` is not in [0, 1].

    Example:
        >>> SlowLearner(0.1).assign([UnitFacts(depth=2), UnitFacts(depth=1), UnitFacts(depth=0)])
        [0.1, 0.1, 1.0]
    """

    fraction: float = 0.01

    def __post_init__(self) -> None:
        check_numbers(fraction=self.fraction)
        if not 0 <= self.fraction <= 1:
            raise ArgumentError(f"fraction must be from 0 to 1, got {self.fraction}")

    def multiplier_at(self, depth: int) -> float:
        """See the base class."""
        return 1.0 if depth == 0 else self.fraction
