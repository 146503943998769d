"""What a study is: the claims of a paper, and the contests that test them. Data only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tempbalance.errors import TempBalanceError


class StudyError(TempBalanceError):
    """A study, its results or its page is not as it must be."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What ``test`` is, and how it is shown.

    Attributes:
        name: As in a heading.
        unit: Of a gain, as on an axis.
        scale: What a mean and a gain are multiplied by.
        lower_is_better: As with a loss. A gain is positive where the method is better, in any case.
        relative: Whether a gain is shown in per cent of the baseline's mean, instead.
        digits: After the point.
    """

    name: str
    unit: str
    scale: float = 1.0
    lower_is_better: bool = False
    relative: bool = False
    digits: int = 2


@dataclass(frozen=True, kw_only=True)
class Contest:
    """One comparison of ``tempbalance arena``, with its options.

    Attributes:
        name: Its folder, and its key in the results.
        settings: Arguments for the task, as of ``--set``. Whatever has another value needs another name.
        methods: As of ``--methods``.
        lr: Learning rates that each method may choose from.
        seeds: How many times to compare.
        tuning_seeds: Seeds to choose on.
        data: What the task gets as ``data``, relative to the folder of all data; None if it needs none.
        files: What it needs in there.
    """

    name: str
    settings: Mapping[str, Any]
    methods: tuple[str, ...]
    lr: tuple[float, ...]
    seeds: int
    tuning_seeds: int = 3
    data: str | None = None
    files: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.-]+", self.name):
            raise StudyError(
                f"the name of a contest is that of a folder: letters, digits, '.' and '-'; not {self.name!r}"
            )


@dataclass(frozen=True, kw_only=True)
class Published:
    """A pair of numbers of the paper, as printed there.

    Attributes:
        where: What was trained on what, and where it stands.
        size: Amount of data, as printed.
        baseline: Without the method.
        method: With it.
    """

    where: str
    size: str
    baseline: float
    method: float


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One sentence of a paper, and how it is tested: is the method better than the baseline, and than its controls?

    Attributes:
        name: Short, for file names.
        sentence: What the paper says.
        paper: Which one.
        published: Its numbers.
        method: The method that it is about, a name of the contests.
        baseline: What it must be better than.
        also: More methods to show in the figure.
        panels: Heading of a panel, and the contests in it, by amount of data.
    """

    name: str
    sentence: str
    paper: str
    published: tuple[Published, ...]
    method: str
    baseline: str = "plain"
    also: tuple[str, ...] = ()
    panels: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class Study:
    """A task, its contests, and the claims that they test.

    Attributes:
        name: Of its results and its page.
        task: File in ``experiments/``.
        metric: What is compared.
        size: The setting that is the amount of data, and what to call it.
        claims: The claims.
        quick: Contests of about ten minutes on two cores.
        full: All contests.
        sources: Where to get the data, by what ``data`` of a contest says.
        packages: Packages that the task imports, and how to install each.
    """

    name: str
    task: str
    metric: Metric
    size: tuple[str, str]
    claims: tuple[Claim, ...]
    quick: tuple[Contest, ...]
    full: tuple[Contest, ...]
    sources: Mapping[str, str] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)


CONTROLS = ("uniform", "inverted", "shuffled", "untrained")


def with_controls(method: str, controls: tuple[str, ...] = CONTROLS) -> tuple[str, ...]:
    """A method and its negative controls.

    Args:
        method: A recipe, or one joined with something, last.
        controls: Which ones.

    Returns:
        Their names.
    """
    separator = "," if ":" in method.rpartition("+")[2] else ":"
    return (method, *(f"{method}{separator}control={control}" for control in controls))
