"""What a report needs to know: an ``Analysis`` or a ``Comparison``, without depending on either."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from tempbalance.types import LayerStats, Skipped

__all__ = ["ComparisonReport", "DeltaRow", "Report"]


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
