"""SaRA: train the smallest weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tempbalance.study.methods.hooks import Batch, Training, TrainingMethod, check_range, freeze_all_but_head, generator

__all__ = ["SaRA"]

_SMALLEST = 64  # rows and columns of a matrix whose rank is penalised


class _Small(nn.Module):
    """A weight whose masked entries are parameters, in one vector, and all others are fixed."""

    base: Tensor
    mask: Tensor

    def __init__(self, weight: Tensor, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("base", weight.detach().clone())
        self.register_buffer("mask", mask)

    def forward(self, values: Tensor) -> Tensor:
        """Return the weight."""
        return self.base.masked_scatter(self.mask, values)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return the masked entries."""
        return weight[self.mask]


@dataclass
class SaRA(TrainingMethod):
    """Train the entries of linear layers that are the smallest, and the head; all other weights are frozen.

    Small weights do little in the pre-trained model, so that they may learn something new. The nuclear norm of one
    random matrix a step is penalised, for a low rank against overfitting. Half-way the entries that have grown are
    fixed, and the others continue with a fresh state of the optimizer. *When:* fine-tuning on few data; as LoRA.

    As in the released code: the penalty is on the trained entries of a matrix with more than 64 rows and columns.
    Deviations: the threshold is that of a share of all entries, not a number; the learning rate is that of the task;
    the signs of the trained entries are kept (the released code drops them).

    Attributes:
        share: Share of the entries of all adapted layers that is trained; 0.1 to 0.2 in the paper.
        strength: Factor on the nuclear norm.
    """

    source = "SaRA (Hu et al., ICLR 2025, arXiv 2409.06633), github.com/sjtuplayer/SaRA"
    needs = ("pretrained",)

    share: float = 0.1
    strength: float = 5e-4

    def __post_init__(self) -> None:
        check_range("share", self.share, 1)
        check_range("strength", self.strength)

    def prepare(self, model: nn.Module, training: Training) -> nn.Module:
        """Choose the entries."""
        layers = freeze_all_but_head(model, "sara")
        sizes = torch.cat([layer.weight.detach().abs().flatten() for layer in layers.values()])
        self._threshold = sizes.kthvalue(max(1, round(self.share * len(sizes)))).values
        self._layers = [layer for layer in layers.values() if (layer.weight.abs() <= self._threshold).any()]
        for layer in self._layers:
            mask = layer.weight.detach().abs() <= self._threshold
            parametrize.register_parametrization(layer, "weight", _Small(layer.weight, mask))
            self._values(layer).requires_grad_(True)
        self._steps, self._half = 0, max(1, training.epochs * training.batches // 2)
        self._generator = generator(training.seed)
        self._fixed: list[tuple[nn.Parameter, Tensor, Tensor]] = []
        return model

    @staticmethod
    def _values(layer: nn.Module) -> nn.Parameter:
        return layer.parametrizations.weight.original  # type: ignore[union-attr, return-value]

    def loss(self, model: nn.Module, batch: Batch, outputs: Tensor, loss: Tensor) -> Tensor:
        """Add the nuclear norm of the trained entries of one random matrix."""
        large = [layer for layer in self._layers if min(layer.weight.shape) > _SMALLEST]
        if not large or not self.strength:
            return loss
        layer = large[int(torch.randint(len(large), (), generator=self._generator))]
        mask: Tensor = layer.parametrizations.weight[0].mask  # type: ignore[index, union-attr]
        values = self._values(layer)
        trained = values.new_zeros(mask.shape).masked_scatter(mask, values)
        if not bool(trained.isfinite().all()):  # diverged: the singular values would raise
            return loss * math.nan
        norm: Tensor = torch.linalg.matrix_norm(trained, "nuc")
        return loss + self.strength * norm

    @torch.no_grad()
    def after_step(self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Half-way fix the entries that have grown; afterwards keep them."""
        self._steps += 1
        if self._steps == self._half:
            for values in map(self._values, self._layers):
                grown = values.abs() > self._threshold
                self._fixed.append((values, grown, values[grown].clone()))
                for optimizer in optimizers:
                    optimizer.state.pop(values, None)
        for values, grown, fixed in self._fixed:
            values[grown] = fixed

    def finish(self, model: nn.Module, batches: Sequence[Batch]) -> nn.Module:
        """Compose the weights."""
        for layer in self._layers:
            parametrize.remove_parametrizations(layer, "weight")
        return model
