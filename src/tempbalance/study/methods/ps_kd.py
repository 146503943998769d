"""Progressive self-knowledge distillation."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tempbalance.study.methods.hooks import Batch, Training, TrainingMethod, check_range, outputs_of

__all__ = ["SelfDistillation"]


@dataclass
class SelfDistillation(TrainingMethod):
    """Mix the labels with the predictions of the model at the end of the last epoch, with a weight that grows linearly.

    The targets of epoch t of T are ``(1 - share) * label + share * softmax(last logits)`` with ``share = strength * t /
    T``, so that hard and ambiguous examples get softer labels. *When:* a classifier becomes overconfident; it requires
    several epochs, and one more forward pass per step.

    The cross-entropy is linear in the targets, so the task's loss is used for the labels. The predictions are of a copy
    of the model at the end of the last epoch, in evaluation mode, on the same inputs, which is correct for augmented
    inputs as well.

    Attributes:
        strength: Weight in the last epoch, ``alpha_T``; 0.8 in the paper.
    """

    source = "PS-KD (Kim et al., ICCV 2021, arXiv 2006.12000)"
    needs = ("labels",)

    strength: float = 0.8

    def __post_init__(self) -> None:
        check_range("strength", self.strength, 1)

    def prepare(self, model: nn.Module, training: Training) -> nn.Module:
        """Start without a teacher: labels are hard in the first epoch."""
        self._training = training
        self._steps = 0
        self._teacher: nn.Module | None = None
        return model

    def loss(self, model: nn.Module, batch: Batch, outputs: Tensor, loss: Tensor) -> Tensor:
        """Return the cross-entropy with the mixed targets."""
        if self._teacher is None:
            return loss
        with torch.no_grad():
            targets = outputs_of(self._teacher, batch.inputs).softmax(-1)
        soft = -(targets * outputs.log_softmax(-1)).sum(-1).mean()
        epoch = self._steps // self._training.batches
        share = self.strength * (epoch + 1) / self._training.epochs
        return (1 - share) * loss + share * soft

    def after_step(self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Copy the model at the end of an epoch."""
        self._steps += 1
        if self._steps % self._training.batches == 0:
            self._teacher = copy.deepcopy(model).eval()
