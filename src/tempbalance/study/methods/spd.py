"""Selective projection decay."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from tempbalance.balance import PullBack
from tempbalance.study.methods.hooks import TrainingMethod, check_range, trained

__all__ = ["SPD"]


@dataclass
class SPD(TrainingMethod):
    """AdamW with a pull back to the initial weights, only where a step moves away from them against the gradient.

    It replaces weight decay, which is 0. *When:* fine-tuning, above all if the test data differ from the training data.

    By :class:`tempbalance.balance.PullBack`, which names its deviations. The new head is pulled back to its initial
    values as well.

    Attributes:
        strength: Strength; 0 changes nothing.
    """

    source = "SPD (Tian et al., NeurIPS 2024, arXiv 2411.01713)"
    needs = ("pretrained",)

    strength: float = 1.0
    decay: float = 0.0

    def __post_init__(self) -> None:
        check_range("strength", self.strength)

    def optimizers(
        self, model: nn.Module, lr: float, weight_decay: float, betas: tuple[float, float] = (0.9, 0.999)
    ) -> list[torch.optim.Optimizer]:
        """Build AdamW with the pull."""
        optimizer = torch.optim.AdamW(
            trained(model).values(), lr=lr, betas=betas, weight_decay=weight_decay, fused=True
        )
        PullBack(optimizer, self.strength)
        return [optimizer]
