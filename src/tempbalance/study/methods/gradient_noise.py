"""Noise on the gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from tempbalance.study.methods.hooks import Training, TrainingMethod, check_range, generator, trained

__all__ = ["GradientNoise"]

_DECAY = 0.55


@dataclass
class GradientNoise(TrainingMethod):
    """Add Gaussian noise of variance ``variance / (1 + t) ** 0.55`` to every gradient at step t, starting at 0.

    The noise helps to leave poor minima and plateaus early in training. *When:* deep or hard-to-train networks, poor
    initial weights; less so for a pre-trained network.

    No deviation. Adam divides by the size of the gradients, so noise larger than the gradients dominates the step.

    Attributes:
        variance: ``eta`` in the paper, chosen from 0.01, 0.3 and 1.
    """

    source = "Neelakantan et al. 2015 (arXiv 1511.06807)"

    variance: float = 0.01

    def __post_init__(self) -> None:
        check_range("variance", self.variance)

    def prepare(self, model: nn.Module, training: Training) -> nn.Module:
        """Start at step 0."""
        self._generator = generator(training.seed)
        self._steps = 0
        return model

    @torch.no_grad()
    def before_step(self, model: nn.Module) -> None:
        """Add the noise."""
        deviation = (self.variance / (1 + self._steps) ** _DECAY) ** 0.5
        self._steps += 1
        for parameter in trained(model).values():
            if parameter.grad is not None:
                noise = torch.randn(parameter.shape, dtype=parameter.dtype, generator=self._generator)
                parameter.grad.add_(noise.to(parameter.device), alpha=deviation)
