"""Summarize a study: one row per method, and a recommendation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any, TypeAlias

from tempbalance._files import RENDERERS
from tempbalance.study.candidates import Candidate, Configuration
from tempbalance.study.paired import FEWEST, Paired, holm, paired
from tempbalance.study.task import Trial

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["Result", "Row", "Summary", "summarize"]

_LEVEL = 0.05
_LONG = 100  # characters


@dataclass(frozen=True, kw_only=True)
class Result:
    """The trials of one candidate.

    Attributes:
        candidate: The candidate.
        chosen: Its configuration with the best mean validation metric; the only one if nothing was tuned.
        trials: Its trials, in the order of the seeds.
    """

    candidate: Candidate
    chosen: Configuration
    trials: Sequence[Trial]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method.

    Attributes:
        method: Its name.
        chosen: The configuration that was compared, with its learning rate.
        mean: Mean metric over the trials that are finite; NaN without any.
        diverged: Number of trials with a metric that is NaN or infinite.
        failed: Number of trials that raised.
        gains: Gain over the baseline by seed, positive if the method is better; NaN where either diverged.
        gain: Paired difference over all seeds; None for the baseline, and if no seed has both trials.
        p_value: The p-value of ``gain``, corrected for the number of methods.
    """

    method: str
    chosen: str
    mean: float
    diverged: int
    failed: int
    gains: Mapping[int, float]
    gain: Paired | None
    p_value: float

    @property
    def label(self) -> str:
        """The configuration as tables show it, ``chosen`` or, where that is long (a file), the name as given."""
        if len(self.chosen) <= max(_LONG, len(self.method)) or "[" in self.method:
            return self.chosen
        _, tuned, rate = self.chosen.rpartition(" lr=")
        return f"{self.method} lr={rate}" if tuned and "lr=" not in self.method else self.method


