"""What a baseline can do to a training: hooks that a task calls. Each does nothing unless a baseline overrides it."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Training(NamedTuple):
    """What a baseline may know of the training that is to come.

    Attributes:
        seed: Of everything that the baseline draws at random. It leaves the global generators as they are, so that
            methods see the same initial weights, batches and dropout.
        epochs: Passes over the data.
        batches: Batches in one of them.
    """

    seed: int
    epochs: int
    batches: int


class Batch(NamedTuple):
    """Some of the training data.

    Attributes:
        inputs: What the model is called with: one argument, or several by name.
        targets: Labels, or what else the loss compares the outputs with.
    """

    inputs: Tensor | Mapping[str, Tensor]
    targets: Tensor


def outputs_of(model: nn.Module, inputs: Tensor | Mapping[str, Tensor]) -> Tensor:
    """The outputs of a model; of a Hugging Face model its logits.

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
    """A way of training that is no recipe, for ``METHODS`` of a task; a name may join several.

    A task trains ``members`` models, each with data order, dropout and new weights of its own, and averages their
    outputs. For each of them::

        model = own.prepare(model, training)      # before the optimizer is built, of what then requires a gradient
        optimizer = AdamW(..., weight_decay=own.decay * weight_decay)
        for each batch:
            outputs = outputs_of(model, batch.inputs)
            own.loss(model, batch, outputs, loss).backward()
            own.before_step(model)                # before optimizer.step()
        model = own.finish(model, batches)        # after training, before it is evaluated

    where ``own`` is ``Joined(method.own)``. An object may train several models, one after the other: ``prepare`` begins
    anew.

    Attributes:
        members: How many models are trained.
        decay: Factor on the task's weight decay.
    """

    members: int = 1
    decay: float = 1.0

    def prepare(self, model: nn.Module, training: Training) -> nn.Module:
        """Begin with a model; what is returned takes its place."""
        return model

    def loss(self, model: nn.Module, batch: Batch, outputs: Tensor, loss: Tensor) -> Tensor:
        """The loss of a batch, given the task's own."""
        return loss

    def before_step(self, model: nn.Module) -> None:
        """Change the gradients."""

    def finish(self, model: nn.Module, batches: Iterable[Batch]) -> nn.Module:
        """End with the trained model and its training data; what is returned gets evaluated."""
        return model


class Joined(Baseline):
    """Several baselines at once: those named first stand outside, so that they begin first and finish last."""

    def __init__(self, parts: Iterable[Any]) -> None:
        self.parts: list[Baseline] = [*parts]
        self.members = prod(part.members for part in self.parts)
        self.decay = prod(part.decay for part in self.parts)

    def prepare(self, model: nn.Module, training: Training) -> nn.Module:
        """Begin, in their order."""
        return functools.reduce(lambda model, part: part.prepare(model, training), self.parts, model)

    def loss(self, model: nn.Module, batch: Batch, outputs: Tensor, loss: Tensor) -> Tensor:
        """The loss as all have it."""
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
    """The parameters that are trained, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def linear_layers(model: nn.Module) -> tuple[dict[str, nn.Linear], str]:
    """The linear layers of a model but for its head, by name, and the name of its head: the last one that it defines.

    Args:
        model: The model.

    Returns:
        The others, and the name of the head.

    Raises:
        ValueError: The model has no linear layer.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if not layers:
        raise ValueError("this baseline needs a model with a linear layer as its head")
    head, _ = layers.popitem()
    return layers, head


def generator(seed: int) -> torch.Generator:
    """A generator of its own."""
    return torch.Generator().manual_seed(seed)
