"""Does balancing lower the imbalance, and does the imbalance predict the test error? From the trials of all studies.

The imbalance at the end of a trial is measured by its task, in the same way for all methods (``metrics``). If a task
does not measure it, it is the one of the balancer's last refresh, which plain training does not have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np
from claims import Experiment
from correlation import Correlation, by_seed
from gains import Results, Trial
from verdict import Verdict

from tempbalance.study import FEWEST, Paired, paired

MEASURES: tuple[Callable[[Trial], float | None], ...] = (
    lambda trial: trial["metrics"].get("imbalance"),  # at the end, for every method
    lambda trial: trial["balance"].get("last_imbalance"),  # at the last refresh; missing for plain training
)


class ImbalanceChange(NamedTuple):
    """The change of the imbalance by a method, paired by seed.

    Attributes:
        study: Experiment and study.
        method: The method.
        against: ``plain`` or ``uniform``.
        of_method: Mean imbalance at the end.
        of_other: Mean imbalance of the other.
        difference: The paired difference, negative if the method has less.
    """

    study: str
    method: str
    against: str
    of_method: float
    of_other: float
    difference: Paired


class ErrorCorrelation(NamedTuple):
    """How well a number at the end of a trial predicts its test error.

    Attributes:
        study: Experiment and study.
        over_all: Over all trials: seeds, methods and learning rates.
        within: Over deviations from the mean of each configuration, so that only the seed differs.
    """

    study: str
    over_all: Correlation
    within: Correlation


def imbalance_changes(experiment: Experiment, results: Results) -> list[ImbalanceChange]:
    """Compare the imbalance of the claims' methods by alpha with plain training and with the uniform control.

    Args:
        experiment: The experiment.
        results: Results of one of its studies.

    Returns:
        The comparisons that can be made.
    """
    found: list[ImbalanceChange] = []
    for claim in (each for each in experiment.claims if each.by_alpha):
        method = results.find(claim.method)
        others = {"plain": results.find(claim.baseline), "uniform": results.controls(claim.method).get("uniform")}
        for name, other in others.items():
            change = _change(results, method, other) if method and other else None
            if method and change is not None:
                found.append(ImbalanceChange(_name(experiment, results), method, name, *change))
    return found


def _name(experiment: Experiment, results: Results) -> str:
    return f"{experiment.name}: {results.study.name}"


def _change(results: Results, method: str, other: str) -> tuple[float, float, Paired] | None:
    for measure in MEASURES:
        one, two = (_measured(results.trials(each), measure) for each in (method, other))
        seeds = [seed for seed in one if seed in two]
        if seeds:
            first, second = [one[seed] for seed in seeds], [two[seed] for seed in seeds]
            return fmean(first), fmean(second), paired(first, second)
    return None


def _measured(trials: Iterable[Trial], measure: Callable[[Trial], float | None]) -> dict[int, float]:
    values = {trial["seed"]: measure(trial) for trial in trials if trial["status"] == "ok"}
    return {seed: value for seed, value in values.items() if value is not None and math.isfinite(value)}


def error_correlation(experiment: Experiment, results: Results, measured: str) -> ErrorCorrelation | None:
    """Correlate a number that the task measured at the end of each trial with the test error.

    Args:
        experiment: The experiment.
        results: Results of one of its studies.
        measured: ``imbalance`` or ``mean_alpha``.

    Returns:
        The correlations, positive if a greater number comes with a greater error; None if the task did not measure it.
    """
    sign = 1.0 if results.metric.lower_is_better else -1.0
    finished = [trial for trial in results.entry["runs"] if trial["status"] == "ok"]
    trials = [trial for trial in finished if trial["metrics"].get(measured) is not None]
    if not trials:
        return None
    seeds = [trial["seed"] for trial in trials]
    groups = [(trial["method"], trial["lr"]) for trial in trials]
    x = np.array([trial["metrics"][measured] for trial in trials])
    y = np.array([sign * trial["metrics"]["test"] for trial in trials])
    within = [_deviations(values, groups) for values in (x, y)]
    return ErrorCorrelation(_name(experiment, results), by_seed(seeds, [*x], [*y]), by_seed(seeds, *within))


def _deviations(values: Sequence[float], groups: Sequence[object]) -> list[float]:
    members: dict[object, list[float]] = {}
    for group, value in zip(groups, values, strict=True):
        members.setdefault(group, []).append(value)
    return [value - fmean(members[group]) for group, value in zip(groups, values, strict=True)]


def judge_changes(found: Sequence[ImbalanceChange]) -> Verdict:
    """Reproduced if the difference has an interval below 0 in all comparisons of 10 seeds or more; partly if in any.

    Args:
        found: The comparisons.

    Returns:
        The verdict.
    """
    counting = [change.difference for change in found if change.difference.seeds >= FEWEST]
    lower, higher = sum(each.high < 0 for each in counting), sum(each.low > 0 for each in counting)
    return _verdict(len(counting), lower, f"lower in {lower} of {len(counting)} comparisons, higher in {higher}")


def judge_correlations(found: Sequence[ErrorCorrelation]) -> Verdict:
    """Reproduced if both correlations have an interval above 0 in all studies; partly if they have in any.

    Args:
        found: The correlations.

    Returns:
        The verdict.
    """
    counting = [each for each in found if math.isfinite(each.over_all.low)]
    over_all, within = ([getattr(each, kind).low > 0 for each in counting] for kind in ("over_all", "within"))
    opposite = sum(each.over_all.high < 0 for each in counting)
    both = sum(one and other for one, other in zip(over_all, within, strict=True))
    reason = (
        f"of {len(counting)} studies, the correlation is positive over all trials in {sum(over_all)}, among trials of "
        f"one method and rate in {sum(within)}, both in {both}; it is negative over all trials in {opposite}"
    )
    return _verdict(len(counting), both, reason)


def _verdict(count: int, yes: int, reason: str) -> Verdict:
    if not count:
        return Verdict("open", "no study counts yet", {})
    return Verdict("reproduced" if yes == count else "partly reproduced" if yes else "not reproduced", reason, {})
