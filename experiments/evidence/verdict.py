"""Is a claim reproduced? A rule that leaves nothing to taste.

In a contest the claim's method **gains** if its mean paired difference from the baseline has a 95 % interval above 0
and the p-value of Wilcoxon's signed-rank test, corrected for the contests of the claim (Holm), is below 0.05. A gain is
**due to balance** if the method's differences from all its controls have intervals above 0, too. A contest counts if
every method had its learning rate tuned, there are 10 seeds or more, and at least one control was run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import NamedTuple

import numpy as np

from evidence.compare import Compared, Gain
from evidence.study import Claim
from tempbalance.study import FEWEST, holm

LEVEL = 0.05
RESAMPLES = 10_000


class Outcome(Enum):
    """What a contest says of a claim."""

    BALANCE = "gain, and better than every control"
    GAIN = "gain, but not better than every control"
    NONE = "no gain beyond chance"
    WORSE = "worse"
    UNJUDGED = "does not count"
    MISSING = "not run yet"


class Verdict(NamedTuple):
    """What all contests of a claim say.

    Attributes:
        word: ``reproduced``, ``partly reproduced``, ``not reproduced`` or ``open``.
        reason: Why, in a clause.
        outcomes: Of each contest, by its name.
    """

    word: str
    reason: str
    outcomes: Mapping[str, Outcome]


def judge(claim: Claim, contests: Mapping[str, Compared]) -> Verdict:
    """Judge a claim: reproduced if balance gains in all contests that count; partly if there is a gain in any.

    Args:
        claim: The claim.
        contests: The contests that have been run, by name.

    Returns:
        The verdict.
    """
    names = [name for panel in claim.panels.values() for name in panel]
    gains = {name: claimed_gain(claim, contests[name]) for name in names if name in contests}
    counting = {name: gain for name, gain in gains.items() if gain is not None and _counts(claim, contests[name], gain)}
    corrected = dict(zip(counting, holm([gain.p_value for gain in counting.values()]), strict=True))
    outcomes = {
        name: Outcome.MISSING
        if gains.get(name) is None
        else _outcome(claim, contests[name], counting[name], corrected[name])
        if name in counting
        else Outcome.UNJUDGED
        for name in names
    }
    return Verdict(*_sum_up([outcomes[name] for name in counting]), outcomes)


def claimed_gain(claim: Claim, compared: Compared) -> Gain | None:
    """The method over the baseline; None where they were not both run."""
    method, baseline = compared.find(claim.method), compared.find(claim.baseline)
    return None if method is None or baseline is None else compared.gain(method, baseline)


def _counts(claim: Claim, compared: Compared, gain: Gain) -> bool:
    return compared.is_tuned and gain.seeds >= FEWEST and bool(compared.controls(claim.method))


def _outcome(claim: Claim, compared: Compared, gain: Gain, p_value: float) -> Outcome:
    if p_value >= LEVEL or not (gain.low > 0 or gain.high < 0):
        return Outcome.NONE
    if gain.high < 0:
        return Outcome.WORSE
    method = compared.find(claim.method)
    assert method is not None
    against = [compared.gain(method, control) for control in compared.controls(method).values()]
    is_better = all(difference is not None and difference.low > 0 for difference in against)
    return Outcome.BALANCE if is_better else Outcome.GAIN


def _sum_up(outcomes: Sequence[Outcome]) -> tuple[str, str]:
    """The word, and the reason."""
    count = len(outcomes)
    by_balance, worse = outcomes.count(Outcome.BALANCE), outcomes.count(Outcome.WORSE)
    gains = by_balance + outcomes.count(Outcome.GAIN)
    if not count:
        return "open", "no contest has been run that counts"
    reason = f"a gain in {gains} of {count} contests, due to balance in {by_balance}"
    if worse:
        reason += f"; worse in {worse}"
    return "reproduced" if by_balance == count else "partly reproduced" if gains else "not reproduced", reason


class Slope(NamedTuple):
    """Of a line, with its 95 % interval."""

    mean: float
    low: float
    high: float


def growth(claim: Claim, contests: Sequence[Compared], size: str) -> Slope | None:
    """By how much the gain grows each time that the data is halved: the slope of a line through the contests' gains.

    Args:
        claim: The claim.
        contests: Those of a panel.
        size: The setting that is the amount of data.

    Returns:
        The slope, with an interval by bootstrap over the seeds of each contest; None with fewer than two sizes.
    """
    each: dict[float, np.ndarray] = {}
    for compared in contests:
        gain = claimed_gain(claim, compared)
        differences = np.array([] if gain is None else gain.each)
        if np.isfinite(differences).any():
            each[compared.contest.settings[size]] = differences[np.isfinite(differences)]
    if len(each) < 2:
        return None
    halvings = -np.log2([*each])
    halvings -= halvings.mean()
    weights = halvings / (halvings**2).sum()
    rng = np.random.default_rng(0)
    drawn = [found[rng.integers(len(found), size=(RESAMPLES, len(found)))].mean(axis=1) for found in each.values()]
    low, high = np.percentile(weights @ np.stack(drawn), [2.5, 97.5])
    return Slope(float(weights @ [found.mean() for found in each.values()]), float(low), float(high))
