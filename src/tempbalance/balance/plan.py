"""A recipe applied to a model: the measured weights, and the parameters of each multiplier."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from tempbalance.balance.assign import Assignment, UnitFacts
from tempbalance.balance.recipe import Recipe
from tempbalance.balance.state import CachedFit
from tempbalance.errors import BalanceError
from tempbalance.layers import (
    ParameterFacts,
    Select,
    Unit,
    Weight,
    describe_parameters,
    find_depth_groups,
    find_weights,
    first_and_last,
    parameter_names,
    source_parameters,
)
from tempbalance.metrics import mean_alpha
from tempbalance.types import Skipped

__all__ = ["Plan", "make_plan"]

_SHOWN = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A recipe applied to a model.

    Attributes:
        units: Units with a multiplier of their own, in the order of the model.
        at_max: Names of the units that get the largest alpha of all without being measured.
        skipped: Weights that are not measured, with the reason. They keep the base value, or get the multiplier of
            their depth.
        depths: Depth of each unit by name, 0 for the head; empty if the recipe does not use depth.
        depth_groups: Names of the trained parameters at each depth, the head first; empty if neither depth nor
            unfreezing is used.
        trained: Names of the trained parameters that it plans.
        described: What is known of the first parameter of each unit, by name; empty if the recipe does not use it.
    """

    units: tuple[Unit, ...]
    at_max: frozenset[str]
    skipped: tuple[Skipped, ...]
    depths: Mapping[str, int]
    depth_groups: tuple[tuple[str, ...], ...]
    trained: frozenset[str] = frozenset()
    described: Mapping[str, tuple[str, ParameterFacts]] = field(default_factory=dict[str, tuple[str, ParameterFacts]])

    @property
    def measured(self) -> frozenset[str]:
        """Names of the weights that are measured."""
        return frozenset(name for unit in self.units if unit.name not in self.at_max for name in unit.weights)

    def facts(self, fits: Mapping[str, CachedFit], first: Mapping[str, float]) -> dict[str, UnitFacts]:
        """Return the facts about every unit by name, given the last fits and the first alphas (NaN if there is none).

        Alpha is the mean over the weights that have one, and its standard error assumes that their errors are
        independent. Units at the maximum get the facts of the unit with the largest alpha.

        Example:
            >>> units = [Unit(name=name, weights=(f"{name}.weight",), parameters=()) for name in ("a", "head")]
            >>> plan = Plan(units=tuple(units), at_max=frozenset({"head"}), skipped=(), depths={}, depth_groups=())
            >>> facts = plan.facts({"a.weight": CachedFit(3.0, 0.2, 0.0)}, {"a": 4.0, "head": math.nan})
            >>> facts["a"][:4], facts["head"].alpha
            ((3.0, 0.2, 4.0, 0), 3.0)
        """
        facts = {}
        for unit in self.units:
            alpha, stderr = mean_alpha((fits[name].alpha, fits[name].stderr) for name in unit.weights if name in fits)
            if not math.isnan(alpha):
                facts[unit.name] = UnitFacts(alpha=alpha, stderr=stderr)
        facts |= dict.fromkeys(self.at_max, max(facts.values(), default=UnitFacts()))
        result = {}
        for unit in self.units:
            fact, first_alpha = facts.get(unit.name, UnitFacts()), first.get(unit.name, math.nan)
            first_alpha = fact.alpha if math.isnan(first_alpha) else first_alpha
            fact = fact._replace(first_alpha=first_alpha, depth=self.depths.get(unit.name, 0))
            if unit.name in self.described:
                parameter, known = self.described[unit.name]
                fact = fact._replace(parameter=parameter, **known._asdict())
            result[unit.name] = fact
        return result


def make_plan(model: nn.Module, recipe: Recipe, trained: Collection[str]) -> Plan:
    """Return the units of a recipe in a live model, given the names of the parameters that are trained.

    Raises:
        BalanceError: There is nothing to balance.

    Example:
        >>> from tempbalance.balance.assign import Linear
        >>> net = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 2))
        >>> plan = make_plan(net, Recipe(name="mine", assignment=Linear(), last=False), [*parameter_names(net)])
        >>> [unit.name for unit in plan.units], [skipped.name for skipped in plan.skipped]
        (['1'], ['0.weight', '2.weight'])
    """
    at_max: frozenset[str] = frozenset()
    units: list[Unit] = []
    skipped: list[Skipped] = []
    if recipe.assignment.uses_alpha:
        found, unreadable = find_weights(model, replace(recipe.select, embeddings=True), sharded=True)
        at_max = _embeddings_and_head(found) if recipe.embeddings_and_head_at_max else at_max
        weights, left_out = _measured(model, recipe, found, at_max, trained)
        units = _units_of(model, recipe, weights, [*left_out, *unreadable], trained)
        in_units = {name for unit in units for name in unit.weights}
        outside = [Skipped(w.name, "outside of all blocks") for w in weights if w.name not in in_units]
        skipped = [*left_out, *outside, *unreadable]
    uses, depth_groups = recipe.assignment, list[Unit]()
    if uses.uses_alpha and uses.uses_depth and recipe.unit == "role":
        raise BalanceError(f"{recipe.name} has multipliers by depth, but a role is at all depths: use unit='layer'")
    described: dict[str, ParameterFacts] = {}
    if uses.uses_depth or uses.uses_parameters or recipe.unfreeze:
        everything = find_weights(model, Select(embeddings=True), sharded=True)[0]
        depth_groups = find_depth_groups(model, everything) if uses.uses_depth or recipe.unfreeze else []
        described = describe_parameters(model, everything) if uses.uses_parameters else {}
    if uses.uses_depth:
        units = _with_unmeasured(units, depth_groups, trained)
    if described:
        uses.check_model(described)
        units = _by_group(units, {name: described[name] for name in described if name in trained}, uses)
    if not units:
        raise BalanceError(f"{recipe.name} has nothing to balance: no parameter of the model is trained")
    depths = {name: depth for depth, group in enumerate(depth_groups) for name in group.parameters}
    return Plan(
        units=tuple(units),
        at_max=frozenset(unit.name for unit in units if at_max.intersection(unit.weights)),
        skipped=tuple(skipped),
        depths={unit.name: depths[unit.parameters[0]] for unit in units if depth_groups},
        depth_groups=tuple(tuple(name for name in group.parameters if name in trained) for group in depth_groups),
        trained=frozenset(trained),
        described={unit.name: (unit.parameters[0], described[unit.parameters[0]]) for unit in units if described},
    )


