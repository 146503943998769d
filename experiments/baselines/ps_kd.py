"""Progressive self-knowledge distillation."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from baselines.base import Baseline, Batch, Training, outputs_of


@dataclass
class SelfDistillation(Baseline):
    """Mix the labels with the predictions of the model at the end of the last epoch, with a weight that grows linearly.

    The targets of epoch t of T are ``(1 - share) * label + share * softmax(last logits)`` with ``share = strength *
    t / T``, so that hard and ambiguous examples get softer labels. *When:* a classifier becomes overconfident; it
    requires several epochs, and one more forward pass per step.

    PS-KD, Kim et al. 2021 (arXiv 2006.12000). The cross-entropy is linear in the targets, so the task's loss is used
    for the labels. The predictions are of a copy of the model at the end of the last epoch, in evaluation mode, on the
    same inputs, which is correct for augmented inputs as well.

    Attributes:
        strength: Weight in the last epoch, ``alpha_T``; 0.8 in the paper.
    """

    strength: float = 0.8

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise ValueError(f"strength must be in [0, 1], got {self.strength}")

    def prepare(self, model: nn.Module, training: Training) -> nn.Module:
        """Start without a teacher: labels are hard in the first epoch."""
        self._training = training
        self._seen = 0
        self._teacher: nn.Module | None = None
        return model

    def loss(self, model: nn.Module, batch: Batch, outputs: Tensor, loss: Tensor) -> Tensor:
        """Return the cross-entropy with the mixed targets."""
        epoch, place = divmod(self._seen, self._training.batches)
        self._seen += 1
        if epoch and not place:
            self._teacher = copy.deepcopy(model).eval()
        if self._teacher is None:
            return loss
        with torch.no_grad():
            targets = outputs_of(self._teacher, batch.inputs).softmax(-1)
        soft = -(targets * outputs.log_softmax(-1)).sum(-1).mean()
        share = self.strength * (epoch + 1) / self._training.epochs
        return (1 - share) * loss + share * soft