@dataclass(frozen=True, kw_only=True)
class Summary:
    """All methods, and a recommendation.

    Attributes:
        seeds: Number of seeds.
        configurations: Number of configurations that each method could choose from.
        lower_is_better: Whether a smaller metric is better.
        baseline: Method that the others are compared with.
        rows: The baseline, then the others.
        recommendation: One sentence.
        notes: Notes on the numbers, one sentence each.
        settings: Settings of the study, as in ``settings.json``.
    """

    seeds: int
    configurations: int
    lower_is_better: bool
    baseline: str
    rows: Sequence[Row]
    recommendation: str
    notes: Sequence[str]
    settings: Mapping[str, Any]

    def __repr__(self) -> str:
        """Return the numbers of methods and seeds, and the recommendation."""
        return f"Summary({len(self.rows)} methods, {self.seeds} seeds: {self.recommendation})"

    def plot(self) -> Figure:
        """Draw the gain of every method over the baseline: a dot per seed, the mean, and its 95 % interval.

        Returns:
            A plotly figure.

        Raises:
            MissingExtraError: plotly is not installed.
        """
        return RENDERERS["plot"]("study_figure", self)

    def shortened(self, name: str, other: str) -> Summary:
        """Return this summary with another name for a method whose name is too long to read; itself if it is not.

        Args:
            name: The name, or its beginning.
            other: The other name.

        Returns:
            The summary.
        """
        if len(name) <= _LONG:
            return self
        rows = [
            replace(row, method=row.method.replace(name, other), chosen=row.chosen.replace(name, other))
            for row in self.rows
        ]
        recommendation, *notes = (text.replace(name, other) for text in (self.recommendation, *self.notes))
        return replace(self, rows=rows, recommendation=recommendation, notes=notes)

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists, strings and numbers: the content of ``summary.json``."""
        return {
            "seeds": self.seeds,
            "trials": self.configurations,
            "lower_is_better": self.lower_is_better,
            "baseline": self.baseline,
            "rows": [asdict(row) | {"gain": row.gain._asdict() if row.gain else None} for row in self.rows],
            "recommendation": self.recommendation,
            "notes": [*self.notes],
        }


def summarize(
    results: Sequence[Result], *, lower_is_better: bool = False, settings: Mapping[str, Any] | None = None
) -> Summary:
    """Compare every method with the first, the baseline, over the same seeds."""
    scores = [_scores(result, lower_is_better) for result in results]
    gains = [_compare(each, scores[0]) for each in scores]
    corrected = iter(holm([gain.p_value for gain in gains[1:] if gain is not None]))
    rows = [_row(results[0], scores[0], lower_is_better)]
    for result, own, gain in zip(results[1:], scores[1:], gains[1:], strict=True):
        differences = {seed: own[seed] - scores[0][seed] for seed in own if seed in scores[0]}
        p_value = math.nan if gain is None else next(corrected)
        rows.append(replace(_row(result, own, lower_is_better), gains=differences, gain=gain, p_value=p_value))
    best = _best(results, rows)
    return Summary(
        seeds=len(results[0].trials),
        configurations=len(results[0].candidate.configurations),
        lower_is_better=lower_is_better,
        baseline=results[0].candidate.base,
        rows=rows,
        recommendation=_recommendation(results[0].candidate.base, rows, best),
        notes=[*([] if best is None else _control_notes(results, scores, best)), *_notes(results, rows)],
        settings=settings or {},
    )


_Scores: TypeAlias = Mapping[int, float]  # by seed, greater is better; NaN if it diverged, missing if it failed


def _scores(result: Result, lower_is_better: bool) -> _Scores:
    sign = -1.0 if lower_is_better else 1.0
    return {
        trial.seed: sign * trial.metrics["test"] if trial.status == "ok" else math.nan
        for trial in result.trials
        if trial.status != "failed"
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
        failed=len(result.trials) - len(scores),
        gains={},
        gain=None,
        p_value=math.nan,
    )


def _best(results: Sequence[Result], rows: Sequence[Row]) -> int | None:
    """Return the index of the method with the greatest gain among those that are better than the baseline."""
    better: dict[int, float] = {}
    for place, (result, row) in enumerate(zip(results, rows, strict=True)):
        gain = row.gain
        if gain is None or result.candidate.is_control or gain.seeds < FEWEST:
            continue
        if row.diverged > rows[0].diverged or row.failed > rows[0].failed:
            continue
        if gain.low > 0 and row.p_value < _LEVEL:
            better[place] = gain.mean
    return max(better, key=better.__getitem__, default=None)


def _recommendation(baseline: str, rows: Sequence[Row], best: int | None) -> str:
    pairs = max((row.gain.seeds for row in rows if row.gain is not None), default=0)
    if pairs == 0:
        return f"Nothing can be compared: no seed finished for both {baseline} and another method."
    if pairs < FEWEST:
        return f"{pairs} seeds are too few to recommend a method: run {FEWEST} or more."
    if best is None:
        return f"No method is better than {baseline} on this task ({pairs} seeds)."
    row, gain = rows[best], rows[best].gain
    assert gain is not None
    return (
        f"Use {row.label}: on this task it is better than {baseline} by {gain.mean:.3g} (95 % interval "
        f"{gain.low:.3g} to {gain.high:.3g}; {gain.won} of {gain.seeds} seeds won; p = {row.p_value:.2g})."
    )


def _control_notes(results: Sequence[Result], scores: Sequence[_Scores], best: int) -> list[str]:
    """Compare the best method with its controls; nothing is said of one that cannot have any."""
    base = results[best].candidate.base
    controls = [i for i, each in enumerate(results) if each.candidate.base == base and each.candidate.is_control]
    if not controls:
        added = results[best].candidate.uniform
        note = f"To see whether the gain comes from balancing or from a higher mean rate, add the control {added}."
        return [note] if added else []
    equal = [i for i in controls if (gain := _compare(scores[best], scores[i])) is None or not gain.low > 0]
    if equal:
        names = ", ".join(results[i].candidate.name for i in equal)
        return [f"It is not better than these controls, so the gain need not come from balancing: {names}."]
    return [f"It is also better than its controls: {', '.join(results[i].candidate.name for i in controls)}."]


def _notes(results: Sequence[Result], rows: Sequence[Row]) -> list[str]:
    configurations = len(results[0].candidate.configurations)
    worse = [row.method for row in rows if row.gain is not None and row.gain.high < 0 and row.p_value < _LEVEL]
    notes = [f"Worse than {results[0].candidate.base}: {', '.join(worse)}."] if worse else []
    notes.append(
        "Each method had one configuration: this study tuned nothing."
        if configurations == 1
        else f"Each method had {configurations} configurations; the best by mean validation metric was compared."
    )
    compared = sum(row.gain is not None for row in rows)
    notes.append(f"p: Wilcoxon signed-rank test, Holm-corrected for {compared} comparisons.")
    if any(row.diverged for row in rows):
        notes.append("A diverged trial loses its pair; means and intervals exclude it.")
    failed = sum(row.failed for row in rows)
    if failed:
        notes.append(f"{failed} trials failed and are excluded; delete their files to retry.")
    return notes