def _by_group(units: Sequence[Unit], described: Mapping[str, ParameterFacts], assignment: Assignment) -> list[Unit]:
    """Divide units by the assignment's group of each parameter, and add units for all other trained parameters."""
    taken, used = {name for unit in units for name in unit.parameters}, {unit.name for unit in units}
    others = Unit(name="", weights=(), parameters=tuple(name for name in described if name not in taken))
    found: list[Unit] = []
    for unit in [*units, others]:
        members: dict[str, list[str]] = {}
        for name in unit.parameters:
            members.setdefault(assignment.group_of(name, described[name]), []).append(name)
        for group, parameters in members.items():
            if unit is others:
                name = f"rest of {group}" if group in used else group or "rest"
            else:
                name = f"{unit.name} [{group}]" if len(members) > 1 else unit.name
            found.append(Unit(name=name, weights=unit.weights, parameters=tuple(parameters)))
    return found


def _units_of(
    model: nn.Module, recipe: Recipe, weights: Sequence[Weight], skipped: Iterable[Skipped], trained: Collection[str]
) -> list[Unit]:
    if not weights:
        reasons = sorted({f"{name}: {reason}" for name, reason in skipped})
        listed = "; ".join(reasons[:_SHOWN]) + ("; ..." if len(reasons) > _SHOWN else "")
        raise BalanceError(f"no weight of the model can be balanced by {recipe.name}: {listed or 'it has none'}")
    units = recipe.find_units(model, weights)
    if not units:
        everything = find_weights(model, Select(embeddings=True), sharded=True)[0]
        what = (
            "none of the model's blocks is trained by this optimizer yet: build the balancer when they are unfrozen"
            if recipe.find_units(model, everything)
            else "the model has none"
        )
        raise BalanceError(f"{recipe.name} balances blocks, but {what}, or use a recipe with unit='layer'")
    return [replace(unit, parameters=tuple(name for name in unit.parameters if name in trained)) for unit in units]


def _with_unmeasured(units: Sequence[Unit], depth_groups: Sequence[Unit], trained: Collection[str]) -> list[Unit]:
    """Add one unit per depth for the other trained parameters, from the embeddings to the head."""
    taken = {name for unit in units for name in unit.parameters}
    result: list[Unit] = []
    for group in reversed(depth_groups):
        measured = [unit for unit in units if unit.parameters[0] in group.parameters]
        rest = tuple(name for name in group.parameters if name in trained and name not in taken)
        name = f"rest of {group.name}" if measured else group.name
        result += [*measured, *([Unit(name=name, weights=(), parameters=rest)] if rest else [])]
    return result


def _measured(
    model: nn.Module, recipe: Recipe, found: Sequence[Weight], at_max: Collection[str], trained: Collection[str]
) -> tuple[list[Weight], list[Skipped]]:
    """Return the weights in units (with those at the maximum), and the others with the reason."""
    parameters = parameter_names(model)
    first, last = first_and_last(model)
    ends = ({} if recipe.first else {first: "first"}) | ({} if recipe.last else {last: "last"})
    measured, skipped = [], []
    for weight in found:
        reason = None
        if weight.name not in at_max:
            if weight.kind == "embedding" and not recipe.select.embeddings:
                reason = "embedding"
            elif recipe.kinds is not None and weight.kind not in recipe.kinds:
                reason = f"{weight.kind} weights are left out by {recipe.name}"
        if reason is None and weight.parameter in ends:
            reason = f"the {ends[weight.parameter]} layer is left out by {recipe.name}"
        if reason is None and not set(source_parameters(weight, parameters)).intersection(trained):
            reason = "not trained: frozen, or not in the optimizer"
        if reason is None:
            measured.append(weight)
        else:
            skipped.append(Skipped(weight.name, reason))
    return measured, skipped


def _embeddings_and_head(found: Sequence[Weight]) -> frozenset[str]:
    """Return the names of the embeddings and of the last layer, if it is outside of the blocks."""
    layers = [weight for weight in found if weight.kind != "embedding"]
    last = {weight.name for weight in layers[-1:] if weight.block is None}
    return frozenset(last | {weight.name for weight in found if weight.kind == "embedding"})
