"""A recipe brought together with a model: which weights are judged, which parameters share a multiplier."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from torch import Tensor, nn

from tempbalance.errors import BalanceError
from tempbalance.layers import Unit, Weight, find_units, find_weights, parameter_names, sources_of
from tempbalance.optim.recipe import Recipe
from tempbalance.types import Skipped

__all__ = ["Plan", "make_plan"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A recipe brought together with a model.

    Attributes:
        units: What gets a multiplier of its own, in the order of the model.
        lightest: Names of the units that count as having the largest alpha, unmeasured.
        skipped: Weights that are not judged, and why; they keep the base value.
    """

    units: tuple[Unit, ...]
    lightest: frozenset[str]
    skipped: tuple[Skipped, ...]

    @property
    def measured(self) -> frozenset[str]:
        """Names of the weights that are measured: those of all units but the lightest."""
        return frozenset(name for unit in self.units if unit.name not in self.lightest for name in unit.weights)

    def alphas(self, found: Mapping[str, float | None]) -> dict[str, float]:
        """The alpha of every unit.

        Args:
            found: Alphas by the names of weights; None for a weight without a fit.

        Returns:
            By the names of the units, the mean over the weights that have one, or NaN; of the lightest the largest of
            all.

        Example:
            >>> units = [Unit(name=name, weights=(f"{name}.weight",), parameters=()) for name in ("a", "head")]
            >>> plan = Plan(units=tuple(units), lightest=frozenset({"head"}), skipped=())
            >>> plan.alphas({"a.weight": 3.0})
            {'a': 3.0, 'head': 3.0}
        """
        alphas = {}
        for unit in self.units:
            values = [alpha for alpha in map(found.get, unit.weights) if alpha is not None]
            alphas[unit.name] = fmean(values) if values else math.nan
        largest = max((alpha for alpha in alphas.values() if math.isfinite(alpha)), default=math.nan)
        return alphas | dict.fromkeys(self.lightest, largest)


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
        >>> from tempbalance.assign import Linear
        >>> net = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 2))
        >>> plan = make_plan(net, Recipe(name="mine", assignment=Linear(), last=False))
        >>> [unit.name for unit in plan.units], [skipped.name for skipped in plan.skipped]
        (['1'], ['0.weight', '2.weight'])
    """
    parameters = parameter_names(model)
    if trained is None:
        trained = {name for name, parameter in parameters.items() if parameter.requires_grad}
    found, unread = find_weights(model, replace(recipe.select, embeddings=True), sharded=True)
    lightest = _lightest(found) if recipe.lightest else frozenset()
    weights, skipped = _judged(found, recipe, lightest, parameters, trained)
    if not weights:
        reasons = sorted({f"{name}: {reason}" for name, reason in (*skipped, *unread)})
        listed = "; ".join(reasons[:4]) + ("; ..." if len(reasons) > 4 else "")  # noqa: PLR2004
        raise BalanceError(f"no weight of the model can be balanced by {recipe.name}: {listed or 'it has none'}")
    units = find_units(model, weights, unit=recipe.unit, norms=recipe.norms)
    placed = {name for unit in units for name in unit.weights}
    skipped += [Skipped(w.name, "outside of all blocks") for w in weights if w.name not in placed]
    if not units:
        raise BalanceError(f"{recipe.name} balances blocks, but the model has none: use a recipe with unit='layer'")
    return Plan(
        units=tuple(units),
        lightest=frozenset(unit.name for unit in units if lightest.intersection(unit.weights)),
        skipped=(*skipped, *unread),
    )


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
