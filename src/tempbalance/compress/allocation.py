"""One class for every allocation over layers (sparsity, bits, LoRA ranks, trainable layers), and its JSON file."""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import msgspec

from tempbalance._files import RENDERERS, without_nan, write_atomically
from tempbalance._saved import Count, SavedSize, Settings, Size, read_saved
from tempbalance.compress.allocation_findings import find_in_units
from tempbalance.compress.formats import find_format
from tempbalance.compress.layer_allocation import LayerAllocation, MethodScore, UnitAllocation
from tempbalance.errors import AllocationError
from tempbalance.metrics import mean_alpha
from tempbalance.types import Finding, ModelSize

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["Allocation", "Quantity"]

Quantity = Literal["sparsity", "bits", "rank", "trainable"]

SCHEMA = 1
_COVERED = 0.9  # of the weights inside the blocks
_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class Allocation(Mapping[str, float]):
    """A sparsity, bit width, LoRA rank or 0 or 1 (frozen or trained) for every layer: a mapping from name to value.

    Attributes:
        source: The model that was analysed.
        quantity: The allocated quantity: ``"sparsity"``, ``"bits"``, ``"rank"`` or ``"trainable"``.
        budget: The global target: sparsity, mean bits per weight, the uniform rank whose parameters are the budget, or
            the fraction of the layers of each type that are trained.
        method: Name of the allocation method, with its parameters.
        unit: Whether each layer has its own value or all layers of a block share one.
        layers: One row per layer, in model order.
        group: M of N:M sparsity: each group of M consecutive inputs has the same number of zeros; None if unstructured.
        revision: Commit of a model from the hub, if known.
        settings: Settings of the analysis: estimator, windows, versions.
        size: Number of parameters of the model, and of those weights that could have had a value; None in files of
            older versions.
        compared: What each method gives on the calibration text, the best first; empty if it was not measured.
        criterion: Pruning criterion that this was measured for; empty if it was not, and in files of older versions.
        estimate: The time and memory that a search was expected to take, or would take, if simple allocations were
            measured only; else empty.

    Example:
        >>> layer = LayerAllocation(name="a", unit="a", shape=(4, 5), alpha=2.0, stderr=0.1, zeros=7)
        >>> allocation = Allocation(source="model", budget=0.35, method="uniform", unit="layer", layers=(layer,))
        >>> allocation["a"], len(allocation)
        (0.35, 1)
    """

    source: str
    quantity: Quantity = "sparsity"
    budget: float
    method: str
    unit: Literal["layer", "block"]
    layers: tuple[LayerAllocation, ...]
    group: int | None = None
    revision: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    size: ModelSize | None = None
    compared: tuple[MethodScore, ...] = ()
    criterion: str = ""
    estimate: str = field(default="", compare=False)

    @functools.cached_property
    def _values(self) -> dict[str, float]:
        return {layer.name: getattr(layer, self.quantity) for layer in self.layers}

    def __getitem__(self, name: str) -> float:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    @property
    def units(self) -> list[UnitAllocation]:
        """The units with their values, in model order."""
        members: dict[str, list[LayerAllocation]] = {}
        for layer in self.layers:
            members.setdefault(layer.unit, []).append(layer)
        units = []
        for name, layers in members.items():
            alpha, stderr = mean_alpha((layer.alpha, layer.stderr) for layer in layers)
            total = sum(layer.zeros or self[layer.name] * layer.numel for layer in layers)
            value = total / sum(layer.numel for layer in layers)
            units.append(UnitAllocation(name=name, alpha=alpha, stderr=stderr, value=value, layers=tuple(layers)))
        return units

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Reasons to doubt the allocation (it follows noise, or sets all weights of a unit to zero), or empty."""
        return tuple(find_in_units(self.units, self.quantity, self.method))

    def __repr__(self) -> str:
        budget = f"{self.quantity} {self.budget:.4g}" + (f" in groups of {self.group}" if self.group else "")
        return f"Allocation({self.source}, {budget}, by {self.method}, {len(self)} layers)"

    def plot(self) -> Figure:
        """Draw the value of each layer, and of each unit as a line, against depth.

        Returns:
            A plotly figure.

        Raises:
            MissingExtraError: plotly is not installed.

        Example:
            >>> layer = LayerAllocation(name="a", unit="a", shape=(4, 5), alpha=2.0, stderr=0.1, zeros=7)
            >>> allocation = Allocation(source="model", budget=0.35, method="uniform", unit="layer", layers=(layer,))
            >>> allocation.plot().layout.yaxis.title.text
            'sparsity'
        """
        return RENDERERS["plot"]("allocation_figure", self)

    def check_quantity(self, quantity: Quantity) -> None:
        """Raise an AllocationError if another quantity is allocated."""
        if self.quantity != quantity:
            raise AllocationError(f"expected an allocation of {quantity}, got one of {self.quantity}")

    def check_whole_weights(self, target: str) -> None:
        """Raise an AllocationError unless sparsity is allocated, to whole weights of modules only."""
        self.check_quantity("sparsity")
        for name in self:
            if not name.endswith(".weight"):
                raise AllocationError(
                    f"{name} is not the whole weight of a module, and {target} can address whole weights only: prune "
                    "with tempbalance, or allocate to whole fused weights (Select(split=False))"
                )

    @property
    def covered(self) -> int:
        """Number of parameters of the model that the layers have."""
        return sum(layer.numel for layer in self.layers)

    def check_coverage(self) -> None:
        """Raise an AllocationError if more than 10 % of the weights inside the blocks have no value."""
        expected = self.size and (self.size.block_weights or self.size.weights)
        if expected and self.covered < _COVERED * expected:
            raise AllocationError(
                f"the allocation has {self.covered:,} of {expected:,} weights inside the blocks "
                f"({self.covered / expected:.0%}); the others could not be analysed (see analysis.skipped): "
                "partial=True (--partial) prunes these alone"
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the allocation as JSON, atomically.

        Args:
            path: The file.

        Raises:
            AnalysisError: The file cannot be written.
        """
        write_atomically(path, json.dumps(self.to_dict(), indent=1, allow_nan=False).encode() + b"\n")

    def to_dict(self) -> dict[str, Any]:
        """Return what ``save`` writes, as plain JSON values."""
        return {
            "schema": SCHEMA,
            **{name: getattr(self, name) for name in ("source", "method", "unit", "revision")},
            self.quantity: self.budget,
            **({"group": self.group} if self.quantity == "sparsity" else {}),
            "settings": dict(self.settings),
            **({"size": self.size._asdict()} if self.size else {}),
            **({"compared": [without_nan(asdict(score)) for score in self.compared]} if self.compared else {}),
            **{name: text for name in ("criterion", "estimate") if (text := getattr(self, name))},
            **({"findings": [asdict(finding) for finding in findings]} if (findings := self.findings) else {}),
            "layers": [_to_json(layer, self.quantity) for layer in self.layers],
        }

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Allocation:
        """Read an allocation from the file that ``save`` wrote.

        Args:
            path: The file.

        Returns:
            An allocation equal to the saved one.

        Raises:
            AllocationError: The file is missing, is not an allocation, or was written by a newer version.
        """
        saved = read_saved(path, _SavedAllocation, "an allocation", AllocationError, newest=SCHEMA)
        try:
            return saved.restored()
        except ValueError as error:
            raise AllocationError(f"{path} is not an allocation saved by tempbalance: {error}") from error


