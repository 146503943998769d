"""Methods as they were asked for: with what is to be tuned, as many trials each."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tempbalance.errors import StudyError
from tempbalance.study.method_names import Part, join, read_value
from tempbalance.study.methods import PLAIN, Makers, Method, known, read_method

__all__ = ["Candidate", "Trial", "read_candidates"]


class Trial(NamedTuple):
    """A method with every choice made.

    Attributes:
        method: Its name.
        lr: The learning rate, None to leave it to the task.
    """

    method: str
    lr: float | None

    def __str__(self) -> str:
        """The name and the rate."""
        return self.method if self.lr is None else f"{self.method} lr={self.lr:g}"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A method as it was asked for, where a list is a choice to be tuned.

    Attributes:
        name: As it was asked for.
        trials: Every choice.
        of: Its name without ``control`` and ``lr``: by that the controls of a method are found.
        is_control: Whether it is one.
    """

    name: str
    trials: tuple[Trial, ...]
    of: str
    is_control: bool

    def is_called(self, name: str) -> bool:
        """Whether a name is this method's, with or without its learning rates."""
        return name == self.name or (name == self.of and not self.is_control)


def read_candidates(
    names: Sequence[str], lrs: Sequence[float] = (), baseline: str = PLAIN, makers: Makers | None = None
) -> list[Candidate]:
    """Read the names of methods that shall be compared.

    Args:
        names: Names of methods; ``plain`` is added where it is missing. ``strength=[0.5,1]`` is a choice, and
            ``lr=[1e-4,3e-4]`` goes before ``lrs``.
        lrs: Learning rates to choose from; none leaves the rate to the task.
        baseline: What the others are compared with.
        makers: The task's own methods.

    Returns:
        The baseline, then the others in their order.

    Raises:
        StudyError: A method does not exist or comes twice, there is none to compare, the baseline is missing, or not
            all methods have as many trials.

    Example:
        >>> [str(trial) for trial in read_candidates(["llr:high=[3,5],lr=0.1"], [0.1, 0.2])[1].trials]
        ['llr:high=3 lr=0.1', 'llr:high=5 lr=0.1']
    """
    makers = makers or {}
    baseline, *names = [name.replace(" ", "") for name in (baseline, *names)]
    if PLAIN not in (name.partition(":")[0] for name in names):
        names = [PLAIN, *names]
    candidates = [_contender(name, lrs, makers) for name in names]
    candidates.sort(key=lambda each: not each.is_called(baseline))
    if not candidates[0].is_called(baseline):
        raise StudyError(f"the baseline {baseline} is none of the methods: {', '.join(names)}")
    if len({each.name for each in candidates}) < len(candidates):
        raise StudyError(f"a method comes twice: {', '.join(names)}")
    if len(candidates) == 1:
        raise StudyError(f"there is nothing to compare {baseline} with; {known(makers)}")
    if len({len(each.trials) for each in candidates}) > 1:
        counts = ", ".join(f"{each.name} {len(each.trials)}" for each in candidates)
        raise StudyError(
            f"every method needs the same number of trials, or the comparison is not fair; they have: {counts}. "
            "Give the one with fewer more learning rates, as in 'plain:lr=[1e-5,2e-5,5e-5,1e-4]'"
        )
    return candidates


def _contender(name: str, lrs: Sequence[float], makers: Makers) -> Candidate:
    parts = read_method(name, makers)
    rates = _rates(name, parts, lrs)
    own = [(part.name, {key: texts for key, texts in part.texts.items() if key != "lr"}) for part in parts]
    every = [[(part, texts) for texts in itertools.product(*options.values())] for part, options in own]
    methods = [join(made) for made in itertools.product(*every)]
    for method in methods:
        Method(method, makers=makers)  # refuses what is wrong with it
    return Candidate(
        name=name,
        trials=tuple(Trial(method, rate) for method in methods for rate in rates),
        of=join(
            (part, ["/".join(texts) for key, texts in options.items() if key != "control"]) for part, options in own
        ),
        is_control=any("control" in options for _, options in own),
    )


def _rates(name: str, parts: Sequence[Part], lrs: Sequence[float]) -> Sequence[float | None]:
    """The learning rates to choose from; None is that of the task."""
    given = [part.choices["lr"] for part in parts if "lr" in part.choices]
    if len(given) > 1:
        raise StudyError(f"{name}: lr comes twice")
    rates = [read_value(name, node) for node in given[0]] if given else [*lrs]
    if not all(isinstance(rate, (int, float)) for rate in rates):
        raise StudyError(f"{name}: lr must be a number, or a list of numbers")
    return rates or [None]
