"""Does the imbalance fall under balancing, and does it predict the test error? From the runs of all studies.

The imbalance at the end of a run is what its task measured, alike for all methods (``metrics``); where a task does not,
it is what the balancer saw at its last refresh, which plain training has not, but the control with one uniform rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np

from evidence.compare import Compared, Run
from evidence.correlation import Correlation, by_seed
from evidence.study import Study
from evidence.verdict import Verdict
from tempbalance.study import FEWEST, Paired, paired

MEASURES: dict[str, Callable[[Run], float | None]] = {
    "task": lambda run: run["metrics"].get("imbalance"),  # at the end, of every method
    "balancer": lambda run: run["balance"].get("last_imbalance"),  # at its last refresh; plain training has none
}


class Fall(NamedTuple):
    """What a method made of the imbalance, seed by seed, against another.

    Attributes:
        contest: Study and contest.
        method: The method.
        against: The other.
        of_method: Mean imbalance at the end.
        of_other: That of the other.
        difference: Of the two, negative where the method has less.
    """

    contest: str
    method: str
    against: str
    of_method: float
    of_other: float
    difference: Paired


class Prediction(NamedTuple):
    """How well a number at the end of a run predicts its test error.

    Attributes:
        contest: Study and contest.
        over_all: Over all runs: seeds, methods and learning rates.
        within: Over the deviations of runs from the mean of their trial, so that rates and methods do not matter.
    """

    contest: str
    over_all: Correlation
    within: Correlation


def falls(study: Study, compared: Compared) -> list[Fall]:
    """What the methods of a study's claims made of the imbalance, against plain training and against one uniform rate.

    Args:
        study: The study.
        compared: One of its contests.

    Returns:
        As many as can be compared.
    """
    found: list[Fall] = []
    for claim in study.claims:
        method = compared.find(claim.method)
        others = {"plain": compared.find(claim.baseline), "uniform": compared.controls(claim.method).get("uniform")}
        for name, other in others.items():
            fall = _fall(compared, method, other) if method and other else None
            if fall is not None:
                found.append(Fall(f"{study.name}: {compared.contest.name}", method, name, *fall))
    return found


def _fall(compared: Compared, method: str, other: str) -> tuple[float, float, Paired] | None:
    for measure in MEASURES.values():
        one, two = (_measured(compared.runs(each), measure) for each in (method, other))
        seeds = [seed for seed in one if seed in two]
        if seeds:
            mine, theirs = [one[seed] for seed in seeds], [two[seed] for seed in seeds]
            return fmean(mine), fmean(theirs), paired(mine, theirs)
    return None


def _measured(runs: Iterable[Run], measure: Callable[[Run], float | None]) -> dict[int, float]:
    values = {run["seed"]: measure(run) for run in runs if run["status"] == "ok"}
    return {seed: value for seed, value in values.items() if value is not None and math.isfinite(value)}


def predict(study: Study, compared: Compared, measured: str) -> Prediction | None:
    """Whether a number that the task measured at the end of each run goes with the test error.

    Args:
        study: The study.
        compared: One of its contests.
        measured: ``imbalance`` or ``mean_alpha``.

    Returns:
        The correlations, positive where more of it goes with more error; None where the task did not measure it.
    """
    sign = 1.0 if compared.metric.lower_is_better else -1.0
    finished = [run for run in compared.entry["runs"] if run["status"] == "ok"]
    runs = [run for run in finished if run["metrics"].get(measured) is not None]
    if not runs:
        return None
    seeds, trials = [run["seed"] for run in runs], [(run["method"], run["lr"]) for run in runs]
    x = np.array([run["metrics"][measured] for run in runs])
    y = np.array([sign * run["metrics"]["test"] for run in runs])
    within = [_deviations(values, trials) for values in (x, y)]
    return Prediction(f"{study.name}: {compared.contest.name}", by_seed(seeds, [*x], [*y]), by_seed(seeds, *within))


def _deviations(values: Sequence[float], trials: Sequence[object]) -> list[float]:
    groups: dict[object, list[float]] = {}
    for trial, value in zip(trials, values, strict=True):
        groups.setdefault(trial, []).append(value)
    return [value - fmean(groups[trial]) for trial, value in zip(trials, values, strict=True)]


def verdict_on_falls(found: Sequence[Fall]) -> Verdict:
    """Reproduced if the difference has an interval below 0 in all comparisons of 10 seeds or more; partly if in any.

    Args:
        found: The falls.

    Returns:
        The word and the reason.
    """
    judged = [fall.difference for fall in found if fall.difference.seeds >= FEWEST]
    lower, higher = sum(each.high < 0 for each in judged), sum(each.low > 0 for each in judged)
    return _verdict(len(judged), lower, f"lower in {lower} of {len(judged)} comparisons, higher in {higher}")


def verdict_on_predictions(found: Sequence[Prediction]) -> Verdict:
    """Reproduced if both correlations have an interval above 0 in all contests; partly if they have in any.

    Args:
        found: The predictions.

    Returns:
        The word and the reason.
    """
    judged = [each for each in found if math.isfinite(each.over_all.low)]
    over_all, within = ([getattr(each, kind).low > 0 for each in judged] for kind in ("over_all", "within"))
    both = sum(one and other for one, other in zip(over_all, within, strict=True))
    reason = (
        f"of {len(judged)} contests, it does so over all runs in {sum(over_all)}, among runs of one method and rate in "
        f"{sum(within)}, both in {both}"
    )
    return _verdict(len(judged), both, reason)


def _verdict(count: int, yes: int, reason: str) -> Verdict:
    if not count:
        return Verdict("open", "no contest has been run that counts", {})
    return Verdict("reproduced" if yes == count else "partly reproduced" if yes else "not reproduced", reason, {})
