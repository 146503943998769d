"""Tables in Markdown."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean, median
from typing import Any

from claims import Claim, Experiment, Metric
from gains import Gain, Results, brief
from verdict import Outcome, Slope, claimed_gain

from tempbalance.study.method_names import read_parts


def study_tables(results: Results, others: Sequence[Metric] = ()) -> str:
    """Every method against the baseline, those with controls against each control, and all on other test data.

    Args:
        results: The results of a study.
        others: Metrics on other test data.

    Returns:
        One to three tables.
    """
    metric = results.metric
    counted = [name for name in ("diverged", "failed") if any(row[name] for row in results.rows)]
    unit = [f"gain, {metric.unit}", "95 % interval", "seeds won", "p"]
    lines = head("method", "chosen", metric.name, *unit, *counted)
    for row in results.rows:
        gain = None if row["gain"] is None else results.gain(row["method"], results.rows[0]["method"])
        p_value = "" if gain is None else f"{row['p_value']:.2g}"
        mean = number(_scaled(row["mean"], metric), metric.digits)
        counts = (str(row[name]) for name in counted)
        lines.append(
            line(_shown(row["method"], results), chosen(row), mean, *gain_cells(gain, metric), p_value, *counts)
        )
    controlled = [(row["method"], results.controls(row["method"])) for row in results.rows]
    against = [(method, kind, control) for method, controls in controlled for kind, control in controls.items()]
    if against:
        lines += ["", *head("method", "control", "difference", "95 % interval", "seeds won")]
        lines += [
            line(_shown(method, results), kind, *gain_cells(results.gain(method, control), metric))
            for method, kind, control in against
        ]
    trials = [trial for row in results.rows for trial in results.trials(row["method"]) if trial["status"] == "ok"]
    if measured := [each for each in others if trials and all(each.key in trial["metrics"] for trial in trials)]:
        lines += ["", *_other_tests(results, measured)]
    return "\n".join([_description(results), "", *lines])


def _other_tests(results: Results, metrics: Sequence[Metric]) -> list[str]:
    """Every method on other test data, and how long its trials took."""
    parts = [replace(results, metric=metric) for metric in metrics]
    names = [name for metric in metrics for name in (metric.name, f"gain, {metric.unit}")]
    lines, baseline = head("method", *names, "time, of plain"), results.rows[0]["method"]
    usual = median([trial["seconds"] for trial in results.trials(baseline)] or [math.nan])
    for row in results.rows:
        cells = []
        for part in parts:
            sign = -1 if part.metric.lower_is_better else 1
            mean = fmean([sign * score for score in part.scores(row["method"]).values()] or [math.nan])
            gain = part.gain(row["method"], baseline) if row["method"] != baseline else None
            shown = "" if gain is None else gain_text(gain, part.metric)
            cells += [number(part.metric.scale * mean, part.metric.digits), shown]
        seconds = median([trial["seconds"] for trial in results.trials(row["method"])] or [math.nan])
        lines.append(line(_shown(row["method"], results), *cells, number(seconds / usual, 1)))
    return lines


def _shown(method: str, results: Results) -> str:
    """The name of a method; of what a search found without the multipliers, which are in the description."""
    return f"`{re.sub('{.*}', '{...}', method) if 'search' in results.entry else method}`"


def _description(results: Results) -> str:
    summary, planned = results.entry["summary"], results.study.seeds
    parameters = ", ".join(f"{key} {value}" for key, value in results.study.parameters.items())
    seeds, tuning = summary["seeds"], results.entry["settings"]["tuning_seeds"]
    of_planned = f" of {planned}" if seeds < planned else ""
    others = f"{tuning} other seed{'s' if tuning > 1 else ''}"
    how = f"{summary['trials']} configurations per method, chosen on {others}" if results.is_tuned else "nothing tuned"
    if search := results.entry.get("search"):
        found = ", ".join(
            f"{unit.removeprefix('role:')} {multiplier:.2g}"
            for unit, multiplier in search["best"]["multipliers"].items()
        )
        how = (
            f"the best of {len(search['trials'])} trials, and of as many rates of plain, chosen on "
            f"{len(search['best']['values'])} other seeds. Found: {found}"
        )
    return f"{parameters}: {seeds}{of_planned} seeds; {how}."


def published_table(
    experiment: Experiment, claim: Claim, results: Mapping[str, Results], outcomes: Mapping[str, Outcome]
) -> str:
    """The paper's numbers, and ours below them.

    Args:
        experiment: The experiment.
        claim: One of its claims.
        results: Results of the studies that have been run, by name.
        outcomes: The outcome of each study.

    Returns:
        The table.
    """
    metric = experiment.metric
    lines = head("", experiment.size[1], brief(claim.baseline), "with the method", f"gain, {metric.unit}", "outcome")
    for row in claim.published:
        gain = (row.method - row.baseline) * (-1 if metric.lower_is_better else 1)
        shown = signed(100 * gain / row.baseline if metric.relative else gain, 2)
        lines.append(line(f"{row.where} (paper)", row.size, f"{row.baseline:g}", f"{row.method:g}", shown, ""))
    studies = {study.name: study for study in experiment.full}
    for panel, names in claim.panels.items():
        for name in names:
            size = f"{studies[name].parameters[experiment.size[0]]:g}"
            numbers = _numbers(claim, results.get(name))
            lines.append(line(f"{panel}, ours", size, *numbers, outcomes[name].value))
    return "\n".join(lines)


def _numbers(claim: Claim, results: Results | None) -> tuple[str, str, str]:
    gain = None if results is None else claimed_gain(claim, results)
    if results is None or gain is None:
        return "", "", ""
    metric = results.metric
    means = {row["method"]: number(_scaled(row["mean"], metric), metric.digits) for row in results.rows}
    method, baseline = (means[results.find(name) or ""] for name in (claim.method, claim.baseline))
    return baseline, method, gain_text(gain, metric)


def chosen(row: Mapping[str, Any]) -> str:
    """The choices of the configuration that was compared."""
    configuration, _, rate = row["chosen"].partition(" lr=")
    tuned = {key for part in read_parts(row["method"]) for key, nodes in part.choices.items() if len(nodes) > 1}
    parts = read_parts(configuration)
    texts = [text.replace("=", " ") for part in parts for key, text in _texts(part.texts) if key in tuned]
    return ", ".join([*texts, *([f"lr {rate}"] if rate else [])])


def _texts(texts: Mapping[str, Sequence[str]]) -> Iterable[tuple[str, str]]:
    return ((key, each) for key, every in texts.items() for each in every)


def gain_cells(gain: Gain | None, metric: Metric) -> tuple[str, str, str]:
    """Mean, interval, seeds won."""
    if gain is None:
        return "", "", ""
    low, high = (signed(end, metric.digits) for end in (gain.low, gain.high))
    return signed(gain.mean, metric.digits), f"{low} to {high}", f"{gain.won} of {gain.seeds}"


def gain_text(gain: Gain | Slope, metric: Metric) -> str:
    """Mean and interval."""
    mean, low, high = (signed(value, metric.digits) for value in gain[:3])
    return f"{mean} ({low} to {high})"


def number(value: float, digits: int) -> str:
    """A number; a dash for NaN."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "–"


def signed(value: float, digits: int) -> str:
    """A number with its sign, never -0."""
    return f"{round(value, digits) + 0.0:+.{digits}f}" if math.isfinite(value) else "–"


def _scaled(mean: float | None, metric: Metric) -> float:
    return math.nan if mean is None else metric.scale * mean


def head(*names: str) -> list[str]:
    """The head of a table."""
    return [line(*names), f"|{'---|' * len(names)}"]


def line(*cells: str) -> str:
    """A row of a table."""
    return f"| {' | '.join(cells)} |"
