"""Gradient boosting of networks in sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tempbalance.errors import check_integer
from tempbalance.study.methods.hooks import Batch, Training, TrainingMethod, check_positive, outputs_of

__all__ = ["Boosting"]


class _Scaled(nn.Module):
    """A model whose outputs are multiplied by a number: a task averages the members, which are to be added."""

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model = model
        self.factor = factor

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the outputs."""
        return self.factor * outputs_of(self.model, kwargs or args[0])


@dataclass
class Boosting(TrainingMethod):
    """Train several networks in sequence, each on what the sum of those before it gets wrong.

    *When:* small networks that underfit alone; training and inference cost as much as an ensemble of ``members``.

    Ours, after sequential training by gradient boosting. The loss of each network is that of the sum of the logits of
    all so far, whose gradient is the pseudo-residual. Deviations: a network is complete, not a few units of the last
    hidden layer, and is trained on the loss, not on the squared error of the pseudo-residuals.

    Attributes:
        members: Number of networks.
        shrinkage: Factor on the logits of each.
        longer: Factor on the task's epochs for each; ``1 / members`` for the cost of one network.
    """

    source = "after Emami and Martinez-Munoz 2019 (arXiv 1909.12098)"
    needs = ("labels",)
    leads = True

    members: int = 3
    shrinkage: float = 1.0
    longer: float = 1.0

    def __post_init__(self) -> None:
        check_integer("members", self.members, 1)
        check_positive("shrinkage", self.shrinkage)
        check_positive("longer", self.longer)
        self.epochs = self.longer
        self._before: list[nn.Module] = []

    def prepare(self, model: nn.Module, training: Training) -> nn.Module:
        """Begin a new sequence if the last is complete."""
        if len(self._before) == self.members:
            self._before = []
        return model

    def loss(self, model: nn.Module, batch: Batch, outputs: Tensor, loss: Tensor) -> Tensor:
        """Return the cross-entropy of the sum."""
        if not self._before and self.shrinkage == 1:
            return loss
        with torch.no_grad():
            before = sum(outputs_of(each.eval(), batch.inputs) for each in self._before)
        return nn.functional.cross_entropy(self.shrinkage * (outputs + before), batch.targets)

    def finish(self, model: nn.Module, batches: Sequence[Batch]) -> nn.Module:
        """Keep the network; return it scaled, so that the average over networks is their sum."""
        self._before.append(model)
        return _Scaled(model, self.members * self.shrinkage)
