"""What a comparison shows: one row per method, and one sentence that says what to do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any, TypeAlias

from tempbalance.study.paired import FEWEST, Paired, holm, paired
from tempbalance.study.runner import Result

__all__ = ["Row", "Summary", "summarize"]

_LEVEL = 0.05


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method.

    Attributes:
        method: Its name.
        chosen: The trial that was run, with its learning rate.
        mean: Mean metric of the runs that are finite; NaN without any.
        diverged: Runs with a metric that is NaN or infinite.
        failed: Runs that raised.
        gains: Over the baseline by seed, positive where the method is better; NaN where either diverged.
        gain: All of them together; None for the baseline, and where no seed has both runs.
        p_value: That of ``gain``, corrected for the number of methods.
    """

    method: str
    chosen: str
    mean: float
    diverged: int
    failed: int
    gains: Mapping[int, float]
    gain: Paired | None
    p_value: float


@dataclass(frozen=True, kw_only=True)
class Summary:
    """All methods, and what follows.

    Attributes:
        seeds: How many times they were compared.
        trials: Trials that each method had.
        lower_is_better: Whether the smallest metric is the best.
        baseline: The method that the others are compared with.
        rows: The baseline, then the others.
        recommendation: One sentence.
        notes: How to read the numbers, a sentence each.
    """

    seeds: int
    trials: int
    lower_is_better: bool
    baseline: str
    rows: Sequence[Row]
    recommendation: str
    notes: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        """Plain lists, strings and numbers."""
        rows = [asdict(row) | {"gain": row.gain._asdict() if row.gain else None} for row in self.rows]
        return asdict(self) | {"rows": rows}


def summarize(results: Sequence[Result], *, lower_is_better: bool = False) -> Summary:
    """Compare every method with the first.

    Args:
        results: The baseline, then the others, with the same seeds.
        lower_is_better: Whether the smallest metric is the best.

    Returns:
        The summary.
    """
    scored = [_scores(result, lower_is_better) for result in results]
    gains = [_compare(scores, scored[0]) for scores in scored]
    corrected = iter(holm([gain.p_value for gain in gains[1:] if gain is not None]))
    rows = [_row(results[0], scored[0], lower_is_better)]
    for result, scores, gain in zip(results[1:], scored[1:], gains[1:], strict=True):
        differences = {seed: scores[seed] - scored[0][seed] for seed in scores if seed in scored[0]}
        p_value = math.nan if gain is None else next(corrected)
        rows.append(replace(_row(result, scores, lower_is_better), gains=differences, gain=gain, p_value=p_value))
    best = _best(results, rows)
    return Summary(
        seeds=len(results[0].runs),
        trials=len(results[0].candidate.trials),
        lower_is_better=lower_is_better,
        baseline=results[0].candidate.of,
        rows=rows,
        recommendation=_recommendation(results[0].candidate.of, rows, best),
        notes=[*([] if best is None else _control_notes(results, scored, best)), *_notes(results, rows)],
    )


_Scores: TypeAlias = Mapping[int, float]  # by seed, the greater the better; NaN if it diverged, missing if it failed


def _scores(result: Result, lower_is_better: bool) -> _Scores:
    sign = -1.0 if lower_is_better else 1.0
    return {
        run.seed: sign * run.metrics["test"] if run.status == "ok" else math.nan
        for run in result.runs
        if run.status != "failed"
    }


def _compare(first: _Scores, second: _Scores) -> Paired | None:
    seeds = [seed for seed in first if seed in second]
    return paired([first[seed] for seed in seeds], [second[seed] for seed in seeds]) if seeds else None


def _row(result: Result, scores: _Scores, lower_is_better: bool) -> Row:
    finite = [score for score in scores.values() if math.isfinite(score)]
    mean = fmean(finite) if finite else math.nan
    return Row(
        method=result.candidate.name,
        chosen=str(result.chosen),
        mean=-mean if lower_is_better else mean,
        diverged=len(scores) - len(finite),
        failed=len(result.runs) - len(scores),
        gains={},
        gain=None,
        p_value=math.nan,
    )


def _best(results: Sequence[Result], rows: Sequence[Row]) -> int | None:
    """The place of the method with the greatest gain among those that are better than the baseline."""
    better: dict[int, float] = {}
    for place, (result, row) in enumerate(zip(results, rows, strict=True)):
        gain = row.gain
        if gain is None or result.candidate.is_control or gain.seeds < FEWEST or row.diverged > rows[0].diverged:
            continue
        if gain.low > 0 and row.p_value < _LEVEL:
            better[place] = gain.mean
    return max(better, key=better.__getitem__, default=None)


def _recommendation(baseline: str, rows: Sequence[Row], best: int | None) -> str:
    pairs = max((row.gain.seeds for row in rows if row.gain is not None), default=0)
    if pairs == 0:
        return "Nothing can be compared: in no seed have the baseline and another method both come to an end."
    if pairs < FEWEST:
        return f"{pairs} seeds are too few to recommend anything: take {FEWEST} or more."
    if best is None:
        return f"No method is better than {baseline} on this task, as far as {pairs} seeds show."
    row, gain = rows[best], rows[best].gain
    assert gain is not None
    return (
        f"Use {row.chosen}: on this task it is better than {baseline} by {gain.mean:.3g} (95 % interval "
        f"{gain.low:.3g} to {gain.high:.3g}; {gain.won} of {gain.seeds} seeds won; p = {row.p_value:.2g})."
    )


def _control_notes(results: Sequence[Result], scored: Sequence[_Scores], best: int) -> list[str]:
    """Whether it is the right layers that make the difference."""
    of = results[best].candidate.of
    controls = [i for i, each in enumerate(results) if each.candidate.of == of and each.candidate.is_control]
    if not controls:
        added = f"{of}{',' if ':' in of else ':'}control=uniform"
        return [f"Whether that is due to balance, or to a higher mean rate, only a control can tell: add {added}."]
    alike = [i for i in controls if (gain := _compare(scored[best], scored[i])) is None or not gain.low > 0]
    if alike:
        names = ", ".join(results[i].candidate.name for i in alike)
        return [f"But these controls cannot be told from it, so the gain need not come from balance: {names}."]
    return [f"It is better than its controls, too: {', '.join(results[i].candidate.name for i in controls)}."]


def _notes(results: Sequence[Result], rows: Sequence[Row]) -> list[str]:
    trials = len(results[0].candidate.trials)
    worse = [row for row in rows if row.gain is not None and row.gain.high < 0 and row.p_value < _LEVEL]
    notes = [f"Worse than {results[0].candidate.of}: {', '.join(row.method for row in worse)}."] if worse else []
    notes.append(
        "Nothing was tuned: every method had one trial."
        if trials == 1
        else f"Every method had {trials} trials; the one with the best validation metric was run."
    )
    compared = sum(row.gain is not None for row in rows)
    notes.append(f"p is of Wilcoxon's signed-rank test, corrected for {compared} comparisons (Holm).")
    if any(row.diverged for row in rows):
        notes.append("A run that diverged loses its pair; means and intervals leave it out.")
    failed = sum(row.failed for row in rows)
    if failed:
        notes.append(f"Runs that failed ({failed}) count for nobody; delete their files, and they are made again.")
    return notes
