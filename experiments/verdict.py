"""Is a claim reproduced? A fixed rule.

In a study the claim's method **gains** if its mean paired difference from the baseline has a 95 % interval above 0 and
the p-value of Wilcoxon's signed-rank test, corrected for the studies of the claim (Holm), is below 0.05. The gain is
**due to balancing** if the method's differences from all its controls have intervals above 0 as well. A study counts if
every method had its learning rate tuned, there are 10 seeds or more, and at least one control was run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import NamedTuple

import numpy as np
from claims import Claim
from gains import Gain, Results, brief

from tempbalance.study import FEWEST, holm

LEVEL = 0.05
RESAMPLES = 10_000


class Outcome(Enum):
    """The outcome of a study for a claim."""

    BALANCE = "better than the baseline and all controls"
    GAIN = "better than the baseline, but not than all controls"
    NONE = "no significant difference"
    WORSE = "worse than the baseline"
    EXCLUDED = "does not count"
    MISSING = "not run yet"


class Verdict(NamedTuple):
    """The verdict on a claim.

    Attributes:
        word: ``reproduced``, ``partly reproduced``, ``not reproduced`` or ``open``; a question of our own is
            ``confirmed``, ``partly confirmed`` or ``not confirmed``.
        reason: The reason, in a clause.
        outcomes: The outcome of each study, by name.
    """

    word: str
    reason: str
    outcomes: Mapping[str, Outcome]


def judge(claim: Claim, results: Mapping[str, Results]) -> Verdict:
    """Judge a claim: reproduced if balancing gains in all studies that count; partly if there is a gain in any.

    Args:
        claim: The claim.
        results: Results of the studies that have been run, by name.

    Returns:
        The verdict.
    """
    gains = {name: claimed_gain(claim, results[name]) for name in claim.studies if name in results}
    counting = {name: gain for name, gain in gains.items() if gain is not None and _counts(claim, results[name], gain)}
    corrected = dict(zip(counting, holm([gain.p_value for gain in counting.values()]), strict=True))
    outcomes = {
        name: Outcome.MISSING
        if gains.get(name) is None
        else _outcome(claim, results[name], counting[name], corrected[name])
        if name in counting
        else Outcome.EXCLUDED
        for name in claim.studies
    }
    return Verdict(*_sum_up(claim, [outcomes[name] for name in counting]), outcomes)


def claimed_gain(claim: Claim, results: Results) -> Gain | None:
    """The gain of the method over the baseline; None if one of them was not run."""
    method, baseline = results.find(claim.method), results.find(claim.baseline)
    return None if method is None or baseline is None else results.gain(method, baseline)


def _counts(claim: Claim, results: Results, gain: Gain) -> bool:
    return results.is_tuned and gain.seeds >= FEWEST and bool(results.controls(claim.method))


def _outcome(claim: Claim, results: Results, gain: Gain, p_value: float) -> Outcome:
    if p_value >= LEVEL or not (gain.low > 0 or gain.high < 0):
        return Outcome.NONE
    if gain.high < 0:
        return Outcome.WORSE
    method = results.find(claim.method)
    assert method is not None
    against = [results.gain(method, control) for control in results.controls(method).values()]
    is_better = all(difference is not None and difference.low > 0 for difference in against)
    return Outcome.BALANCE if is_better else Outcome.GAIN


def _sum_up(claim: Claim, outcomes: Sequence[Outcome]) -> tuple[str, str]:
    baseline, count = brief(claim.baseline), len(outcomes)
    by_balance, worse = outcomes.count(Outcome.BALANCE), outcomes.count(Outcome.WORSE)
    gains = by_balance + outcomes.count(Outcome.GAIN)
    if not count:
        return "open", "no study counts yet"
    studies = f"{count} {'study' if count == 1 else 'studies'}"
    reason = f"better than {baseline} in {gains} of {studies}, better than all controls in {by_balance}"
    if worse:
        reason += f"; worse than {baseline} in {worse}"
    word = "confirmed" if claim.ours else "reproduced"
    return word if by_balance == count else f"partly {word}" if gains else f"not {word}", reason


class Slope(NamedTuple):
    """The slope of a line, with its 95 % interval."""

    mean: float
    low: float
    high: float


def growth(claim: Claim, results: Sequence[Results], size: str) -> Slope | None:
    """Compute by how much the gain grows per halving of the data: the slope of a line through the gains of the studies.

    Args:
        claim: The claim.
        results: Results of the studies of a panel.
        size: The parameter that is the amount of data.

    Returns:
        The slope, with an interval by bootstrap over the seeds of each study; None with fewer than two sizes.
    """
    each: dict[float, np.ndarray] = {}
    for found in results:
        gain = claimed_gain(claim, found)
        differences = np.array([] if gain is None else gain.each)
        if np.isfinite(differences).any():
            each[found.study.parameters[size]] = differences[np.isfinite(differences)]
    if len(each) < 2:
        return None
    halvings = -np.log2([*each])
    halvings -= halvings.mean()
    weights = halvings / (halvings**2).sum()
    rng = np.random.default_rng(0)
    drawn = [gains[rng.integers(len(gains), size=(RESAMPLES, len(gains)))].mean(axis=1) for gains in each.values()]
    low, high = np.percentile(weights @ np.stack(drawn), [2.5, 97.5])
    return Slope(float(weights @ [gains.mean() for gains in each.values()]), float(low), float(high))
