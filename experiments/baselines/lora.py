"""LoRA, by PEFT."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from baselines.base import Baseline, Batch, Training, linear_layers
from tempbalance.errors import MissingExtraError


@dataclass
class Lora(Baseline):
    """Trains a product of two thin matrices beside every linear layer, and the head; all else stays as it was.

    Few weights can change, and little can be forgotten or overfitted. *When:* the model is too large to fine-tune, or
    the data are so few that a tuned full fine-tuning is worse. It wants a learning rate about ten times as high.

    Hu et al. 2022 (arXiv 2106.09685); rank, scale and dropout as in Model Balancing's experiments with LoRA (rank 8,
    ``lora_alpha`` 16, dropout 0.05). Deviation: all linear layers are adapted, not queries and values alone. Joined
    with a recipe, alpha is that of ``W + scale * B A``, and the factors get the multiplier of their layer.

    Attributes:
        rank: Width of the factors.
        scale: Factor on the product, ``lora_alpha / rank``.
        dropout: On what goes into the factors.
    """

    rank: int = 8
    scale: float = 2.0
    dropout: float = 0.05

    def __post_init__(self) -> None:
        if self.rank != int(self.rank) or self.rank < 1:
            raise ValueError(f"rank must be a whole number from 1 on, got {self.rank}")

    def prepare(self, model: nn.Module, training: Training) -> nn.Module:
        """Add the factors."""
        try:
            import peft
        except ImportError as error:
            raise MissingExtraError("LoRA needs PEFT: pip install 'tempbalance[peft]'") from error
        layers, head = linear_layers(model)
        config = peft.LoraConfig(
            r=self.rank,
            lora_alpha=self.scale * self.rank,
            lora_dropout=self.dropout,
            target_modules=[*layers],
            modules_to_save=[head],
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(training.seed)
            adapted: nn.Module = peft.get_peft_model(model, config)
        return adapted

    def finish(self, model: nn.Module, batches: Iterable[Batch]) -> nn.Module:
        """Add the products to the weights, so that evaluation costs no more."""
        merged: nn.Module = model.merge_and_unload()  # type: ignore[operator]
        return merged
