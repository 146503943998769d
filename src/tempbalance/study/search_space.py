"""What a search can change: the units of a task's model, and multipliers that are known to work."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, NamedTuple

from torch import nn

from tempbalance.balance import Balancer, Recipe, recipes
from tempbalance.balance.assign import Assignment, ByParameter, ByShape, Fixed, UnitFacts
from tempbalance.balance.optimizers import find_family, unwrap
from tempbalance.errors import StudyError, check_type
from tempbalance.layers import ParameterFacts
from tempbalance.layers.units import block_of_parameter
from tempbalance.study.candidates import Configuration
from tempbalance.study.method import PLAIN, Method
from tempbalance.study.task import Task

__all__ = ["KINDS", "SearchSpace", "find_space"]

KINDS = ("role", "block", "layer")
_VALUE_OUTPUT = Fixed({"role:v": 0.25, "role:o": 0.25})


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """The units of a model.

    Attributes:
        units: Names of the trained parameters of each unit, by the pattern of the unit (see ``Fixed``).
        facts: What is known of each trained parameter, by its name.
        family: Family of the optimizer, ``"adam"``, ``"sgd"`` or ``"muon"``; None if unknown.
    """

    units: Mapping[str, tuple[str, ...]]
    facts: Mapping[str, UnitFacts]
    family: str | None

    def known_multipliers(self, low: float, high: float) -> dict[str, dict[str, float]]:
        """Return multipliers between ``low`` and ``high`` that are known to help on some task, by name of the set.

        A set has a multiplier by pattern: the geometric mean over the parameters of a unit. Sets for roles that this
        model does not have, and those in which all parameters have the same multiplier, are left out.
        """
        assignments: dict[str, Assignment] = {}
        if {"v", "o"} <= {facts.role for facts in self.facts.values()}:
            assignments["value and output 0.25"] = _VALUE_OUTPUT
            assignments["blockwise_lr"] = recipes.blockwise_lr().assignment
        if self.family == "muon":
            assignments["muon_factors"] = recipes.muon_factors().assignment
        elif self.family in ("adam", "sgd"):
            assignments["mup"] = ByShape("mup", self.family)  # type: ignore[arg-type]
        found = {name: self._multipliers(assignment, low, high) for name, assignment in assignments.items()}
        rest = {1.0} if len(self.facts) > sum(map(len, self.units.values())) else set[float]()
        return {name: own for name, own in found.items() if len(rest.union(own.values())) > 1}

    def _multipliers(self, assignment: Assignment, low: float, high: float) -> dict[str, float]:
        each = dict(zip(self.facts, assignment.assign([*self.facts.values()]), strict=True))
        means = {
            unit: math.exp(fmean(math.log(max(each[name], low)) for name in names))
            for unit, names in self.units.items()
        }
        return {unit: min(max(mean, low), high) for unit, mean in means.items()}


class _Found(NamedTuple):
    facts: dict[str, ParameterFacts]
    block_of: Callable[[str], str | None]
    family: str | None


class _ModelFound(BaseException):
    """Ends the training function when its model is known; no Exception, so that no handler of the task stops it."""


@dataclass(frozen=True)
class _Recorder(ByParameter):
    """Records the trained parameters of a model."""

    facts: dict[str, ParameterFacts] = field(default_factory=dict[str, ParameterFacts])

    __hash__ = object.__hash__

    def group_of(self, name: str, facts: ParameterFacts) -> str:
        """Record a trained parameter."""
        self.facts[name] = facts
        return facts.role

    def multiplier_of(self, unit: UnitFacts) -> float:
        """Return 1."""
        return 1.0


class _Probe(Method):
    """A method that looks at the model and ends the function."""

    found: _Found | None = None

    def balance(self, optimizer: Any, model: nn.Module, **options: Any) -> Balancer | None:
        """Record the model. Raises BalanceError if its optimizer cannot be balanced."""
        recorder = _Recorder()
        Balancer(optimizer, model, Recipe(name="search", assignment=recorder), **options).remove()
        self.found = _Found(recorder.facts, block_of_parameter(model), find_family(unwrap(optimizer)))
        raise _ModelFound


def find_space(task: Task, units: str | Sequence[str], lr: float, seed: int) -> SearchSpace:
    """Return the units of a task's model: its function is called, with this rate and seed, until ``method.balance``.

    ``units`` is ``"role"``, ``"block"``, ``"layer"``, or patterns as in ``Fixed``.

    Raises:
        StudyError: The function does not call ``method.balance``, or ``units`` is none of these.
        BalanceError: The optimizer cannot be balanced, or a pattern is the first to match no trained parameter.
    """
    chosen = [units] if isinstance(units, str) else units
    check_type("units", chosen, Sequence)
    for each in chosen:
        check_type("a unit", each, str)
    if not chosen or (len(chosen) > 1 and not {*KINDS}.isdisjoint(chosen)):
        raise StudyError(f"units must be one of {', '.join(KINDS)}, or patterns such as role:v or '*.mlp.*'")
    probe = _Probe(PLAIN, seed, task.custom_methods)
    try:
        task.call(Configuration(PLAIN, lr), probe, seed)
    except _ModelFound:
        pass
    if probe.found is None:
        raise StudyError("train did not call method.balance(optimizer, model): there is no model to search for")
    facts, block_of, family = probe.found
    fixed = Fixed(dict.fromkeys(_patterns(chosen, facts, block_of), 1.0))
    fixed.check_model(facts)
    members: dict[str, list[str]] = {pattern: [] for pattern in fixed.multipliers}
    for name, known in facts.items():
        if (pattern := fixed.group_of(name, known)) in members:
            members[pattern].append(name)
    return SearchSpace(
        units={pattern: tuple(names) for pattern, names in members.items()},
        facts={name: UnitFacts(parameter=name, **known._asdict()) for name, known in facts.items()},
        family=family,
    )


def _patterns(
    chosen: Sequence[str], facts: Mapping[str, ParameterFacts], block_of: Callable[[str], str | None]
) -> list[str]:
    """Return the pattern of each unit, so that the first that matches a parameter is the one of its unit."""
    (kind, *more) = chosen
    if kind not in KINDS:
        return [kind, *more]
    if kind == "role":
        return [*dict.fromkeys(f"role:{known.role}" for known in facts.values())]
    places = {name: (kind == "block" and block_of(name)) or name.rpartition(".")[0] for name in facts}
    patterns = dict.fromkeys(f"{place}.*" if place else name for name, place in places.items())
    return sorted(patterns, key=lambda pattern: -pattern.count("."))  # an inner module before the one around it
