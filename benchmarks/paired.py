"""Timing by pairs: the machine may be noisy, so only ratios within a pair count."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Comparison:
    """One question: how long does ``a`` take, as a multiple of ``b``?

    Attributes:
        name: What is compared.
        target: What was promised.
        a: Seconds of the first, one number a pair.
        b: Seconds of the second.
        inverse: Whether the ratio of interest is b / a ("times faster") instead of a / b.
    """

    name: str
    target: str
    a: list[float]
    b: list[float]
    inverse: bool = False

    @property
    def ratios(self) -> list[float]:
        """The ratio of each pair."""
        pairs = zip(self.a, self.b, strict=True)
        return [y / x if self.inverse else x / y for x, y in pairs]

    def row(self) -> dict[str, Any]:
        """All that was measured, for a JSON file."""
        ratios = self.ratios
        return {
            "name": self.name,
            "target": self.target,
            "ratio": {"median": median(ratios), "min": min(ratios), "max": max(ratios)},
            "seconds_a": self.a,
            "seconds_b": self.b,
        }


def seconds(work: Callable[[], object]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def pairs(a: Callable[[], object], b: Callable[[], object], count: int) -> tuple[list[float], list[float]]:
    """Time two calls in turn, after one of each that does not count."""
    a(), b()
    times = [(seconds(a), seconds(b)) for _ in range(count)]
    return [x for x, _ in times], [y for _, y in times]
