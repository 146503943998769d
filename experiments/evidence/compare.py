"""From the runs of a contest to differences of its methods, in the unit of a table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from evidence.keep import Entry
from evidence.study import Contest, Metric
from tempbalance.study import paired
from tempbalance.study.method_names import join, read_parts

Run = Mapping[str, Any]


class Gain(NamedTuple):
    """A paired difference, positive where the first is better, in the unit of a table.

    Attributes:
        mean: Over the seeds in which both have a number.
        low: Lower end of its 95 % interval.
        high: Upper end.
        won: Seeds in which the first is better.
        seeds: How many there are.
        p_value: Of Wilcoxon's signed-rank test, not corrected.
        each: The differences, seed by seed.
    """

    mean: float
    low: float
    high: float
    won: int
    seeds: int
    p_value: float
    each: tuple[float, ...]


@dataclass(frozen=True)
class Compared:
    """What came of a contest.

    Attributes:
        contest: As it was asked for.
        entry: Its results.
        metric: What is compared.
    """

    contest: Contest
    entry: Entry
    metric: Metric

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One per method, as in ``summary.json`` of the arena."""
        rows: list[dict[str, Any]] = self.entry["summary"]["rows"]
        return rows

    @property
    def is_tuned(self) -> bool:
        """Whether methods had a choice of rates."""
        return int(self.entry["summary"]["trials"]) > 1

    def find(self, name: str) -> str | None:
        """A method, with or without its learning rates; None if it was not compared."""
        plainly = without(name, "lr")
        return next((row["method"] for row in self.rows if without(row["method"], "lr") == plainly), None)

    def controls(self, method: str) -> dict[str, str]:
        """The controls of a method: the method of each, by what kind it is."""
        found: dict[str, str] = {}
        for row in self.rows:
            kind = control_of(row["method"])
            if kind and without(row["method"], "control", "lr") == without(method, "lr"):
                found[kind] = row["method"]
        return found

    def runs(self, method: str) -> list[Run]:
        """The runs of its chosen trial that are compared, seed by seed; none that failed."""
        chosen = next(row["chosen"] for row in self.rows if row["method"] == method)
        first = self.contest.first_seed
        seeds = range(first, first + self.entry["summary"]["seeds"])
        runs = [run for run in self.entry["runs"] if _trial(run) == chosen and run["seed"] in seeds]
        return [run for run in runs if run["status"] != "failed"]

    def scores(self, method: str) -> Mapping[int, float]:
        """Test metric by seed, the greater the better; NaN if the run diverged, missing if it failed."""
        sign = -1.0 if self.metric.lower_is_better else 1.0
        return {
            run["seed"]: sign * run["metrics"]["test"] if run["status"] == "ok" else math.nan
            for run in self.runs(method)
        }

    @cached_property
    def factor(self) -> float:
        """What differences are multiplied by."""
        mean = self.rows[0]["mean"]  # of the baseline
        if not self.metric.relative:
            return self.metric.scale
        return 100 / abs(mean) if mean else math.nan

    def gain(self, first: str, second: str) -> Gain | None:
        """One method over another; None where no seed has both."""
        one, other = self.scores(first), self.scores(second)
        seeds = [seed for seed in one if seed in other]
        if not seeds:
            return None
        found = paired([one[seed] for seed in seeds], [other[seed] for seed in seeds])
        return Gain(
            mean=self.factor * found.mean,
            low=self.factor * found.low,
            high=self.factor * found.high,
            won=found.won,
            seeds=found.seeds,
            p_value=found.p_value,
            each=tuple(self.factor * (one[seed] - other[seed]) for seed in seeds),
        )


def control_of(method: str) -> str | None:
    """The kind of a control; None if it is none."""
    found = [text for part in read_parts(method) for text in part.texts.get("control", [])]
    return found[0].removeprefix("control=") if found else None


def without(method: str, *keys: str) -> str:
    """The name of a method without some of its parameters."""
    parts = read_parts(method)
    return join(
        (part.name, [_list(key, texts) for key, texts in part.texts.items() if key not in keys]) for part in parts
    )


def brief(method: str) -> str:
    """The name of a method without what is tuned, as for a figure."""
    parts = read_parts(method)
    return without(method, "lr", *(key for part in parts for key, texts in part.texts.items() if len(texts) > 1))


def _list(key: str, texts: list[str]) -> str:
    values = [text.removeprefix(f"{key}=") for text in texts]
    return f"{key}={values[0]}" if len(values) == 1 else f"{key}=[{','.join(values)}]"


def _trial(run: Run) -> str:
    return str(run["method"]) if run["lr"] is None else f"{run['method']} lr={run['lr']:g}"
