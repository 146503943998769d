"""The base class of baselines: hooks that a task calls. Each does nothing unless a baseline overrides it."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Training(NamedTuple):
    """The training that a baseline prepares for.

    Attributes:
        seed: Seed of the baseline's own generator. It does not use the global generators, so that all methods have the
            same initial weights, batches and dropout.
        epochs: Number of passes over the data.
        batches: Batches per pass.
    """

    seed: int
    epochs: int
    batches: int


class Batch(NamedTuple):
    """A batch of the training data.

    Attributes:
        inputs: Arguments of the model: one, or several by name.
        targets: Labels, or other targets of the loss.
    """

    inputs: Tensor | Mapping[str, Tensor]
    targets: Tensor


def outputs_of(model: nn.Module, inputs: Tensor | Mapping[str, Tensor]) -> Tensor:
    """Compute the outputs of a model; of a Hugging Face model its logits.

    Args:
        model: The model.
        inputs: As in a ``Batch``.

    Returns:
        The outputs; those of a classifier are logits with the classes last.
    """
    found: Any = model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
    outputs: Tensor = getattr(found, "logits", found)
    return outputs


class Baseline:
    """A training method that is not a recipe, for ``METHODS`` of a task; a name may join several.

    A task trains ``members`` models, each with its own data order, dropout and new weights, and averages their outputs.
    For each of them::

        model = own.prepare(model, training)      # before the optimizer is built on the trainable parameters
        own.start(model, batches)                 # the training data
        optimizers = own.optimizers(model, lr, own.decay * weight_decay) or [AdamW(...)]
        for each batch:
            outputs = outputs_of(model, batch.inputs)
            own.loss(model, batch, outputs, loss).backward()
            own.before_step(model)                # before optimizer.step() of each optimizer
        model = own.finish(model, batches)        # after training, before it is evaluated

    where ``own`` is ``Joined(method.custom)``. ``prepare`` resets the state, so an object may train several models.

    Attributes:
        members: Number of models to train.
        decay: Factor on the task's weight decay.
        epochs: Factor on the task's number of epochs; 0 for a baseline that is not trained.
    """

    members: int = 1
    decay: float = 1.0
    epochs: float = 1.0

    def prepare(self, model: nn.Module, training: Training) -> nn.Module:
        """Prepare a model; return it, or another in its place."""
        return model

    def start(self, model: nn.Module, batches: Iterable[Batch]) -> None:
        """Change the model before training, given the training data."""

    def optimizers(
        self, model: nn.Module, lr: float, weight_decay: float, betas: tuple[float, float] = (0.9, 0.999)
    ) -> list[torch.optim.Optimizer] | None:
        """Build the optimizers; None for those of the task."""
        return None

    def loss(self, model: nn.Module, batch: Batch, outputs: Tensor, loss: Tensor) -> Tensor:
        """Return the loss of a batch, given the loss of the task."""
        return loss

    def before_step(self, model: nn.Module) -> None:
        """Change the gradients."""

    def finish(self, model: nn.Module, batches: Iterable[Batch]) -> nn.Module:
        """Finish the trained model; return the model to evaluate."""
        return model


class Joined(Baseline):
    """Several baselines at once: the first named prepares first and finishes last."""

    def __init__(self, parts: Iterable[Any]) -> None:
        self.parts: list[Baseline] = [*parts]
        self.members = prod(part.members for part in self.parts)
        self.decay = prod(part.decay for part in self.parts)
        self.epochs = prod(part.epochs for part in self.parts)

    def prepare(self, model: nn.Module, training: Training) -> nn.Module:
        """Prepare, in their order."""
        return functools.reduce(lambda model, part: part.prepare(model, training), self.parts, model)

    def start(self, model: nn.Module, batches: Iterable[Batch]) -> None:
        """Change the model, in their order."""
        data = [*batches]
        for part in self.parts:
            part.start(model, data)

    def optimizers(
        self, model: nn.Module, lr: float, weight_decay: float, betas: tuple[float, float] = (0.9, 0.999)
    ) -> list[torch.optim.Optimizer] | None:
        """Build the optimizers of the first that has its own."""
        found = (part.optimizers(model, lr, weight_decay, betas) for part in self.parts)
        return next((each for each in found if each is not None), None)

    def loss(self, model: nn.Module, batch: Batch, outputs: Tensor, loss: Tensor) -> Tensor:
        """Return the loss after all of them."""
        return functools.reduce(lambda loss, part: part.loss(model, batch, outputs, loss), self.parts, loss)

    def before_step(self, model: nn.Module) -> None:
        """Change the gradients, in their order."""
        for part in self.parts:
            part.before_step(model)

    def finish(self, model: nn.Module, batches: Iterable[Batch]) -> nn.Module:
        """Finish, in the opposite order."""
        data = [*batches]
        return functools.reduce(lambda model, part: part.finish(model, data), reversed(self.parts), model)


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trainable parameters by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def linear_layers(model: nn.Module) -> tuple[dict[str, nn.Linear], str]:
    """Return the linear layers of a model without its head, by name, and the name of the head: the last linear layer.

    Args:
        model: The model.

    Returns:
        The other linear layers, and the name of the head.

    Raises:
        ValueError: The model has no linear layer.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if not layers:
        raise ValueError("this baseline needs a model with a linear layer as its head")
    head, _ = layers.popitem()
    return layers, head


def generator(seed: int) -> torch.Generator:
    """Make a generator."""
    return torch.Generator().manual_seed(seed)
