"""LEVI: the layers of a fixed pre-trained network and of a small new one, together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tempbalance.errors import ArgumentError, check_integer
from tempbalance.study.methods.hooks import Batch, Training, TrainingMethod, head_of, linear_layers, seeded

__all__ = ["LEVI"]


class _Views(nn.Module):
    """A fixed network, a small new one, and a head on both at several depths; returns the mean of the logits.

    ``logits`` has those of each head for the last inputs.
    """

    def __init__(self, fixed: nn.Module, layers: Sequence[str]) -> None:
        super().__init__()
        self.fixed = fixed.requires_grad_(False)
        self.layers = [*layers]
        self.small = nn.ModuleList()
        self.heads = nn.ModuleList()
        self.logits: Tensor | None = None

    def build(self, inputs: Tensor, width: int) -> None:
        """Make the new layers, as wide as the inputs and the features need."""
        classes, before = head_of(self.fixed).out_features, inputs.flatten(1).shape[1]
        for features in self._features(inputs):
            self.small.append(nn.Linear(before, width))
            self.heads.append(nn.Linear(features.shape[1] + width, classes))
            before = width
        for new in (self.small, self.heads):
            new.to(inputs)

    def _features(self, inputs: Tensor) -> list[Tensor]:
        """Return the outputs of the layers, ``(examples, width)``."""
        found: dict[nn.Module, Tensor] = {}

        def keep(layer: nn.Module, _: Any, output: Tensor) -> None:
            found[layer] = output

        layers = [self.fixed.get_submodule(name) for name in self.layers]
        handles = [layer.register_forward_hook(keep) for layer in layers]
        with torch.no_grad():
            self.fixed.eval()(inputs)
        for handle in handles:
            handle.remove()
        return [found[layer].reshape(len(inputs), -1, found[layer].shape[-1]).mean(dim=1) for layer in layers]

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits."""
        hidden, logits = inputs.flatten(1), []
        for layer, head, features in zip(self.small, self.heads, self._features(inputs), strict=True):
            hidden = layer(hidden).relu()
            logits.append(head(torch.cat([features, hidden], dim=1)))
        self.logits = torch.stack(logits)
        return self.logits.mean(dim=0)


@dataclass
class LEVI(TrainingMethod):
    """Keep the pre-trained network as it is, train a small one beside it, and a head on both at several depths.

    The two networks see the data differently, and the average over depths relies less on features that hold for the
    training data only. *When:* fine-tuning on few data, tested on other data.

    Ours, after the abstract and the reviews of LEVI. The depths are linear layers at even distances (means over tokens,
    if there are any), the small network is an MLP with a layer for each, and the loss is the mean over the heads.
    Deviation: the pre-trained network is fixed, without LoRA. Inputs must be one tensor.

    Attributes:
        depths: Number of depths, at most the number of linear layers besides the head.
        width: Width of the small network.
    """

    source = "after LEVI (Roh et al. 2024, arXiv 2402.04644)"
    needs = ("labels", "pretrained", "tensors")
    leads = True

    depths: int = 3
    width: int = 64

    def __post_init__(self) -> None:
        check_integer("depths", self.depths, 1)
        check_integer("width", self.width, 1)

    def prepare(self, model: nn.Module, training: Training) -> nn.Module:
        """Fix the model."""
        names = [*linear_layers(model)[0]]
        if len(names) < self.depths:
            raise ArgumentError(f"levi needs {self.depths} linear layers besides the head, this model has {len(names)}")
        self._seed = training.seed
        chosen = [names[(place + 1) * len(names) // self.depths - 1] for place in range(self.depths)]
        self._views = _Views(model, chosen)
        return self._views

    def start(self, model: nn.Module, batches: Sequence[Batch]) -> None:
        """Make the small network and the heads."""
        inputs = batches[0].inputs
        if not isinstance(inputs, Tensor):
            raise ArgumentError("levi needs inputs that are one tensor")
        with seeded(self._seed):
            self._views.build(inputs, self.width)

    def loss(self, model: nn.Module, batch: Batch, outputs: Tensor, loss: Tensor) -> Tensor:
        """Return the mean cross-entropy of the heads."""
        logits, self._views.logits = self._views.logits, None  # a teacher may be a copy of the model
        assert logits is not None
        return nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.repeat(len(logits)))
