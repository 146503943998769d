"""What pruning has done to a model: as numbers, in words, and as one HTML page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tempbalance.compress import Allocation, LayerShare, Perplexity
from tempbalance.report.page import render_page

__all__ = ["Pruned", "UnitSparsity", "headline", "in_words", "render_pruning"]

SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitSparsity:
    """What a layer or block was to become, and became.

    Attributes:
        name: Name of the unit.
        alpha: Mean over its weights; None where none has one.
        stderr: Standard error of that mean, if those of its weights are independent; None where one is unknown.
        planned: Share of zeros that the plan says.
        achieved: Share of zeros there are.
    """

    name: str
    alpha: float | None
    stderr: float | None
    planned: float
    achieved: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """A pruned model, and what pruning it has cost.

    Attributes:
        plan: The allocation.
        method: Which weights went: ``"magnitude"``, ``"wanda"``, ...
        achieved: Share of zeros of every weight of the plan, by name.
        calibration: How tokens were drawn for it; None where none were.
        perplexity: Of the model before and after; None where it was not measured.
    """

    plan: Allocation
    method: str
    achieved: Mapping[str, float]
    calibration: Mapping[str, int] | None = None
    perplexity: tuple[Perplexity, Perplexity] | None = None

    @property
    def weights(self) -> int:
        """How many weights the plan is about."""
        return sum(layer.numel for layer in self.plan.layers)

    @property
    def zeros(self) -> int:
        """How many of them are zero."""
        return sum(round(self.achieved[layer.name] * layer.numel) for layer in self.plan.layers)

    @property
    def units(self) -> list[UnitSparsity]:
        """What every unit became, in model order."""
        members: dict[str, list[LayerShare]] = {}
        for layer in self.plan.layers:
            members.setdefault(layer.unit, []).append(layer)
        return [self._unit(name, layers) for name, layers in members.items()]

    def _unit(self, name: str, layers: Sequence[LayerShare]) -> UnitSparsity:
        size = sum(layer.numel for layer in layers)
        alphas = [layer.alpha for layer in layers if layer.alpha is not None]
        errors = [layer.stderr for layer in layers if layer.stderr is not None]
        known = len(errors) == len(alphas) > 0
        return UnitSparsity(
            name=name,
            alpha=sum(alphas) / len(alphas) if alphas else None,
            stderr=math.hypot(*errors) / len(errors) if known else None,
            planned=sum(layer.zeros for layer in layers) / size,
            achieved=sum(self.achieved[layer.name] * layer.numel for layer in layers) / size,
        )

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON knows it.

        Returns:
            Plain mappings, lists, strings and numbers; None for what is not finite or was not measured.
        """
        perplexity = self.perplexity and dict(zip(("before", "after"), map(_measured, self.perplexity), strict=True))
        return {
            "schema": SCHEMA,
            "source": self.plan.source,
            "method": self.method,
            "calibration": None if self.calibration is None else dict(self.calibration),
            "allocation": self.plan.method,
            "group": self.plan.group,
            "sparsity": self.plan.sparsity,
            "achieved": self.zeros / self.weights,
            "perplexity": perplexity,
            "units": [asdict(unit) for unit in self.units],
            "layers": [
                {
                    "name": layer.name,
                    "unit": layer.unit,
                    "shape": list(layer.shape),
                    "alpha": layer.alpha,
                    "stderr": layer.stderr,
                    "planned": layer.zeros / layer.numel,
                    "achieved": self.achieved[layer.name],
                }
                for layer in self.plan.layers
            ],
        }


def _measured(found: Perplexity) -> dict[str, float | None]:
    numbers = {"value": found.value, "stderr": found.stderr}
    return {key: value if math.isfinite(value) else None for key, value in numbers.items()} | {"tokens": found.tokens}


def in_words(found: Perplexity) -> str:
    """A perplexity with its standard error.

    Args:
        found: What was measured.

    Returns:
        Such as ``"7.676 (standard error 0.18)"``.
    """
    error = f"standard error {found.stderr:.2g}" if math.isfinite(found.stderr) else "standard error unknown"
    return f"{found.value:.4g} ({error})"


def headline(pruned: Pruned) -> str:
    """The finding in words.

    Args:
        pruned: The pruned model.

    Returns:
        Two or three sentences, plain text.
    """
    units = sorted(pruned.units, key=lambda unit: unit.achieved)
    sentences = [
        f"{pruned.zeros:,} of {pruned.weights:,} weights are zero: {pruned.zeros / pruned.weights:.1%}, "
        f"where {pruned.plan.sparsity:.1%} were asked for."
    ]
    if len(units) > 1:
        low, high = units[0], units[-1]
        sentences.append(f"It goes from {low.achieved:.1%} in {low.name} to {high.achieved:.1%} in {high.name}.")
    if pruned.perplexity is not None:
        before, after = pruned.perplexity
        sentences.append(f"Perplexity was {in_words(before)} before and is {in_words(after)} after.")
    return " ".join(sentences)


def render_pruning(pruned: Pruned) -> str:
    """Render it as one page.

    Args:
        pruned: The pruned model.

    Returns:
        HTML with its style, its script, plotly.js and the data inside; nothing is loaded from anywhere.

    Raises:
        MissingExtraError: plotly is not installed.
    """
    made: dict[str, Any] = {"weights that went": pruned.method, "shares of the budget": pruned.plan.method}
    if pruned.plan.group is not None:
        made["zeros in groups of"] = pruned.plan.group
    for key, value in (pruned.calibration or {}).items():
        made[f"calibration, {key}"] = value
    settings = {key: str(value) for key, value in {**made, **pruned.plan.settings}.items()}
    return render_page(
        "pruning",
        title=f"Pruning of {pruned.plan.source}",
        data=pruned.to_json() | {"settings": settings},
        source=pruned.plan.source,
        headline=headline(pruned),
    )
