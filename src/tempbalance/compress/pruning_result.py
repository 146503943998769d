"""The result of pruning a model: sparsity of every layer and unit, and perplexity before and after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tempbalance._files import RENDERERS, without_nan
from tempbalance.compress.allocation import Allocation
from tempbalance.compress.evaluation.likelihood import Perplexity

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["PruningResult", "UnitSparsity"]

SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitSparsity:
    """Planned and achieved sparsity of a layer or block.

    Attributes:
        name: Name of the unit.
        alpha: Mean alpha over its weights; NaN if none has one.
        stderr: Standard error of that mean, for independent weights; NaN if one is unknown.
        planned: Fraction of zeros in the allocation.
        achieved: Fraction of zeros in the pruned model.
    """

    name: str
    alpha: float
    stderr: float
    planned: float
    achieved: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PruningResult:
    """A pruned model: its allocation, the sparsity achieved, and the change of perplexity.

    Attributes:
        allocation: The allocation of sparsity.
        method: Pruning criterion: ``"magnitude"``, ``"wanda"`` or ``"sparsegpt"``.
        achieved: Fraction of zeros of every weight of the allocation, by name.
        calibration: Number and length of the calibration sequences, and their seed; None without calibration.
        perplexity: Perplexity before and after; None if it was not measured.
    """

    allocation: Allocation
    method: str
    achieved: Mapping[str, float]
    calibration: Mapping[str, int] | None = None
    perplexity: tuple[Perplexity, Perplexity] | None = None

    @property
    def weights(self) -> int:
        """Number of weights of all layers of the allocation."""
        return sum(layer.numel for layer in self.allocation.layers)

    @property
    def zeros(self) -> int:
        """Number of these weights that are zero."""
        return sum(round(self.achieved[layer.name] * layer.numel) for layer in self.allocation.layers)

    @property
    def zeros_of_all(self) -> float | None:
        """Zeros in these weights as a fraction of all parameters of the model; None if their number is unknown."""
        size = self.allocation.size
        return self.zeros / size.parameters if size is not None else None

    @property
    def units(self) -> list[UnitSparsity]:
        """Planned and achieved sparsity of every unit, in model order."""
        return [
            UnitSparsity(
                name=unit.name,
                alpha=unit.alpha,
                stderr=unit.stderr,
                planned=unit.value,
                achieved=sum(self.achieved[layer.name] * layer.numel for layer in unit.layers)
                / sum(layer.numel for layer in unit.layers),
            )
            for unit in self.allocation.units
        ]

    def __repr__(self) -> str:
        """Return the source, the criterion, the sparsity, and the perplexity if it was measured."""
        texts = [self.allocation.source, self.method, f"sparsity {self.zeros / self.weights:.4g}"]
        if self.perplexity is not None:
            before, after = self.perplexity
            texts.append(f"perplexity {before.value:.4g} -> {after.value:.4g}")
        return f"PruningResult({', '.join(texts)})"

    def plot(self) -> Figure:
        """Draw the sparsity of each layer, and the planned one of each unit as a line, against depth.

        Returns:
            A plotly figure.

        Raises:
            MissingExtraError: plotly is not installed.
        """
        return RENDERERS["plot"]("pruning_figure", self)

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers as plain JSON values, None for those that are not finite or unknown."""
        perplexity = self.perplexity and {
            key: {"value": found.value, "stderr": found.stderr, "tokens": found.tokens}
            for key, found in zip(("before", "after"), self.perplexity, strict=True)
        }
        layers = [
            {
                **{key: getattr(layer, key) for key in ("name", "unit", "shape", "alpha", "stderr")},
                "planned": layer.sparsity,
                "achieved": self.achieved[layer.name],
            }
            for layer in self.allocation.layers
        ]
        data = {
            "schema": SCHEMA,
            "source": self.allocation.source,
            "method": self.method,
            "calibration": self.calibration,
            "allocation": self.allocation.method,
            "group": self.allocation.group,
            "sparsity": self.allocation.budget,
            "achieved": self.zeros / self.weights,
            "parameters": self.allocation.size and self.allocation.size.parameters,
            "zeros_of_all": self.zeros_of_all,
            "perplexity": perplexity,
            "compared": [asdict(score) for score in self.allocation.compared],
            **({"estimate": self.allocation.estimate} if self.allocation.estimate else {}),
            "findings": [asdict(finding) for finding in self.allocation.findings],
            "units": [asdict(unit) for unit in self.units],
            "layers": layers,
        }
        plain: dict[str, Any] = without_nan(data)
        return plain
