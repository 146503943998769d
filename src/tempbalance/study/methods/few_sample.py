"""The recipe for fine-tuning on few samples."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from tempbalance.errors import ArgumentError, check_integer
from tempbalance.layers import find_weights
from tempbalance.study.methods.hooks import Training, TrainingMethod, check_positive, draw_again, seeded

__all__ = ["FewSample"]


@dataclass
class FewSample(TrainingMethod):
    """Initialise the last blocks anew, and train longer.

    The last blocks are specialised in the task of pre-training. *When:* a pre-trained transformer whose last blocks
    transfer badly, on few data; with the rest of this recipe.

    The third part of the recipe is Adam with bias correction, which PyTorch's AdamW has. They also initialise BERT's
    pooler anew; a model without one has none to initialise.

    Attributes:
        blocks: Number of last blocks to initialise anew, 1 to 6 in the paper.
        longer: Factor on the number of epochs.
    """

    source = "Zhang et al. 2021, Revisiting few-sample BERT fine-tuning (arXiv 2006.05987)"
    needs = ("pretrained",)

    blocks: int = 1
    longer: float = 2.0

    def __post_init__(self) -> None:
        check_integer("blocks", self.blocks, 0)
        check_positive("longer", self.longer)
        self.epochs = self.longer

    def prepare(self, model: nn.Module, training: Training) -> nn.Module:
        """Initialise the last of the model's blocks."""
        weights, _ = find_weights(model)
        blocks = list(dict.fromkeys(weight.block for weight in weights if weight.block is not None))
        if len(blocks) < self.blocks:
            raise ArgumentError(f"this model has {len(blocks)} blocks, fewer than {self.blocks}")
        deviation = getattr(getattr(model, "config", None), "initializer_range", 0.02)
        with seeded(training.seed):
            for block in blocks[len(blocks) - self.blocks :]:
                draw_again(model.get_submodule(block), deviation)
        return model
