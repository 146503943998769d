"""A recipe brought together with a model: which weights are judged, which parameters share a multiplier."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from torch import Tensor, nn

from tempbalance.balance.assign import UnitFacts
from tempbalance.balance.measuring import CachedFit
from tempbalance.balance.recipe import Recipe
from tempbalance.errors import BalanceError
from tempbalance.layers import (
    Select,
    Unit,
    Weight,
    find_depth_groups,
    find_units,
    find_weights,
    parameter_names,
    sources_of,
)
from tempbalance.types import Skipped

__all__ = ["Plan", "make_plan"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A recipe brought together with a model.

    Attributes:
        units: What gets a multiplier of its own, in the order of the model.
        lightest: Names of the units that count as having the largest alpha, unmeasured.
        skipped: Weights that are not judged, and why; they keep the base value, or get what their depth says.
        depths: How deep each unit lies, by its name: 0 for the head. Empty where the recipe does not look at depths.
        depth_groups: Names of the trained parameters by depth, those of the head first; empty likewise.
    """

    units: tuple[Unit, ...]
    lightest: frozenset[str]
    skipped: tuple[Skipped, ...]
    depths: Mapping[str, int]
    depth_groups: tuple[tuple[str, ...], ...]

    @property
    def measured(self) -> frozenset[str]:
        """Names of the weights that are measured: those of all units but the lightest."""
        return frozenset(name for unit in self.units if unit.name not in self.lightest for name in unit.weights)

    def facts(self, known: Mapping[str, CachedFit], first: Mapping[str, float | None]) -> dict[str, UnitFacts]:
        """What is known of every unit.

        Args:
            known: What is known of weights, by their names.
            first: By the names of units, the alpha of the first measurement in which they had one; None before.

        Returns:
            By the names of the units. Alpha is the mean over the weights that have one, or NaN, and its standard error
            that of the mean, their errors being independent; the lightest have those of the unit with the largest.

        Example:
            >>> units = [Unit(name=name, weights=(f"{name}.weight",), parameters=()) for name in ("a", "head")]
            >>> plan = Plan(units=tuple(units), lightest=frozenset({"head"}), skipped=(), depths={}, depth_groups=())
            >>> facts = plan.facts({"a.weight": CachedFit(3.0, 0.2, 0.0)}, {"a": 4.0, "head": None})
            >>> facts["a"], facts["head"].alpha
            (UnitFacts(alpha=3.0, stderr=0.2, first_alpha=4.0, depth=0), 3.0)
        """
        facts = {}
        for unit in self.units:
            fits = [known[name] for name in unit.weights if name in known]
            alphas = [fit.alpha for fit in fits if fit.alpha is not None]
            errors = [fit.stderr for fit in fits if fit.stderr is not None]
            if alphas:
                facts[unit.name] = UnitFacts(alpha=fmean(alphas), stderr=math.hypot(*errors) / len(errors))
        facts |= dict.fromkeys(self.lightest, max(facts.values(), default=UnitFacts()))
        result = {}
        for unit in self.units:
            fact, begun = facts.get(unit.name, UnitFacts()), first.get(unit.name)
            depth = self.depths.get(unit.name, 0)
            result[unit.name] = fact._replace(first_alpha=fact.alpha if begun is None else begun, depth=depth)
        return result


