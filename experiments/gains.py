"""Results of a study: differences of its methods, in the unit of the tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from claims import Metric, Study

from tempbalance.study import paired
from tempbalance.study.method_names import join, read_parts

Trial = Mapping[str, Any]


class Gain(NamedTuple):
    """A paired difference in the unit of a table, positive where the first method is better.

    Attributes:
        mean: Mean over the seeds in which both are finite.
        low: Lower end of its 95 % interval.
        high: Upper end.
        won: Number of seeds in which the first is better.
        seeds: Number of seeds.
        p_value: p-value of Wilcoxon's signed-rank test, not corrected.
        each: The differences by seed.
    """

    mean: float
    low: float
    high: float
    won: int
    seeds: int
    p_value: float
    each: tuple[float, ...]


@dataclass(frozen=True)
class Results:
    """The results of a study.

    Attributes:
        study: The study.
        entry: The result of ``tempbalance.study.collect_folder``.
        metric: The metric that is compared.
    """

    study: Study
    entry: Mapping[str, Any]
    metric: Metric

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One per method, as in ``summary.json``."""
        rows: list[dict[str, Any]] = self.entry["summary"]["rows"]
        return rows

    @property
    def is_tuned(self) -> bool:
        """Whether methods had a choice of configurations."""
        return int(self.entry["summary"]["trials"]) > 1

    def find(self, name: str) -> str | None:
        """The method of that name, with or without its learning rates; None if it was not compared."""
        base = without(name, "lr")
        return next((row["method"] for row in self.rows if without(row["method"], "lr") == base), None)

    def controls(self, method: str) -> dict[str, str]:
        """The controls of a method, by kind."""
        found: dict[str, str] = {}
        for row in self.rows:
            kind = control_of(row["method"])
            if kind and without(row["method"], "control", "lr") == without(method, "lr"):
                found[kind] = row["method"]
        return found

    def trials(self, method: str) -> list[Trial]:
        """The trials of its chosen configuration on the compared seeds, without failed ones."""
        chosen = next(row["chosen"] for row in self.rows if row["method"] == method)
        first = self.study.first_seed
        seeds = range(first, first + self.entry["summary"]["seeds"])
        trials = [run for run in self.entry["runs"] if _configuration(run) == chosen and run["seed"] in seeds]
        return [trial for trial in trials if trial["status"] != "failed"]

    def scores(self, method: str) -> Mapping[int, float]:
        """The metric by seed, greater is better; NaN if the trial diverged, missing if it failed."""
        sign = -1.0 if self.metric.lower_is_better else 1.0
        return {
            trial["seed"]: sign * trial["metrics"][self.metric.key] if trial["status"] == "ok" else math.nan
            for trial in self.trials(method)
        }

    @cached_property
    def factor(self) -> float:
        """Factor from a difference of metrics to the unit of the table."""
        mean = self.rows[0]["mean"]  # of the baseline
        if not self.metric.relative:
            return self.metric.scale
        return 100 / abs(mean) if mean else math.nan

    def gain(self, first: str, second: str) -> Gain | None:
        """The gain of one method over another; None if no seed has both."""
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
    """The kind of a control; None for other methods."""
    found = [text for part in read_parts(method) for text in part.texts.get("control", [])]
    return found[0].removeprefix("control=") if found else None


def without(method: str, *keys: str) -> str:
    """The name of a method without some of its parameters."""
    parts = read_parts(method)
    return join(
        (part.name, [_list(key, texts) for key, texts in part.texts.items() if key not in keys]) for part in parts
    )


def brief(method: str) -> str:
    """The name of a method without its tuned parameters."""
    parts = read_parts(method)
    return without(method, "lr", *(key for part in parts for key, texts in part.texts.items() if len(texts) > 1))


def _list(key: str, texts: list[str]) -> str:
    values = [text.removeprefix(f"{key}=") for text in texts]
    return f"{key}={values[0]}" if len(values) == 1 else f"{key}=[{','.join(values)}]"


def _configuration(run: Trial) -> str:
    return str(run["method"]) if run["lr"] is None else f"{run['method']} lr={run['lr']:g}"
