"""The part of a budget that one layer, and one unit, gets."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

__all__ = ["LayerAllocation", "MethodScore", "UnitAllocation"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerAllocation:
    """The part of a budget that one layer gets: a weight for sparsity, a module for bits and ranks.

    Attributes:
        name: Name of the weight (``h.0.fc.weight``) or module (``h.0.fc``).
        unit: Name of the layer or block whose value it shares.
        shape: Shape of the weight; of a module ``(outputs, inputs)``, also if it stores ``(inputs, outputs)``.
        alpha: Exponent of its tail, the mean over its parts if it is fused; NaN if there is none.
        stderr: Standard error of alpha; NaN if there is none.
        zeros: Number of entries to set to zero; 0 in an allocation of another quantity, like the next three.
        bits: Bits per weight, with scales if there is a format.
        rank: Rank of the LoRA update.
        trainable: 1 if the layer is trained.
        format: Name of the number format of the weights (see ``find_format``); empty for a plain bit width.
        score: Number that decides whether the layer is trained; NaN if there is none.
    """

    name: str
    unit: str
    shape: tuple[int, ...]
    alpha: float = math.nan
    stderr: float = math.nan
    zeros: int = 0
    bits: float = 0
    rank: int = 0
    trainable: int = 0
    format: str = ""
    score: float = math.nan

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LayerAllocation):
            return NotImplemented
        pairs = ((getattr(self, each.name), getattr(other, each.name)) for each in fields(self))
        return all(a == b or (a != a and b != b) for a, b in pairs)  # noqa: PLR0124  NaN equals NaN

    def __hash__(self) -> int:
        return hash((self.name, self.shape))

    @property
    def numel(self) -> int:
        """Number of entries of the weight."""
        return math.prod(self.shape)

    @property
    def sparsity(self) -> float:
        """Fraction of zeros, in [0, 1]."""
        return self.zeros / self.numel

    @property
    def parameters(self) -> int:
        """Parameters of the LoRA update, ``rank (rows + columns)``."""
        return self.rank * sum(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitAllocation:
    """The part of a budget that one layer or block gets.

    Attributes:
        name: Name of the unit.
        alpha: Mean alpha over its layers; NaN if none has one.
        stderr: Standard error of that mean, for independent layers; NaN if one is unknown.
        value: Fraction of zeros, mean bits per weight or mean rank, by the size of the layers.
        layers: Its layers, in model order.
    """

    name: str
    alpha: float
    stderr: float
    value: float
    layers: tuple[LayerAllocation, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodScore:
    """An allocation method, measured on calibration text.

    Attributes:
        method: Name of the method, with its parameters.
        kl: Mean Kullback-Leibler divergence, in nats a token, of the next-token distribution from that of the dense
            model.
        perplexity: Perplexity of the text.
    """

    method: str
    kl: float
    perplexity: float
