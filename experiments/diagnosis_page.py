"""The page on imbalance and test error: two claims from the trials of all studies, and pretrained networks."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from correlation import Correlation, exact_p, spearman
from figures import Point, forest_figure
from imbalance import (
    ErrorCorrelation,
    ImbalanceChange,
    error_correlation,
    imbalance_changes,
    judge_changes,
    judge_correlations,
)
from pages import fill
from results_file import load_results
from studies import load_experiment
from studies.diagnosis import LOWERED, LOWERED_PAPER, MEASURED_IN, PREDICTS, PREDICTS_PAPER
from tables import head, line, number, signed

from tempbalance.errors import StudyError

COMMAND = "python experiments/diagnose.py"
CHANGES, CORRELATIONS = "diagnosis-falls.svg", "diagnosis-predicts.svg"


class Diagnosis:
    """The numbers of the page.

    Attributes:
        changes: Changes of the imbalance by balancing, in the studies of all experiments.
        by_imbalance: Correlation of the imbalance with the test error, in the studies whose task measured it.
        by_alpha: Correlation of the mean alpha with the test error.
        nets: The pretrained networks.
    """

    def __init__(self, results: Path) -> None:
        """Read the results.

        Args:
            results: The folder of results.

        Raises:
            StudyError: The results of the networks are damaged.
        """
        experiments = [load_experiment(name) for name in MEASURED_IN]
        studies = [(each, found) for each in experiments for found in load_results(each, results).values()]
        self.changes: list[ImbalanceChange] = [change for pair in studies for change in imbalance_changes(*pair)]
        self.by_imbalance, self.by_alpha = (
            [found for pair in studies if (found := error_correlation(*pair, measured)) is not None]
            for measured in ("imbalance", "mean_alpha")
        )
        file = results / "diagnosis.json"
        try:
            self.nets: list[dict[str, Any]] = json.loads(file.read_text("utf-8"))["nets"] if file.exists() else []
        except (ValueError, KeyError, TypeError) as error:
            raise StudyError(f"cannot read {file}: {error!r}; make it again: {COMMAND}") from error

    def page(self, text: str) -> str:
        """Update the generated parts of the page.

        Args:
            text: The page.

        Returns:
            The updated page.
        """
        lowered, predicts = judge_changes(self.changes), judge_correlations(self.by_imbalance)
        claims = [
            f"**{LOWERED}** ({LOWERED_PAPER})",
            f"**{lowered.word.capitalize()}**: {lowered.reason}.",
            f"![Change of the imbalance by balancing]({CHANGES})",
            _changes_table(self.changes),
            f"**{PREDICTS}** ({PREDICTS_PAPER})",
            f"**{predicts.word.capitalize()}**: {predicts.reason}.",
            f"![Rank correlation of imbalance and test error]({CORRELATIONS})",
            _correlations_table(self.by_imbalance, self.by_alpha),
        ]
        return fill(fill(text, "claims", "\n\n".join(claims)), "nets", _nets_table(self.nets))

    def figures(self) -> dict[str, str]:
        """SVG by file name."""
        changes = [
            Point(f"{each.study}, against {each.against}", int(each.against == "uniform"), *_relative(each))
            for each in self.changes
        ]
        correlations = [
            Point(each.study, place, *correlation[:3])
            for each in self.by_imbalance
            for place, correlation in enumerate((each.over_all, each.within))
            if math.isfinite(correlation.low)
        ]
        series = ("all trials", "trials of one method and rate")
        return {
            CHANGES: forest_figure(changes, "change of the imbalance, %", ("against plain", "against uniform")),
            CORRELATIONS: forest_figure(correlations, "rank correlation of imbalance and test error", series),
        }

    def index_rows(self) -> list[str]:
        """Its rows in the table of all claims."""
        rows = []
        for claim, paper, verdict in (
            (LOWERED, LOWERED_PAPER, judge_changes(self.changes)),
            (PREDICTS, PREDICTS_PAPER, judge_correlations(self.by_imbalance)),
        ):
            text = f"**{verdict.word}** ([diagnosis](diagnosis.md)): {verdict.reason}"
            rows.append(line(f"{claim} {paper}", "", "", text))
        return rows


@functools.cache
def load_diagnosis(results: Path) -> Diagnosis:
    """Read the results once."""
    return Diagnosis(results)


def _relative(change: ImbalanceChange) -> tuple[float, float, float]:
    mean, low, high = (100 * value / change.of_other for value in change.difference[:3])
    return mean, low, high


def _changes_table(found: Sequence[ImbalanceChange]) -> str:
    lines = head(
        "study", "method", "against", "its imbalance", "with the method", "difference", "95 % interval", "seeds"
    )
    for change in found:
        ends = f"{signed(change.difference.low, 4)} to {signed(change.difference.high, 4)}"
        means = (number(change.of_other, 4), number(change.of_method, 4), signed(change.difference.mean, 4))
        lines.append(
            line(change.study, f"`{change.method}`", change.against, *means, ends, str(change.difference.seeds))
        )
    return "\n".join(lines)


def _correlations_table(by_imbalance: Sequence[ErrorCorrelation], by_alpha: Sequence[ErrorCorrelation]) -> str:
    within = "one method and rate"
    lines = head("study", "trials", "imbalance, all trials", within, "mean alpha, all trials", within)
    for one, other in zip(by_imbalance, by_alpha, strict=True):
        found = (one.over_all, one.within, other.over_all, other.within)
        lines.append(line(one.study, str(one.over_all.points), *map(_correlation, found)))
    return "\n".join(lines)


def _correlation(found: Correlation) -> str:
    interval = f" ({signed(found.low, 2)} to {signed(found.high, 2)})" if math.isfinite(found.low) else ""
    return f"{signed(found.mean, 2)}{interval}"


def _nets_table(nets: Sequence[Mapping[str, Any]]) -> str:
    """The networks, and the rank correlation with their error."""
    lines = head("network", "layers with alpha", "mean alpha", "imbalance", "test error, %", "source of the error")
    for net in nets:
        error = "" if net["error"] is None else f"{net['error']:.2f}"
        numbers = (number(net["mean_alpha"], 3), number(net["imbalance"], 3), error)
        lines.append(line(net["name"], str(net["layers"]), *numbers, net["known_from"]))
    compared = [net for net in nets if net["error"] is not None]
    if len(compared) < 3:
        return "\n".join(lines)
    errors = [net["error"] for net in compared]
    columns = {"imbalance": "imbalance", "mean alpha": "mean_alpha"}
    texts = []
    for name, key in columns.items():
        values = [net[key] for net in compared]
        texts.append(f"{name} {signed(spearman(values, errors), 2)} (p = {exact_p(values, errors):.2g})")
    smallest = 2 / math.factorial(len(compared))
    lines += [
        "",
        f"Rank correlation with the error over the {len(compared)} networks of one task: {', '.join(texts)}. With "
        f"{len(compared)} networks p cannot be below {smallest:.2g}, so they show nothing.",
    ]
    return "\n".join(lines)
