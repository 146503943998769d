"""Tables in Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from evidence.compare import Compared, Gain, brief
from evidence.study import Claim, Metric, Study
from evidence.verdict import Outcome, Slope, Verdict, claimed_gain
from tempbalance.study.method_names import read_parts

TROUBLES = ("diverged", "failed")


def contest_tables(compared: Compared) -> str:
    """Every method against the baseline, and those with controls against each of them.

    Args:
        compared: The contest.

    Returns:
        One table or two.
    """
    metric = compared.metric
    troubles = [trouble for trouble in TROUBLES if any(row[trouble] for row in compared.rows)]
    unit = [f"gain, {metric.unit}", "95 % interval", "seeds won", "p"]
    lines = head("method", "chosen", metric.name, *unit, *troubles)
    for row in compared.rows:
        gain = None if row["gain"] is None else compared.gain(row["method"], compared.rows[0]["method"])
        p_value = "" if gain is None else f"{row['p_value']:.2g}"
        mean = number(_scaled(row["mean"], metric), metric.digits)
        counts = (str(row[trouble]) for trouble in troubles)
        lines.append(line(f"`{row['method']}`", chosen(row), mean, *gain_cells(gain, metric), p_value, *counts))
    controlled = [(row["method"], compared.controls(row["method"])) for row in compared.rows]
    against = [(method, kind, control) for method, controls in controlled for kind, control in controls.items()]
    if against:
        lines += ["", *head("method", "against control", "difference", "95 % interval", "seeds won")]
        lines += [
            line(f"`{method}`", kind, *gain_cells(compared.gain(method, control), metric))
            for method, kind, control in against
        ]
    return "\n".join([_how(compared), "", *lines])


def _how(compared: Compared) -> str:
    entry, asked = compared.entry, compared.contest.seeds
    settings = ", ".join(f"{key} {value}" for key, value in compared.contest.settings.items())
    seeds, trials, tuning = entry["summary"]["seeds"], entry["summary"]["trials"], entry["settings"]["tuning_seeds"]
    short = f" of {asked}" if seeds < asked else ""
    others = f"{tuning} other seed{'s' if tuning > 1 else ''}"
    how = f"{trials} trials for each method, chosen on {others}" if compared.is_tuned else "nothing tuned"
    return f"{settings}: {seeds}{short} seeds, {how}."


def published_table(study: Study, claim: Claim, contests: Mapping[str, Compared], verdict: Verdict) -> str:
    """The paper's numbers, and ours below them.

    Args:
        study: The study.
        claim: Which of its claims.
        contests: What has been run, by name.
        verdict: On the claim.

    Returns:
        The table.
    """
    metric = study.metric
    lines = head("", study.size[1], brief(claim.baseline), "with the method", f"gain, {metric.unit}", "what it says")
    for row in claim.published:
        gain = (row.method - row.baseline) * (-1 if metric.lower_is_better else 1)
        shown = signed(100 * gain / row.baseline if metric.relative else gain, 2)
        lines.append(line(f"{row.where} (paper)", row.size, f"{row.baseline:g}", f"{row.method:g}", shown, ""))
    for panel, names in claim.panels.items():
        for name in names:
            lines.append(_ours(study, claim, panel, name, contests.get(name), verdict.outcomes[name]))
    return "\n".join(lines)


def _ours(study: Study, claim: Claim, panel: str, name: str, compared: Compared | None, outcome: Outcome) -> str:
    contest = next(contest for contest in study.full if contest.name == name)
    size = f"{contest.settings[study.size[0]]:g}"
    gain = None if compared is None else claimed_gain(claim, compared)
    if compared is None or gain is None:
        return line(f"{panel}, ours", size, "", "", "", outcome.value)
    means = {row["method"]: _scaled(row["mean"], study.metric) for row in compared.rows}
    pair = (number(means[compared.find(side)], study.metric.digits) for side in (claim.baseline, claim.method))
    return line(f"{panel}, ours", size, *pair, gain_text(gain, study.metric), outcome.value)


def chosen(row: Mapping[str, Any]) -> str:
    """Of a trial, what there was a choice of."""
    trial, _, rate = row["chosen"].partition(" lr=")
    listed = {key for part in read_parts(row["method"]) for key, nodes in part.choices.items() if len(nodes) > 1}
    texts = [text.replace("=", " ") for part in read_parts(trial) for key, text in _texts(part.texts) if key in listed]
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
    """A number; a dash for one that is missing."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "–"


def signed(value: float, digits: int) -> str:
    """A number with its sign, but 0 without that of -0."""
    return f"{round(value, digits) + 0.0:+.{digits}f}" if math.isfinite(value) else "–"


def _scaled(mean: float | None, metric: Metric) -> float:
    return math.nan if mean is None else metric.scale * mean


def head(*names: str) -> list[str]:
    """The head of a table."""
    return [line(*names), f"|{'---|' * len(names)}"]


def line(*cells: str) -> str:
    """A row of a table."""
    return f"| {' | '.join(cells)} |"
