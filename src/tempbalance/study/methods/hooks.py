"""The base class of training methods: hooks that a task calls. Each does nothing unless a method overrides it."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from tempbalance.errors import ArgumentError, StudyError, check_numbers

__all__ = [
    "FACTS",
    "HOOKS",
    "Batch",
    "Joined",
    "Training",
    "TrainingMethod",
    "check_positive",
    "check_range",
    "draw_again",
    "freeze_all_but_head",
    "generator",
    "head_of",
    "linear_layers",
    "outputs_of",
    "seeded",
    "trained",
]

_FACTORS = ("members", "decay", "epochs")
_CALLS = ("choose", "prepare", "start", "optimizers", "loss", "backward", "before_step", "after_step", "finish")
HOOKS = (*_FACTORS, *_CALLS)
FACTS = {
    "labels": "class labels as targets",
    "pretrained": "a pre-trained model to start from",
    "tensors": "inputs that are one tensor, examples first",
}


class Training(NamedTuple):
    """The training that a method prepares for.

    Attributes:
        seed: Seed of the method's own generator. It does not use the global generators, so that all methods have the
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

    Example:
        >>> outputs_of(nn.Linear(4, 2), torch.ones(3, 4)).shape
        torch.Size([3, 2])
    """
    found: Any = model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
    outputs: Tensor = getattr(found, "logits", found)
    return outputs


class TrainingMethod:
    """A training method that is not a recipe. A subclass overrides some hooks, and a task calls all of them.

    A task trains ``members`` models, each with its own data order, dropout and new weights, and averages their outputs.
    For each of them it calls the hooks of :class:`Method` in this order::

        kept = method.choose(model, batches, training)  # indices of the examples to train on; None for all
        model = method.prepare(model, training)  # before the optimizer is built on the trainable parameters
        method.start(model, batches)  # the training data
        optimizers = method.optimizers(model, lr, method.decay * weight_decay) or [AdamW(...)]
        method.balance(optimizers[0], model, steps_per_epoch=training.batches)
        model.train()  # a hook may have evaluated it
        for each batch of round(method.epochs * epochs) passes:

            def closure():  # the loss of the batch, and its gradients
                outputs = outputs_of(model, batch.inputs)
                loss = cross_entropy(outputs, batch.targets)
                method.loss(model, batch, outputs, loss).backward()
                return loss

            method.backward(model, closure)  # calls closure, some methods twice
            method.before_step(model)
            ...  # optimizer.step() and zero_grad() of each optimizer
            method.after_step(model, optimizers)
        model = method.finish(model, batches)  # after training, before it is evaluated

    A task names the hooks that it calls in ``SUPPORTS``, with ``"labels"`` if it is a classification with logits as
    outputs, ``"pretrained"`` if its model is pre-trained, and ``"tensors"`` if the inputs of a batch are one tensor of
    numbers, examples first. A method that needs more is refused before anything is trained.

    Attributes:
        members: Number of models to train.
        decay: Factor on the task's weight decay.
        epochs: Factor on the task's number of epochs; 0 for a method that is not trained.
        source: The paper that it follows.
        needs: What it needs besides hooks: ``"labels"``, ``"pretrained"``, ``"tensors"``.
        leads: Whether it replaces the loss or the model, and must be named before others that it is joined with.

    Example:
        >>> class Clip(TrainingMethod):
        ...     def before_step(self, model):
        ...         nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        >>> sorted(Clip().requirements())
        ['before_step']
    """

    members: int = 1
    decay: float = 1.0
    epochs: float = 1.0
    source: ClassVar[str] = ""
    needs: ClassVar[tuple[str, ...]] = ()
    leads: ClassVar[bool] = False

    def requirements(self) -> set[str]:
        """Return what a task must support: the hooks that are overridden, and ``needs``."""
        factors = {name for name in _FACTORS if getattr(self, name) != 1}
        calls = {name for name in _CALLS if getattr(type(self), name) is not getattr(TrainingMethod, name)}
        return {*factors, *calls, *self.needs}

    def choose(self, model: nn.Module, batches: Sequence[Batch], training: Training) -> Tensor | None:
        """Choose the examples to train on, before everything else; leave the model as it is.

        Args:
            model: The model before training.
            batches: All training examples in a fixed order, in batches of the size of training.
            training: The training on all of them.

        Returns:
            Indices of the chosen examples, increasing; None for all.
        """
        return None

    def prepare(self, model: nn.Module, training: Training) -> nn.Module:
        """Prepare a model; return it, or another in its place. It resets the state: several models may be trained."""
        return model

    def start(self, model: nn.Module, batches: Sequence[Batch]) -> None:
        """Change the model before training, given the training data."""

    def optimizers(
        self, model: nn.Module, lr: float, weight_decay: float, betas: tuple[float, float] = (0.9, 0.999)
    ) -> list[torch.optim.Optimizer] | None:
        """Build the optimizers; None for those of the task."""
        return None

    def loss(self, model: nn.Module, batch: Batch, outputs: Tensor, loss: Tensor) -> Tensor:
        """Return the loss of a batch, given the loss of the task."""
        return loss

    def backward(self, model: nn.Module, closure: Callable[[], Tensor]) -> Tensor:
        """Compute the gradients of a step by ``closure``; it adds to them, so a second call needs ``zero_grad``."""
        return closure()

    def before_step(self, model: nn.Module) -> None:
        """Change the gradients."""

    def after_step(self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Change the weights, or the optimizers, after a step."""

    def finish(self, model: nn.Module, batches: Sequence[Batch]) -> nn.Module:
        """Finish the trained model; return the model to evaluate."""
        return model


