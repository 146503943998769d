"""Noise on the gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from baselines.base import Baseline, Training, generator, trained

DECAY = 0.55


@dataclass
class GradientNoise(Baseline):
    """Add Gaussian noise of variance ``variance / (1 + t) ** 0.55`` to every gradient at step t, starting at 0.

    The noise helps to leave poor minima and plateaus early in training. *When:* deep or hard-to-train networks, poor
    initial weights; less so for a pre-trained network.

    Neelakantan et al. 2015 (arXiv 1511.06807). No deviation. Adam divides by the size of the gradients, so noise
    larger than the gradients dominates the step.

    Attributes:
        variance: ``eta`` in the paper, chosen from 0.01, 0.3 and 1.
    """

    variance: float = 0.01

    def __post_init__(self) -> None:
        if not self.variance >= 0:
            raise ValueError(f"variance must be 0 or more, got {self.variance}")

    def prepare(self, model: nn.Module, training: Training) -> nn.Module:
        """Start at step 0."""
        self._generator = generator(training.seed)
        self._steps = 0
        return model

    @torch.no_grad()
    def before_step(self, model: nn.Module) -> None:
        """Add the noise."""
        deviation = (self.variance / (1 + self._steps) ** DECAY) ** 0.5
        self._steps += 1
        for parameter in trained(model).values():
            if parameter.grad is not None:
                noise = torch.randn(parameter.shape, dtype=parameter.dtype, generator=self._generator)
                parameter.grad.add_(noise.to(parameter.device), alpha=deviation)
