"""What a report needs to know: an ``Analysis``, a ``Comparison``, an ``Allocation``, ..., without depending on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from tempbalance.types import LayerStats, Skipped

__all__ = [
    "ComparisonReport",
    "DeltaRow",
    "Measured",
    "PlanReport",
    "RefreshRow",
    "Report",
    "ShareRow",
    "UnitRow",
]


class Report(Protocol):
    """The attributes of an ``Analysis`` that reports read."""

    @property
    def source(self) -> str:
        """Where the weights came from."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """What shaped the numbers."""

    @property
    def layers(self) -> Sequence[LayerStats]:
        """One row per analysed weight matrix, in model order."""

    @property
    def skipped(self) -> Sequence[Skipped]:
        """What was not analysed, and why."""

    @property
    def imbalance(self) -> float:
        """Standard deviation of alpha over the layers."""

    @property
    def block_imbalance(self) -> float:
        """Standard deviation of the mean alpha over the blocks."""


class DeltaRow(Protocol):
    """The attributes of a ``LayerDelta`` that reports read."""

    @property
    def name(self) -> str:
        """Qualified parameter name."""

    @property
    def alpha_before(self) -> float:
        """Alpha before."""

    @property
    def alpha_after(self) -> float:
        """Alpha after."""

    @property
    def delta(self) -> float:
        """The change."""

    @property
    def stderr(self) -> float:
        """Its standard error."""

    @property
    def z(self) -> float:
        """The change in standard errors."""


class ComparisonReport(Protocol):
    """The attributes of a ``Comparison`` that reports read."""

    @property
    def before(self) -> str:
        """Source of the first analysis."""

    @property
    def after(self) -> str:
        """Source of the second."""

    @property
    def layers(self) -> Sequence[DeltaRow]:
        """The layers that both have."""

    @property
    def only_before(self) -> Sequence[str]:
        """Layers of the first alone."""

    @property
    def only_after(self) -> Sequence[str]:
        """Layers of the second alone."""

    @property
    def imbalance_before(self) -> float:
        """Standard deviation of alpha before."""

    @property
    def imbalance_after(self) -> float:
        """Standard deviation of alpha after."""


class UnitRow(Protocol):
    """The attributes of a ``UnitState`` that reports read."""

    @property
    def name(self) -> str:
        """Qualified name of the layer or block."""

    @property
    def alpha(self) -> float:
        """Its exponent; NaN where it cannot be judged."""

    @property
    def multiplier(self) -> float:
        """Its factor on the learning rate or weight decay."""


class RefreshRow(Protocol):
    """The attributes of a ``Refresh`` that reports read."""

    @property
    def step(self) -> int:
        """Optimizer steps taken before it."""

    @property
    def units(self) -> Sequence[UnitRow]:
        """Every unit as it is after it."""

    @property
    def imbalance(self) -> float:
        """Standard deviation of alpha over the units."""


class ShareRow(Protocol):
    """The attributes of a ``LayerShare`` that reports read."""

    @property
    def name(self) -> str:
        """Name of the weight."""

    @property
    def unit(self) -> str:
        """Name of the layer or block that it is pruned with."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    @property
    def numel(self) -> int:
        """Number of its entries."""

    @property
    def alpha(self) -> float | None:
        """Its exponent; None where there is none."""

    @property
    def stderr(self) -> float | None:
        """Standard error of alpha; None where there is none."""

    @property
    def zeros(self) -> int:
        """How many entries are to be zero."""


class PlanReport(Protocol):
    """The attributes of an ``Allocation`` that reports read."""

    @property
    def source(self) -> str:
        """The model that was analysed."""

    @property
    def sparsity(self) -> float:
        """The global target."""

    @property
    def method(self) -> str:
        """How it was shared out."""

    @property
    def group(self) -> int | None:
        """M of N:M sparsity; None where zeros lie anywhere."""

    @property
    def layers(self) -> Sequence[ShareRow]:
        """What each weight gets, in model order."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Of the analysis."""


class Measured(Protocol):
    """The attributes of a ``Perplexity`` that reports read."""

    @property
    def value(self) -> float:
        """The perplexity; infinite where it overflows."""

    @property
    def stderr(self) -> float:
        """Its standard error; NaN where there is one window only."""

    @property
    def tokens(self) -> int:
        """How many tokens were predicted."""
