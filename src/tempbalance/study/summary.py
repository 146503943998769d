"""Summarize a study: one row per method, and a recommendation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
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
        """Return this summary, with another name for a method if its name, or the beginning of it, is too long."""
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
    rows = [_row(results[0], scores[0], lower_is_better)]
    for result, own in zip(results[1:], scores[1:], strict=True):
        rows.append(_compared(_row(result, own, lower_is_better), own, scores[0]))
    corrected = iter(holm([row.p_value for row in rows if row.gain is not None]))
    rows = [row if row.gain is None else replace(row, p_value=next(corrected)) for row in rows]
    better = _better(results, rows, scores)
    obstacles = [_obstacle(place, rows, scores) for place in better]
    best = next((place for place, obstacle in zip(better, obstacles, strict=True) if not obstacle), None)
    obstacle = f"{rows[better[0]].label} is better, but {obstacles[0]}" if best is None and better else ""
    return Summary(
        seeds=len(results[0].trials),
        configurations=len(results[0].candidate.configurations),
        lower_is_better=lower_is_better,
        baseline=results[0].candidate.base,
        rows=rows,
        recommendation=_recommendation(results[0].candidate.base, rows, best, obstacle),
        notes=[*([] if best is None else _control_notes(results, rows, scores, best)), *_notes(results, rows, scores)],
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


def _finite(scores: Mapping[int, float]) -> list[float]:
    return [score for score in scores.values() if math.isfinite(score)]


def _row(result: Result, scores: _Scores, lower_is_better: bool) -> Row:
    finite = _finite(scores)
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


def _compared(row: Row, own: _Scores, other: _Scores) -> Row:
    """Return the row of a method compared with another one; its p-value is not corrected."""
    seeds = [seed for seed in own if seed in other]
    if not seeds:
        return replace(row, gains={}, gain=None, p_value=math.nan)
    gain = paired([own[seed] for seed in seeds], [other[seed] for seed in seeds])
    return replace(row, gains={seed: own[seed] - other[seed] for seed in seeds}, gain=gain, p_value=gain.p_value)


def _verdict(row: Row) -> int:
    """Return 1 if a method is better, -1 if it is worse, 0 if neither is clear.

    The test counts diverged trials. The interval leaves them out, and says little if most seeds have one.
    """
    gain = row.gain
    if gain is None or not row.p_value < _LEVEL:
        return 0
    if gain.won > gain.lost:
        return 0 if _is_measured(row) and gain.low <= 0 else 1
    return 0 if _is_measured(row) and gain.high >= 0 else -1


def _is_measured(row: Row) -> bool:
    """Return whether at least half of the seeds have a finite gain."""
    return 2 * len(_finite(row.gains)) >= len(row.gains)


def _is_constant(scores: _Scores) -> bool:
    return len(scores) > 1 and len({*_finite(scores)}) == 1


def _better(results: Sequence[Result], rows: Sequence[Row], scores: Sequence[_Scores]) -> list[int]:
    """Return the indices of the methods that are better than the baseline, the greatest gain first."""

    def size(place: int) -> tuple[float, float]:
        """Return the gain, and the mean for those that have no seed in common with a baseline that diverged."""
        return fmean(_finite(rows[place].gains) or [-math.inf]), fmean(_finite(scores[place]) or [-math.inf])

    found = [place for place, row in enumerate(rows) if _verdict(row) > 0 and not results[place].candidate.is_control]
    return sorted(found, key=size, reverse=True)


def _obstacle(place: int, rows: Sequence[Row], scores: Sequence[_Scores]) -> str:
    """Return why a method that is better cannot be recommended; empty if it can."""
    base, row = rows[0], rows[place]
    if row.gain is None or row.gain.seeds < FEWEST:
        return f"fewer than {FEWEST} of its seeds can be compared"
    if row.diverged > base.diverged or row.failed > base.failed:
        return f"it diverged or failed more often than {base.label}"
    if _is_constant(scores[0]) and _is_constant(scores[place]):
        return f"it and {base.label} have the same metric on all seeds, so nothing is known of other seeds"
    return ""


def _recommendation(baseline: str, rows: Sequence[Row], best: int | None, obstacle: str) -> str:
    pairs = max((row.gain.seeds for row in rows if row.gain is not None), default=0)
    none = all(math.isnan(row.mean) for row in rows)
    if none or pairs == 0:
        one = "all trials diverged or failed" if none else f"no seed finished for both {baseline} and another method"
        return f"Nothing can be compared: {one}."
    if pairs < FEWEST:
        few = "1 seed is" if pairs == 1 else f"{pairs} seeds are"
        return f"{few} too few to recommend a method: run {FEWEST} or more."
    if obstacle:
        return f"No method can be recommended: {obstacle}."
    if best is None:
        return f"No method is better than {baseline} on this task ({pairs} seeds)."
    row, gain = rows[best], rows[best].gain
    assert gain is not None
    won = f"{gain.won} of {gain.seeds} seeds won; p = {row.p_value:.2g}"
    if not _is_measured(row):
        return f"Use {row.label}: on this task {baseline} diverged in {rows[0].diverged} trials ({won})."
    return (
        f"Use {row.label}: on this task it is better than {baseline} by {gain.mean:.3g} (95 % interval "
        f"{gain.low:.3g} to {gain.high:.3g}; {won})."
    )


def _control_notes(results: Sequence[Result], rows: Sequence[Row], scores: Sequence[_Scores], best: int) -> list[str]:
    """Compare the best method with its controls; nothing is said of one that cannot have any."""
    base = results[best].candidate.base
    controls = [i for i, each in enumerate(results) if each.candidate.base == base and each.candidate.is_control]
    if not controls:
        added = results[best].candidate.uniform
        note = f"To see whether the gain comes from balancing or from a higher mean rate, add the control {added}."
        return [note] if added else []
    found = {i: _compared(rows[best], scores[best], scores[i]) for i in controls}

    def names(places: Iterable[int]) -> str:
        return ", ".join(rows[i].method for i in places)

    missing = [i for i in controls if found[i].gain is None]
    equal = [i for i in controls if i not in missing and _verdict(found[i]) <= 0]
    notes = [f"No trial of these controls finished: {names(missing)}."] if missing else []
    if equal:
        return [
            f"It is not better than these controls, so the gain need not come from balancing: {names(equal)}.",
            *notes,
        ]
    others = [i for i in controls if i not in missing]
    return [*([f"It is also better than its controls: {names(others)}."] if others else []), *notes]


def _notes(results: Sequence[Result], rows: Sequence[Row], scores: Sequence[_Scores]) -> list[str]:
    base = results[0].candidate.base
    configurations = len(results[0].candidate.configurations)
    notes: list[str] = []
    if worse := [row.method for row in rows if _verdict(row) < 0]:
        notes.append(f"Worse than {base}: {', '.join(worse)}.")
    if same := [row.method for row in rows if row.gain is not None and {*row.gains.values()} == {0.0}]:
        notes.append(f"Equal to {base} on every seed, so without effect: {', '.join(same)}.")
    if all(map(_is_constant, scores)):
        notes.append(
            "The seeds make no difference: take data, initial weights and the order of batches from the seed, or use a "
            "finer metric."
        )
    notes.append(
        "Each method had one configuration, so the study itself tuned nothing."
        if configurations == 1
        else f"Each method had {configurations} configurations; the best by mean validation metric was compared."
    )
    if edges := [row.label for result, row in zip(results, rows, strict=True) if _at_edge(result)]:
        notes.append(f"The best of the learning rates tried is the smallest or largest: {', '.join(edges)}.")
    compared = sum(row.gain is not None for row in rows)
    corrected = f", Holm-corrected for {compared} comparisons" if compared > 1 else ""
    notes.append(f"p: Wilcoxon signed-rank test{corrected}.")
    if any(row.diverged for row in rows):
        notes.append("A diverged trial loses its pair; means and intervals exclude it.")
    diverged = [trial for result in results for trial in result.trials if trial.status == "diverged"]
    if only := sum(math.isfinite(trial.metrics.get("test", math.nan)) for trial in diverged):
        notes.append(f"{only} diverged trials have a finite test metric: only their validation metric is not finite.")
    failed = sum(row.failed for row in rows)
    if failed:
        notes.append(f"{failed} trials failed and are excluded; delete their files to retry.")
    return notes


def _at_edge(result: Result) -> bool:
    """Return whether the chosen learning rate is the smallest or largest of at least three."""
    between = sorted({each.lr for each in result.candidate.configurations if each.lr is not None})[1:-1]
    return bool(between) and result.chosen.lr not in between
