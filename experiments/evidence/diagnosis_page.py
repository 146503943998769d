"""The page of the diagnosis: two claims from the runs of all studies, and the pretrained networks."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from studies import load_study
from studies.diagnosis import LOWERED, LOWERED_PAPER, MEASURED_IN, PREDICTS, PREDICTS_PAPER

from evidence.correlation import Correlation, exact_p, spearman
from evidence.diagnosis import Fall, Prediction, falls, predict, verdict_on_falls, verdict_on_predictions
from evidence.forest import Point, forest
from evidence.pages import fill, load_contests
from evidence.study import StudyError
from evidence.tables import head, line, number, signed

COMMAND = "python experiments/diagnose.py"
FALLS, PREDICTIONS = "diagnosis-falls.svg", "diagnosis-predicts.svg"


class Diagnosis:
    """All that the page says.

    Attributes:
        found: What balancing made of the imbalance, in the contests of all studies.
        by_imbalance: How well the imbalance predicts the test error, in the contests whose task measured it.
        by_alpha: How well the mean alpha does.
        nets: The pretrained networks.
    """

    def __init__(self, results: Path) -> None:
        """Read the results.

        Args:
            results: The folder of results.

        Raises:
            StudyError: Those of the networks are damaged.
        """
        studies = [load_study(name) for name in MEASURED_IN]
        contests = [(study, each) for study in studies for each in load_contests(study, results).values()]
        self.found: list[Fall] = [fall for study, each in contests for fall in falls(study, each)]
        self.by_imbalance, self.by_alpha = (
            [found for study, each in contests if (found := predict(study, each, measured)) is not None]
            for measured in ("imbalance", "mean_alpha")
        )
        file = results / "diagnosis.json"
        try:
            self.nets: list[dict[str, Any]] = json.loads(file.read_text("utf-8"))["nets"] if file.exists() else []
        except (ValueError, KeyError, TypeError) as error:
            raise StudyError(f"cannot read {file}: {error!r}; make it again: {COMMAND}") from error

    def page(self, text: str) -> str:
        """A page with what stands between its markers renewed.

        Args:
            text: The page as it is.

        Returns:
            The page as it should be.
        """
        lowered, predicts = verdict_on_falls(self.found), verdict_on_predictions(self.by_imbalance)
        claims = [
            f"**{LOWERED}** ({LOWERED_PAPER})",
            f"**{lowered.word.capitalize()}**: {lowered.reason}.",
            f"![Change of the imbalance under balancing]({FALLS})",
            _falls_table(self.found),
            f"**{PREDICTS}** ({PREDICTS_PAPER})",
            f"**{predicts.word.capitalize()}**: {predicts.reason}.",
            f"![Rank correlation of imbalance and test error]({PREDICTIONS})",
            _predictions_table(self.by_imbalance, self.by_alpha),
        ]
        return fill(fill(text, "claims", "\n\n".join(claims)), "nets", _nets_table(self.nets))

    def figures(self) -> dict[str, str]:
        """SVG by file name."""
        changes = [
            Point(f"{fall.contest}, against {fall.against}", int(fall.against == "uniform"), *_relative(fall))
            for fall in self.found
        ]
        correlations = [
            Point(each.contest, place, *correlation[:3])
            for each in self.by_imbalance
            for place, correlation in enumerate((each.over_all, each.within))
            if math.isfinite(correlation.low)
        ]
        series = ("over all runs", "among runs of one method and rate")
        return {
            FALLS: forest(changes, "change of the imbalance by balancing, %", ("against plain", "against uniform")),
            PREDICTIONS: forest(correlations, "rank correlation of imbalance and test error", series),
        }

    def index_rows(self) -> list[str]:
        """Its rows in the table of all claims."""
        rows = []
        for claim, paper, verdict in (
            (LOWERED, LOWERED_PAPER, verdict_on_falls(self.found)),
            (PREDICTS, PREDICTS_PAPER, verdict_on_predictions(self.by_imbalance)),
        ):
            said = f"**{verdict.word}**: {verdict.reason}"
            rows.append(line(f"{claim} {paper}", "", "", said, "[diagnosis](diagnosis.md)", f"`{COMMAND}`"))
        return rows


def _relative(fall: Fall) -> tuple[float, float, float]:
    mean, low, high = (100 * value / fall.of_other for value in fall.difference[:3])
    return mean, low, high


def _falls_table(found: Sequence[Fall]) -> str:
    lines = head(
        "contest", "method", "against", "its imbalance", "with the method", "difference", "95 % interval", "seeds"
    )
    for fall in found:
        ends = f"{signed(fall.difference.low, 4)} to {signed(fall.difference.high, 4)}"
        means = (number(fall.of_other, 4), number(fall.of_method, 4), signed(fall.difference.mean, 4))
        lines.append(line(fall.contest, f"`{fall.method}`", fall.against, *means, ends, str(fall.difference.seeds)))
    return "\n".join(lines)


def _predictions_table(by_imbalance: Sequence[Prediction], by_alpha: Sequence[Prediction]) -> str:
    lines = head("contest", "runs", "imbalance, all runs", "one method and rate", "mean alpha, all runs", "one of each")
    for one, other in zip(by_imbalance, by_alpha, strict=True):
        found = (one.over_all, one.within, other.over_all, other.within)
        lines.append(line(one.contest, str(one.over_all.points), *map(_correlation, found)))
    return "\n".join(lines)


def _correlation(found: Correlation) -> str:
    interval = f" ({signed(found.low, 2)} to {signed(found.high, 2)})" if math.isfinite(found.low) else ""
    return f"{signed(found.mean, 2)}{interval}"


def _nets_table(nets: Sequence[Mapping[str, Any]]) -> str:
    """The networks, and what their order says."""
    lines = head("network", "layers with alpha", "mean alpha", "imbalance", "test error, %", "error known from")
    for net in nets:
        error = "" if net["error"] is None else f"{net['error']:.2f}"
        numbers = (number(net["mean_alpha"], 3), number(net["imbalance"], 3), error)
        lines.append(line(net["name"], str(net["layers"]), *numbers, net["known_from"]))
    compared = [net for net in nets if net["error"] is not None]
    if len(compared) < 3:
        return "\n".join(lines)
    errors = [net["error"] for net in compared]
    said = [
        f"{name} {signed(spearman(values, errors), 2)} (p = {exact_p(values, errors):.2g})"
        for name, values in (
            ("imbalance", [net["imbalance"] for net in compared]),
            ("mean alpha", [net["mean_alpha"] for net in compared]),
        )
    ]
    lines += [
        "",
        f"Rank correlation with the error over the {len(compared)} networks of one task: {', '.join(said)}. With "
        f"{len(compared)} networks no order can have a p below {2 / math.factorial(len(compared)):.2g}: whatever the "
        "correlation, they show nothing.",
    ]
    return "\n".join(lines)