def _to_json(layer: LayerAllocation, quantity: Quantity) -> dict[str, Any]:
    amounts: tuple[str, ...] = ("zeros", "sparsity") if quantity == "sparsity" else (quantity,)
    amounts += ("format",) * bool(layer.format) + ("score",) * math.isfinite(layer.score)
    row = {name: getattr(layer, name) for name in ("name", "unit", "shape", "numel", "alpha", "stderr", *amounts)}
    return row | {name: None for name in ("alpha", "stderr") if not math.isfinite(row[name])}


class _SavedLayer(msgspec.Struct):
    name: str
    unit: str
    shape: Annotated[tuple[Size, ...], msgspec.Meta(min_length=1)]
    numel: Count | None = None
    alpha: float | None = None
    stderr: float | None = None
    zeros: Count | None = None
    sparsity: float | None = None
    bits: Size | Annotated[float, msgspec.Meta(gt=0)] | None = None
    rank: Count | None = None
    trainable: Annotated[int, msgspec.Meta(ge=0, le=1)] | None = None
    format: str = ""
    score: float | None = None

    def restored(self, quantity: Quantity) -> LayerAllocation:
        """Return the layer, after checks between fields."""
        amount = "zeros" if quantity == "sparsity" else quantity
        names = ("alpha", "stderr", "format", "score", amount)
        found = {name: value for name in names if (value := getattr(self, name)) is not None}
        layer = LayerAllocation(name=self.name, unit=self.unit, shape=self.shape, **found)
        if amount not in found:
            raise ValueError(f"{self.name} has no {amount}")
        if self.numel not in (None, layer.numel):
            raise ValueError(f"{self.name} has shape {self.shape} and numel {self.numel}")
        if self.format and not self._costs_its_format(layer):
            raise ValueError(f"{self.name} has {layer.bits:g} bits, which is not what {self.format} costs")
        if not layer.zeros <= layer.numel:
            raise ValueError(f"{self.name} has {layer.zeros} zeros of {layer.numel} entries")
        if self.sparsity is not None and not math.isclose(self.sparsity, layer.sparsity, abs_tol=_ROUNDING):
            raise ValueError(f"{self.name} has sparsity {self.sparsity} and {layer.zeros} zeros of {layer.numel}")
        return layer

    def _costs_its_format(self, layer: LayerAllocation) -> bool:
        one = find_format(self.format)
        return one.fits(layer.shape) and math.isclose(
            layer.bits * layer.numel, one.cost(layer.shape), rel_tol=_ROUNDING
        )


