"""PEGO: several orthogonal low-rank updates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tempbalance.errors import check_integer
from tempbalance.layers import describe_parameters, find_weights
from tempbalance.study.methods.hooks import Batch, Training, TrainingMethod, check_range, freeze_all_but_head, generator

__all__ = ["PEGO"]

_ROLES = ("q", "v")


class _Updates(nn.Module):
    """A weight plus the sum of ``count`` products ``B_i A_i``, which are 0 at first."""

    def __init__(self, weight: Tensor, count: int, rank: int, rng: torch.Generator) -> None:
        super().__init__()
        rows, columns = weight.shape
        a = torch.empty(count, rank, columns).uniform_(-(columns**-0.5), columns**-0.5, generator=rng)
        self.a = nn.Parameter(a.to(weight))
        self.b = nn.Parameter(weight.new_zeros(count, rows, rank))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight."""
        return weight + (self.b @ self.a).sum(dim=0)

    def penalty(self, weight: Tensor) -> Tensor:
        """Return the sum of absolute entries of all products that are 0 if weight and updates are orthogonal."""
        updates = self.b @ self.a
        pairs = [updates[i] @ updates[j].T for i, j in combinations(range(len(updates)), 2)]
        return sum((pair.abs().sum() for pair in pairs), (weight @ updates.mT).abs().sum())


@dataclass
class PEGO(TrainingMethod):
    """Train several low-rank updates of queries and values that are orthogonal to the weights and to each other.

    Updates that are orthogonal to the pre-trained weights keep what these know, and those that are orthogonal to each
    other learn different things. *When:* fine-tuning a transformer that is tested on data unlike the training data.

    Deviations: the learning rate is that of the task (5e-4 in the paper), and a model without queries and values is
    adapted in all linear layers. The penalty is a sum over entries, so its best strength is smaller for wider layers
    (the paper has one width, 768).

    Attributes:
        rank: Rank of an update.
        count: Number of updates of a layer.
        strength: Factor on the penalty.
    """

    source = "PEGO (Hu et al., ECCV 2024, arXiv 2407.15085), github.com/JudgingH/PEGO"
    needs = ("pretrained",)

    rank: int = 4
    count: int = 4
    strength: float = 1e-3

    def __post_init__(self) -> None:
        check_integer("rank", self.rank, 1)
        check_integer("count", self.count, 1)
        check_range("strength", self.strength)

    def prepare(self, model: nn.Module, training: Training) -> nn.Module:
        """Add the updates; all other weights except the head are frozen."""
        facts = describe_parameters(model, find_weights(model)[0])
        layers = freeze_all_but_head(model, "pego")
        roles = {name: facts[f"{name}.weight"].role for name in layers if f"{name}.weight" in facts}
        attention = {name: layer for name, layer in layers.items() if roles.get(name) in _ROLES}
        rng = generator(training.seed)
        self._layers = [*(attention or layers).values()]
        for layer in self._layers:
            parametrize.register_parametrization(layer, "weight", _Updates(layer.weight, self.count, self.rank, rng))
        return model

    def loss(self, model: nn.Module, batch: Batch, outputs: Tensor, loss: Tensor) -> Tensor:
        """Add the penalty."""
        if not self.strength:
            return loss
        adapted: list[Any] = [layer.parametrizations.weight for layer in self._layers]  # type: ignore[union-attr]
        return loss + self.strength * torch.stack([each[0].penalty(each.original) for each in adapted]).sum()

    def finish(self, model: nn.Module, batches: Sequence[Batch]) -> nn.Module:
        """Add the updates to the weights."""
        for layer in self._layers:
            parametrize.remove_parametrizations(layer, "weight")
        return model
