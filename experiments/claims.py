"""Claims of papers, and the studies that test them. Data only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tempbalance.errors import StudyError

CANDIDATES = (
    "alpha",
    "alpha, FARMS windows",
    "depth",
    "role, published",
    "role, by hand",
    "role, v and o at 1/4",
    "role, searched",
    "shape (muP)",
    "Muon",
    "pull-back (SPD)",
    "few-sample recipe",
    "freezing (Spectrum)",
    "LP-FT",
    "frozen probe",
)
CONTROLS = ("uniform", "inverted", "shuffled", "untrained")


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric of a task, and how it is shown.

    Attributes:
        name: Heading of its column.
        unit: Unit of a gain.
        scale: Factor on means and gains.
        lower_is_better: Whether a smaller metric is better. A gain is positive where the method is better, always.
        relative: Whether a gain is shown in per cent of the baseline's mean.
        digits: Digits after the point.
        key: Its name in the results of a trial.
    """

    name: str
    unit: str
    scale: float = 1.0
    lower_is_better: bool = False
    relative: bool = False
    digits: int = 2
    key: str = "test"


@dataclass(frozen=True, kw_only=True)
class Study:
    """The arguments of one ``tempbalance.study.run``.

    Attributes:
        name: Its folder, and its key in the results.
        parameters: Arguments of the task. A study with other values needs another name.
        methods: Names of methods.
        lr: Learning rates that each method chooses from.
        seeds: Number of seeds.
        first_seed: First seed; beyond those of another study, to confirm its result.
        tuning_seeds: Number of other seeds for the choice of the rate.
        data: Argument ``data`` of the task, relative to the folder of all data; None without data.
        files: Files that it needs in that folder.
    """

    name: str
    parameters: Mapping[str, Any]
    methods: tuple[str, ...]
    lr: tuple[float, ...]
    seeds: int
    first_seed: int = 0
    tuning_seeds: int = 3
    data: str | None = None
    files: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.-]+", self.name):
            raise StudyError(f"the name of a study is a folder name: letters, digits, '.' and '-'; not {self.name!r}")


@dataclass(frozen=True, kw_only=True)
class Search(Study):
    """The arguments of one ``tempbalance.study.search`` for multipliers by role, and of the study that confirms them.

    Its ``lr`` is the range of the base rate, ``tuning_seeds`` are those of each trial, and ``seeds`` those of the
    study, whose methods are plain, what was found, and its controls.

    Attributes:
        trials: Number of trials.
        final_seeds: Seeds of the best trials before one is chosen.
    """

    methods: tuple[str, ...] = ()
    trials: int = 40
    final_seeds: int = 8


@dataclass(frozen=True, kw_only=True)
class Published:
    """Two numbers of a paper, as printed there.

    Attributes:
        where: Model, data and metric.
        size: Amount of data, as printed.
        baseline: Number without the method.
        method: Number with the method.
    """

    where: str
    size: str
    baseline: float
    method: float


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A sentence of a paper, tested by: is the method better than the baseline, and better than its controls?

    Attributes:
        name: Short name, for files.
        sentence: The claim.
        paper: Its source.
        published: Its numbers.
        method: The method of the claim, a method of the studies.
        baseline: Method that it must be better than.
        also: Further methods to show in the figure.
        panels: Names of studies, in order of the amount of data, by title of the panel.
        by_alpha: Whether its method measures alpha.
        ours: Whether it is our own question: it can be confirmed, but there is nothing to reproduce.
    """

    name: str
    sentence: str
    paper: str
    published: tuple[Published, ...]
    method: str
    baseline: str = "plain"
    also: tuple[str, ...] = ()
    panels: Mapping[str, tuple[str, ...]]
    by_alpha: bool = True
    ours: bool = False

    @property
    def studies(self) -> list[str]:
        """The names of all its studies."""
        return [name for names in self.panels.values() for name in names]


@dataclass(frozen=True, kw_only=True)
class TaskRow:
    """A row of the page "What helps": a study in which all kinds of candidates were tuned in the same way.

    Attributes:
        title: Model and data.
        study: The study.
        methods: Method of the study by candidate, one of ``CANDIDATES``; None of a search, which names what it found.
        pretrained: Whether it is fine-tuning.
    """

    title: str
    study: Study
    methods: Mapping[str, str | None]
    pretrained: bool = False


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A task, its studies, and the claims that they test.

    Attributes:
        name: Name of its results and its page.
        task: File in ``experiments/``.
        metric: Its metric.
        others: Metrics on other test data, which have a table of their own where a study has them.
        size: The parameter that is the amount of data, and its label.
        claims: The claims.
        quick: Studies of about ten minutes on two cores.
        full: All studies.
        searches: All searches.
        task_rows: Those of the page "What helps".
        same_tasks: Hashes of earlier versions of the task file with the same numbers, whose results can be restored.
        sources: Where to get the data, by ``data`` of a study.
        packages: How to install the packages that the task imports, by package.
    """

    name: str
    task: str
    metric: Metric
    size: tuple[str, str]
    claims: tuple[Claim, ...]
    quick: tuple[Study, ...]
    full: tuple[Study, ...]
    others: tuple[Metric, ...] = ()
    searches: tuple[Search, ...] = ()
    task_rows: tuple[TaskRow, ...] = ()
    same_tasks: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)


def with_controls(method: str, controls: tuple[str, ...] = CONTROLS) -> tuple[str, ...]:
    """Return a method and its negative controls.

    Args:
        method: A recipe, alone or joined last with a custom method.
        controls: Kinds of controls.

    Returns:
        Their names.
    """
    separator = "," if ":" in method.rpartition("+")[2] else ":"
    return (method, *(f"{method}{separator}control={control}" for control in controls))
