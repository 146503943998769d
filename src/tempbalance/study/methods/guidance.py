"""Guidance by the layers of another network."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tempbalance.errors import ArgumentError
from tempbalance.study.methods.hooks import (
    Batch,
    Training,
    TrainingMethod,
    check_range,
    draw_again,
    linear_layers,
    outputs_of,
    seeded,
)

__all__ = ["Guidance", "linear_cka"]

_OTHER = 2**40  # beyond every seed of a study


@dataclass
class Guidance(TrainingMethod):
    """Add to the loss how far the layers are from those of a guide: ``1 - CKA``, averaged over the linear layers.

    The guide is a copy of the model that is not trained: as it is at the start (trained, if the model is pre-trained),
    or with new random weights, which has only the prior of its architecture. *When:* a network that overfits or does
    not train.

    Linear CKA between the outputs of each linear layer except the head, over the examples (or tokens) of a batch.
    Deviation: the guide has the architecture of the model, since a task has one; in the paper it has another one, which
    is easier to train.

    Attributes:
        strength: Factor on the distance.
        guide: ``start`` or ``random``.
    """

    source = "after Subramaniam et al., NeurIPS 2025, Training the untrainable (arXiv 2410.20035)"

    strength: float = 1.0
    guide: Literal["start", "random"] = "random"

    def __post_init__(self) -> None:
        check_range("strength", self.strength)
        if self.guide not in ("start", "random"):
            raise ArgumentError(f"guide must be start or random, got {self.guide}")

    def requirements(self) -> set[str]:
        """A guide as at the start needs a pre-trained model."""
        return super().requirements() | ({"pretrained"} if self.guide == "start" else set())

    def prepare(self, model: nn.Module, training: Training) -> nn.Module:
        """Copy the model, and record the outputs of the layers of both."""
        self._guide = copy.deepcopy(model).eval().requires_grad_(False)
        if self.guide == "random":
            with seeded(training.seed + _OTHER):  # the task may have built the model with this seed
                draw_again(self._guide)
        self._handles: list[Any] = []
        self._model_outputs, self._guide_outputs = (self._recorded(each) for each in (model, self._guide))
        return model

    def _recorded(self, model: nn.Module) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = {}

        def recorder(name: str, layer: nn.Module) -> Callable[[nn.Module, Any, Tensor], None]:
            def record(module: nn.Module, _: Any, output: Tensor) -> None:
                if module is layer:  # not a copy of the model, such as the teacher of ps_kd
                    outputs[name] = output

            return record

        for name, layer in linear_layers(model)[0].items():
            self._handles.append(layer.register_forward_hook(recorder(name, layer)))
        return outputs

    def loss(self, model: nn.Module, batch: Batch, outputs: Tensor, loss: Tensor) -> Tensor:
        """Add the mean distance of the layers."""
        with torch.no_grad():
            outputs_of(self._guide, batch.inputs)
        found = [1 - linear_cka(output, self._guide_outputs[name]) for name, output in self._model_outputs.items()]
        return loss + self.strength * torch.stack(found).mean() if found else loss

    def finish(self, model: nn.Module, batches: object) -> nn.Module:
        """Stop recording."""
        for handle in self._handles:
            handle.remove()
        return model


def linear_cka(x: Tensor, y: Tensor) -> Tensor:
    """Return the linear centered kernel alignment (Kornblith et al. 2019) of two tensors with features last.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> round(linear_cka(x, 3 * x.flip(1) + 1).item(), 6)
        1.0
    """
    x, y = (each.flatten(0, -2) - each.flatten(0, -2).mean(dim=0) for each in (x, y))
    scale = (x.T @ x).norm() * (y.T @ y).norm()
    found: Tensor = (y.T @ x).square().sum() / scale.clamp(min=1e-12)
    return found