def make_plan(model: nn.Module, recipe: Recipe, trained: Collection[str] | None = None) -> Plan:
    """Divide a model into units as a recipe wants it.

    Args:
        model: A live model.
        recipe: The recipe.
        trained: Names of the parameters that the optimizer has; None for all that require a gradient.

    Returns:
        The plan; the same for the same model, recipe and names.

    Raises:
        BalanceError: Nothing is left to balance.

    Example:
        >>> from tempbalance.balance.assign import Linear
        >>> net = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 2))
        >>> plan = make_plan(net, Recipe(name="mine", assignment=Linear(), last=False))
        >>> [unit.name for unit in plan.units], [skipped.name for skipped in plan.skipped]
        (['1'], ['0.weight', '2.weight'])
    """
    parameters = parameter_names(model)
    if trained is None:
        trained = {name for name, parameter in parameters.items() if parameter.requires_grad}
    lightest: frozenset[str] = frozenset()
    units: list[Unit] = []
    skipped: list[Skipped] = []
    if recipe.assignment.uses_alpha:
        found, unread = find_weights(model, replace(recipe.select, embeddings=True), sharded=True)
        lightest = _lightest(found) if recipe.lightest else lightest
        weights, left_out = _judged(found, recipe, lightest, parameters, trained)
        units = _units_of(model, recipe, weights, [*left_out, *unread])
        placed = {name for unit in units for name in unit.weights}
        outside = [Skipped(w.name, "outside of all blocks") for w in weights if w.name not in placed]
        skipped = [*left_out, *outside, *unread]
    depth_groups: list[Unit] = []
    if recipe.assignment.uses_depth or recipe.unfreeze:
        depth_groups = find_depth_groups(model, find_weights(model, Select(embeddings=True), sharded=True)[0])
    if recipe.assignment.uses_depth:
        units = _with_the_rest(units, depth_groups, trained)
    if not units:
        raise BalanceError(f"{recipe.name} has nothing to balance: no parameter of the model is trained")
    depths = {name: depth for depth, depth_group in enumerate(depth_groups) for name in depth_group.parameters}
    return Plan(
        units=tuple(units),
        lightest=frozenset(unit.name for unit in units if lightest.intersection(unit.weights)),
        skipped=tuple(skipped),
        depths={unit.name: depths[unit.parameters[0]] for unit in units if depth_groups},
        depth_groups=tuple(
            tuple(name for name in depth_group.parameters if name in trained) for depth_group in depth_groups
        ),
    )


def _units_of(model: nn.Module, recipe: Recipe, weights: Sequence[Weight], skipped: Iterable[Skipped]) -> list[Unit]:
    """The units of the weights that are judged; without any, there is nothing to balance."""
    if not weights:
        reasons = sorted({f"{name}: {reason}" for name, reason in skipped})
        listed = "; ".join(reasons[:4]) + ("; ..." if len(reasons) > 4 else "")  # noqa: PLR2004
        raise BalanceError(f"no weight of the model can be balanced by {recipe.name}: {listed or 'it has none'}")
    units = find_units(model, weights, unit=recipe.unit, norms=recipe.norms)
    if not units:
        raise BalanceError(f"{recipe.name} balances blocks, but the model has none: use a recipe with unit='layer'")
    return units


def _with_the_rest(units: Sequence[Unit], depth_groups: Sequence[Unit], trained: Collection[str]) -> list[Unit]:
    """The units, and one of its own for all that is trained besides them at each depth, from the embeddings up."""
    taken = {name for unit in units for name in unit.parameters}
    result: list[Unit] = []
    for depth_group in reversed(depth_groups):
        judged = [unit for unit in units if unit.parameters[0] in depth_group.parameters]
        rest = tuple(name for name in depth_group.parameters if name in trained and name not in taken)
        name = f"rest of {depth_group.name}" if judged else depth_group.name
        result += [*judged, *([Unit(name=name, weights=(), parameters=rest)] if rest else [])]
    return result


def _judged(
    found: Sequence[Weight],
    recipe: Recipe,
    lightest: Collection[str],
    parameters: Mapping[str, Tensor],
    trained: Collection[str],
) -> tuple[list[Weight], list[Skipped]]:
    """The weights that a recipe judges, and why it does not judge the others."""
    eligible, skipped = [], []
    for weight in found:
        if weight.kind == "embedding" and not recipe.select.embeddings and weight.name not in lightest:
            skipped.append(Skipped(weight.name, "embedding"))
        elif recipe.kinds is not None and weight.kind not in recipe.kinds and weight.name not in lightest:
            skipped.append(Skipped(weight.name, f"{weight.kind} weights are left out by {recipe.name}"))
        else:
            eligible.append(weight)
    ends = {"first": eligible[0].parameter} if eligible and not recipe.first else {}
    ends |= {"last": eligible[-1].parameter} if eligible and not recipe.last else {}
    judged = []
    for weight in eligible:
        end = next((end for end, name in ends.items() if name == weight.parameter), None)
        if end is not None:
            skipped.append(Skipped(weight.name, f"the {end} layer is left out by {recipe.name}"))
        elif not set(sources_of(weight, parameters)).intersection(trained):
            skipped.append(Skipped(weight.name, "not trained: frozen, or not in the optimizer"))
        else:
            judged.append(weight)
    return judged, skipped


def _lightest(found: Sequence[Weight]) -> frozenset[str]:
    """Names of the embeddings and of the last layer, if it lies outside of the blocks."""
    layers = [weight for weight in found if weight.kind != "embedding"]
    last = {weight.name for weight in layers[-1:] if weight.block is None}
    return frozenset(last | {weight.name for weight in found if weight.kind == "embedding"})