class _SavedScore(msgspec.Struct):
    method: str
    kl: float | None  # None if it was infinite
    perplexity: float | None

    def restored(self) -> MethodScore:
        kl, perplexity = (math.inf if value is None else value for value in (self.kl, self.perplexity))
        return MethodScore(method=self.method, kl=kl, perplexity=perplexity)


class _SavedAllocation(msgspec.Struct):
    schema: int
    source: str
    method: str
    unit: Literal["layer", "block"]
    layers: Annotated[list[_SavedLayer], msgspec.Meta(min_length=1)]
    sparsity: Annotated[float, msgspec.Meta(ge=0, le=1)] | Annotated[int, msgspec.Meta(ge=0, le=1)] | None = None
    bits: Annotated[float, msgspec.Meta(gt=0)] | Size | None = None
    rank: Annotated[float, msgspec.Meta(gt=0)] | Size | None = None
    trainable: Annotated[float, msgspec.Meta(ge=0, le=1)] | Annotated[int, msgspec.Meta(ge=0, le=1)] | None = None
    group: Size | None = None
    revision: str | None = None
    settings: Settings = {}
    size: SavedSize | None = None
    compared: list[_SavedScore] = []
    criterion: str = ""
    estimate: str = ""

    def restored(self) -> Allocation:
        """Return the allocation, after checks between fields."""
        budgets: dict[Quantity, float] = {
            each: value for each in get_args(Quantity) if (value := getattr(self, each)) is not None
        }
        if len(budgets) != 1:
            raise ValueError(f"it must have one of {', '.join(get_args(Quantity))}, found {len(budgets)}")
        ((quantity, budget),) = budgets.items()
        allocation = Allocation(
            quantity=quantity,
            budget=budget,
            layers=tuple(layer.restored(quantity) for layer in self.layers),
            size=self.size.restored() if self.size else None,
            compared=tuple(score.restored() for score in self.compared),
            **{
                name: getattr(self, name)
                for name in ("source", "method", "unit", "group", "revision", "settings", "criterion", "estimate")
            },
        )
        if len(allocation) != len(self.layers):
            raise ValueError("two layers have the same name")
        return allocation
