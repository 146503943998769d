"""Candidates of a study: methods with the choices to tune, each with the same number of configurations."""

from __future__ import annotations

import ast
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tempbalance.balance.assign import Fixed
from tempbalance.errors import StudyError, check_numbers, check_type
from tempbalance.study.method import PLAIN, CustomMethods, Method, has_controls, list_methods, read_method
from tempbalance.study.method_names import Part, join, read_value, with_option, without_spaces

__all__ = ["Candidate", "Configuration", "read_candidates"]


class Configuration(NamedTuple):
    """One combination of a method's parameters and learning rate.

    Attributes:
        method: Name of the method.
        lr: Learning rate, None for the task's default.
    """

    method: str
    lr: float | None

    def __str__(self) -> str:
        """Return the name and the learning rate."""
        return self.method if self.lr is None else f"{self.method} lr={self.lr:g}"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A method to compare; a list among its parameters is a choice to tune.

    Attributes:
        name: Name as given.
        configurations: All combinations of the choices.
        base: The name without ``control`` and ``lr``; a method and its controls share it.
        is_control: Whether this is a control.
        uniform: Name of its control with the same mean rate; empty if it has no recipe, which alone has controls.
    """

    name: str
    configurations: tuple[Configuration, ...]
    base: str
    is_control: bool
    uniform: str

    def matches(self, name: str) -> bool:
        """Return whether ``name`` is this candidate, with or without its learning rates."""
        return name == self.name or (name == self.base and not self.is_control)


def read_candidates(
    names: Sequence[str], lrs: Sequence[float] = (), baseline: str = PLAIN, custom: CustomMethods | None = None
) -> list[Candidate]:
    """Read the names of the methods to compare.

    Args:
        names: Names of methods; ``plain`` is added if it is missing. ``strength=[0.5,1]`` is a choice to tune, and
            ``lr=[1e-4,3e-4]`` takes precedence over ``lrs``.
        lrs: Learning rates to choose from; empty for the task's default.
        baseline: Method that the others are compared with.
        custom: Methods that the task adds, by name.

    Returns:
        The baseline, then the others in the given order.

    Raises:
        StudyError: A method does not exist or occurs twice, there is none to compare, the baseline is missing, or the
            numbers of configurations differ.

    Example:
        >>> [str(each) for each in read_candidates(["llr:high=[3,5],lr=0.1"], [0.1, 0.2])[1].configurations]
        ['llr:high=3 lr=0.1', 'llr:high=5 lr=0.1']
    """
    custom = custom or {}
    names = [names] if isinstance(names, str) else names
    check_type("methods", names, Sequence)
    for name in (baseline, *names):
        check_type("a method", name, str)
    baseline, *names = map(without_spaces, (baseline, *names))
    if PLAIN not in (name.partition(":")[0] for name in names):
        names = [PLAIN, *names]
    candidates = [_read_candidate(name, lrs, custom) for name in names]
    candidates.sort(key=lambda each: not each.matches(baseline))
    if not candidates[0].matches(baseline):
        raise StudyError(f"the baseline {baseline} is not among the methods: {', '.join(names)}")
    if len({each.name for each in candidates}) < len(candidates):
        raise StudyError(f"a method occurs twice: {', '.join(names)}")
    if len(candidates) == 1:
        raise StudyError(f"there is nothing to compare {baseline} with; {list_methods(custom)}")
    if len({len(each.configurations) for each in candidates}) > 1:
        counts = ", ".join(f"{each.name} {len(each.configurations)}" for each in candidates)
        raise StudyError(
            f"for a fair comparison every method needs the same number of configurations; they have: {counts}. "
            "Give the method with fewer more learning rates, as in 'plain:lr=[1e-5,2e-5,5e-5,1e-4]'"
        )
    return candidates


def _read_candidate(name: str, lrs: Sequence[float], custom: CustomMethods) -> Candidate:
    parts = read_method(name, custom)
    rates = _rates(name, parts, lrs)
    options = [(part.name, _options(part)) for part in parts]
    contents = [(part.name, _options(_with_file(part))) for part in parts]
    choices = [[(part, texts) for texts in itertools.product(*values.values())] for part, values in contents]
    recipe = next((part.name for part in parts if has_controls(part.name, custom)), None)
    methods = [join(chosen) for chosen in itertools.product(*choices)]
    for method in methods:
        Method(method, custom=custom)  # raises if a value is wrong
    return Candidate(
        name=name,
        configurations=tuple(Configuration(method, rate) for method in methods for rate in rates),
        base=join(
            (part, ["/".join(texts) for key, texts in values.items() if key != "control"]) for part, values in options
        ),
        is_control=any("control" in values for _, values in options),
        uniform=with_option(name, recipe, "control=uniform") if recipe else "",
    )


def _options(part: Part) -> dict[str, list[str]]:
    return {key: texts for key, texts in part.texts.items() if key != "lr"}


def _with_file(part: Part) -> Part:
    """Replace a file of multipliers by its content: trials are stored by name, and the file may change."""
    if part.name != "fixed" or "multipliers" not in part.choices:
        return part
    nodes = [_content(node) for node in part.choices["multipliers"]]
    return part._replace(choices={**part.choices, "multipliers": nodes})


def _content(node: ast.expr) -> ast.expr:
    if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
        return node
    return ast.parse(repr(dict(Fixed.load(node.value).multipliers)), mode="eval").body


def _rates(name: str, parts: Sequence[Part], lrs: Sequence[float]) -> Sequence[float | None]:
    given = [part.choices["lr"] for part in parts if "lr" in part.choices]
    if len(given) > 1:
        raise StudyError(f"{name}: lr occurs twice")
    rates = [read_value(name, node) for node in given[0]] if given else [*lrs]
    for rate in rates:
        check_numbers(**{f"{name}: lr": rate})
        if not 0 < rate < math.inf:
            raise StudyError(f"{name}: learning rates must be positive and finite, got {rate}")
    if len({*rates}) < len(rates):
        raise StudyError(f"{name}: a learning rate occurs twice: {', '.join(map(str, rates))}")
    return rates or [None]
