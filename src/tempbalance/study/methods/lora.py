"""LoRA, by PEFT."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from tempbalance.errors import MissingExtraError, check_integer
from tempbalance.study.methods.hooks import Batch, Training, TrainingMethod, linear_layers, seeded

__all__ = ["Lora"]


@dataclass
class Lora(TrainingMethod):
    """Train a low-rank product added to every linear layer, and the head; all other weights are frozen.

    *When:* the model is too large to fine-tune, or the data are so few that tuned full fine-tuning is worse. It
    requires a learning rate about ten times as high.

    Rank, scale and dropout are as in Model Balancing's experiments with LoRA (rank 8, ``lora_alpha`` 16, dropout 0.05).
    Deviation: all linear layers are adapted, not only queries and values. Joined with a recipe, alpha is that of ``W +
    scale * B A``, and the factors get the multiplier of their layer.

    Attributes:
        rank: Width of the factors.
        scale: Factor on the product, ``lora_alpha / rank``.
        dropout: Dropout of the inputs of the factors.
    """

    source = "Hu et al., ICLR 2022 (arXiv 2106.09685)"
    needs = ("pretrained",)

    rank: int = 8
    scale: float = 2.0
    dropout: float = 0.05

    def __post_init__(self) -> None:
        check_integer("rank", self.rank, 1)
        if importlib.util.find_spec("peft") is None:  # to say so before anything is trained
            raise MissingExtraError("lora needs PEFT: pip install 'tempbalance[peft]'")

    def prepare(self, model: nn.Module, training: Training) -> nn.Module:
        """Add the factors."""
        import peft

        layers, head = linear_layers(model)
        config = peft.LoraConfig(
            r=self.rank,
            lora_alpha=self.scale * self.rank,
            lora_dropout=self.dropout,
            target_modules=[*layers],
        )
        with seeded(training.seed):
            adapted: nn.Module = peft.get_peft_model(model, config)
        model.get_submodule(head).requires_grad_(True)  # PEFT's modules_to_save would match every name that ends so
        return adapted

    def finish(self, model: nn.Module, batches: Sequence[Batch]) -> nn.Module:
        """Merge the products into the weights."""
        merged: nn.Module = model.merge_and_unload()  # type: ignore[operator]
        return merged