class Joined:
    """The hooks of several methods at once: the first named prepares first and finishes last.

    Attributes:
        called_hooks: The hooks that have been called or read.
    """

    def __init__(self, name: str, parts: Iterable[TrainingMethod]) -> None:
        """Join methods; a StudyError, with ``name``, if two have optimizers of their own, or both choose the data."""
        self._parts = [*parts]
        self.called_hooks: set[str] = set()
        for hook in ("choose", "optimizers"):
            if sum(hook in part.requirements() for part in self._parts) > 1:
                raise StudyError(f"{name}: only one of the joined methods may have the hook {hook}")
        if any(part.leads for part in self._parts[1:]):
            raise StudyError(f"{name}: boosting and levi replace the loss, so one of them can be joined, as the first")

    def requirements(self) -> set[str]:
        """Return what a task must support."""
        return set().union(*(part.requirements() for part in self._parts))

    def _called(self, hook: str) -> list[TrainingMethod]:
        self.called_hooks.add(hook)
        return self._parts

    @property
    def members(self) -> int:
        """Number of models to train."""
        return math.prod(part.members for part in self._called("members"))

    @property
    def decay(self) -> float:
        """Factor on the task's weight decay."""
        return math.prod(part.decay for part in self._called("decay"))

    @property
    def epochs(self) -> float:
        """Factor on the task's number of epochs."""
        return math.prod(part.epochs for part in self._called("epochs"))

    def choose(self, model: nn.Module, batches: Sequence[Batch], training: Training) -> Tensor | None:
        """Return the indices of the examples to train on; None for all."""
        found = (part.choose(model, batches, training) for part in self._called("choose"))
        return next((each for each in found if each is not None), None)

    def prepare(self, model: nn.Module, training: Training) -> nn.Module:
        """Prepare, in their order."""
        return functools.reduce(lambda model, part: part.prepare(model, training), self._called("prepare"), model)

    def start(self, model: nn.Module, batches: Sequence[Batch]) -> None:
        """Change the model, in their order."""
        for part in self._called("start"):
            part.start(model, batches)

    def optimizers(
        self, model: nn.Module, lr: float, weight_decay: float, betas: tuple[float, float] = (0.9, 0.999)
    ) -> list[torch.optim.Optimizer] | None:
        """Build the optimizers of the part that has its own; None for those of the task."""
        found = (part.optimizers(model, lr, weight_decay, betas) for part in self._called("optimizers"))
        return next((each for each in found if each is not None), None)

    def loss(self, model: nn.Module, batch: Batch, outputs: Tensor, loss: Tensor) -> Tensor:
        """Return the loss after all of them."""
        return functools.reduce(lambda loss, part: part.loss(model, batch, outputs, loss), self._called("loss"), loss)

    def backward(self, model: nn.Module, closure: Callable[[], Tensor]) -> Tensor:
        """Compute the gradients; the first named calls the second in place of ``closure``, and so on."""
        for part in reversed(self._called("backward")):
            closure = functools.partial(part.backward, model, closure)
        return closure()

    def before_step(self, model: nn.Module) -> None:
        """Change the gradients, in their order."""
        for part in self._called("before_step"):
            part.before_step(model)

    def after_step(self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Change the weights, in their order."""
        for part in self._called("after_step"):
            part.after_step(model, optimizers)

    def finish(self, model: nn.Module, batches: Sequence[Batch]) -> nn.Module:
        """Finish, in the opposite order."""
        return functools.reduce(
            lambda model, part: part.finish(model, batches), reversed(self._called("finish")), model
        )


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trainable parameters by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def linear_layers(model: nn.Module) -> tuple[dict[str, nn.Linear], str]:
    """Return the linear layers of a model, by name, without the last, which is the head, and the name of the head."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if not layers:
        raise ArgumentError("this method needs a model with a linear layer as its head")
    head, _ = layers.popitem()
    return layers, head


def freeze_all_but_head(model: nn.Module, method: str) -> dict[str, nn.Linear]:
    """Freeze a model without its head, and return its other linear layers; raise an ArgumentError if it has none."""
    layers, head = linear_layers(model)
    if not layers:
        raise ArgumentError(f"{method} needs a model with a linear layer besides the head")
    model.requires_grad_(False)
    model.get_submodule(head).requires_grad_(True)
    return layers


def head_of(model: nn.Module) -> nn.Linear:
    """Return the head of a model: its last linear layer."""
    head = model.get_submodule(linear_layers(model)[1])
    assert isinstance(head, nn.Linear)
    return head


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of torch for what cannot take another, and restore them afterwards."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


@torch.no_grad()
def draw_again(module: nn.Module, deviation: float | None = None) -> None:
    """Give a module new random weights.

    Layers are reset as they are built, or with a deviation the linear ones to a normal distribution, and biases 0. So
    is a matrix that no layer resets, such as that of ``Conv1D``, by default with the deviation of its entries.
    """
    before = {parameter: parameter.clone() for parameter in module.parameters() if parameter.ndim > 1}
    for each in module.modules():
        reset = getattr(each, "reset_parameters", None) or getattr(each, "_reset_parameters", None)
        if deviation is not None and isinstance(each, nn.Linear):
            each.weight.normal_(0.0, deviation)
            if each.bias is not None:
                each.bias.zero_()
        elif callable(reset):
            reset()
    for parameter, old in before.items():
        if torch.equal(parameter, old):
            parameter.normal_(0.0, float(old.float().std()) if deviation is None else deviation)


def generator(seed: int) -> torch.Generator:
    """Make a generator."""
    return torch.Generator().manual_seed(seed)


def check_range(name: str, value: float, most: float = math.inf) -> None:
    """Raise an ArgumentError unless a parameter is a number from 0 to ``most``."""
    check_numbers(**{name: value})
    if not 0 <= value <= most:
        allowed = "0 or more" if most == math.inf else f"in [0, {most}]"
        raise ArgumentError(f"{name} must be {allowed}, got {value}")


def check_positive(name: str, value: float) -> None:
    """Raise an ArgumentError unless a parameter is a positive number."""
    check_numbers(**{name: value})
    if not 0 < value < math.inf:
        raise ArgumentError(f"{name} must be positive and finite, got {value}")
