"""The result of a search for multipliers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from tempbalance.study.method import PLAIN
from tempbalance.study.summary import Summary

__all__ = ["SearchResult", "SearchTrial", "best_first"]

_GOOD = 0.25  # share of the complete trials
_EDGE = 1.05


@dataclass(frozen=True, kw_only=True)
class SearchTrial:
    """A learning rate and multipliers, trained with the seeds of the search.

    Attributes:
        origin: ``"plain"``, the name of known multipliers, or ``"sampled"``.
        lr: Base learning rate.
        multipliers: Multiplier by unit; empty for plain.
        values: Validation metric of each seed that was trained and has one.
        status: ``"complete"``; ``"stopped"`` before the last seed because it was worse than the median; ``"diverged"``
            or ``"failed"`` at a seed.
    """

    origin: str
    lr: float
    multipliers: Mapping[str, float]
    values: tuple[float, ...]
    status: Literal["complete", "stopped", "diverged", "failed"]

    @property
    def mean(self) -> float:
        """Mean validation metric; NaN without any."""
        return fmean(self.values) if self.values else math.nan

    @property
    def method(self) -> str:
        """Its method in a study, such as ``fixed:multipliers={'role:v':0.25}``."""
        return f"fixed:multipliers={dict(self.multipliers)}".replace(" ", "") if self.multipliers else PLAIN


def best_first(trials: Iterable[SearchTrial], lower_is_better: bool) -> list[SearchTrial]:
    """Return the complete trials, the best first."""
    complete = [each for each in trials if each.status == "complete"]
    return sorted(complete, key=lambda each: each.mean if lower_is_better else -each.mean)


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """What a search found.

    Attributes:
        best: The finalist with the best mean validation metric.
        plain: The best trial without multipliers: of as many learning rates as the search has trials if there is a
            confirmation, else of the rates that were given.
        trials: All trials, in order.
        finalists: The best trials and the best plain one, trained with more seeds.
        units: Names of the parameters of each unit, by its pattern.
        lower_is_better: Whether a smaller metric is better.
        confirmation: The paired study on fresh seeds; None if it was left out, or plain is the best.
        files: Files with the multipliers; empty if plain is the best.
        settings: Settings of the search, as in ``settings.json``.
    """

    best: SearchTrial
    plain: SearchTrial
    trials: tuple[SearchTrial, ...]
    finalists: tuple[SearchTrial, ...]
    units: Mapping[str, tuple[str, ...]]
    lower_is_better: bool
    confirmation: Summary | None
    files: tuple[Path, ...]
    settings: Mapping[str, Any]

    def __repr__(self) -> str:
        """Return the numbers of trials and units, and the recommendation."""
        return f"SearchResult({len(self.trials)} trials, {len(self.units)} units: {self.recommendation})"

    @property
    def recommendation(self) -> str:
        """One sentence, that of the confirmation if there is one."""
        if not self.best.multipliers:
            return "Keep plain: no multipliers were better than one learning rate for all parameters."
        if self.confirmation is None:
            return "Not confirmed: compare the multipliers with plain on fresh seeds before you use them."
        return self.confirmation.recommendation

    @property
    def notes(self) -> list[str]:
        """Notes on the numbers, one sentence each."""
        counts = {status: sum(each.status == status for each in self.trials) for status in ("diverged", "failed")}
        notes = [f"{count} of {len(self.trials)} trials {status}." for status, count in counts.items() if count]
        searched = self.settings["search"]
        edges = [f"the rate of {each.origin}" for each in (self.best, self.plain) if _at_edge(each.lr, searched["lr"])]
        edges += [unit for unit, value in self.best.multipliers.items() if _at_edge(value, searched["bounds"])]
        if self.confirmation is not None:
            notes.append(
                f"The study used the best of {len(self.trials)} or more learning rates of plain, found before it."
            )
        if edges:
            notes.append(f"At the edge of the searched range, so a wider one may be better: {', '.join(edges)}.")
        return notes

    def good_range(self, unit: str) -> tuple[float, float]:
        """Return the smallest and the largest multiplier of a unit in the best quarter of the complete trials.

        If the range is wide, the multiplier of the unit matters little.

        Args:
            unit: The pattern of the unit.

        Returns:
            The two multipliers.
        """
        complete = best_first(self.trials, self.lower_is_better)
        good = [each.multipliers.get(unit, 1.0) for each in complete[: math.ceil(_GOOD * len(complete))]]
        return min(good), max(good)

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists, strings and numbers: the content of ``summary.json``."""
        units = {}
        for unit, names in self.units.items():
            low, high = self.good_range(unit)
            own = {"multiplier": self.best.multipliers.get(unit, 1.0), "good_low": low, "good_high": high}
            units[unit] = {**own, "parameters": [*names]}
        return {
            "recommendation": self.recommendation,
            "notes": self.notes,
            "lower_is_better": self.lower_is_better,
            "best": asdict(self.best) | {"mean": self.best.mean},
            "plain": asdict(self.plain) | {"mean": self.plain.mean},
            "units": units,
            "trials": [asdict(each) for each in self.trials],
            "finalists": [asdict(each) for each in self.finalists],
            "confirmation": self.confirmation.to_dict() if self.confirmation else None,
            "files": [str(path) for path in self.files],
        }


def _at_edge(value: float, limits: tuple[float, float]) -> bool:
    return value <= limits[0] * _EDGE or value >= limits[1] / _EDGE
