"""Classifier alignment of SLCA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tempbalance.errors import check_integer
from tempbalance.study.methods.hooks import (
    Batch,
    Training,
    TrainingMethod,
    check_positive,
    generator,
    head_of,
    outputs_of,
)

__all__ = ["ClassifierAlignment", "collect"]

_EPOCHS, _BATCH, _MOMENTUM, _DECAY = 5, 32, 0.9, 5e-4
_JITTER = 1e-2  # standard deviation added to the draws


@dataclass
class ClassifierAlignment(TrainingMethod):
    """Train the head once more, after fine-tuning, on features drawn from one Gaussian per class.

    Each class has the mean and covariance of its features (the inputs of the head) and the same number of draws, which
    corrects a head that favours frequent classes. *When:* classes are uneven or were learned in sequence, and together
    with the recipe ``slow_learner``.

    SLCA has 256 draws a class, 5 epochs of SGD, logits divided by their norm times a temperature of 0.1. Deviations:
    one task, so no classes of earlier tasks; batches of 32, since with two classes batches of 256 would give 10 steps;
    a fixed rate, not a cosine. A class without an example is left out. If the head already separates the draws with
    certainty, as it does for two classes at a temperature of 0.1, nothing changes.

    Attributes:
        draws: Number of drawn features per class and epoch.
        lr: Learning rate of the head.
        temperature: Temperature of the normalised logits.
    """

    source = "SLCA (Zhang et al., ICCV 2023, arXiv 2303.05118)"
    needs = ("labels",)

    draws: int = 256
    lr: float = 0.01
    temperature: float = 0.1

    def __post_init__(self) -> None:
        check_integer("draws", self.draws, 1)
        check_positive("lr", self.lr)
        check_positive("temperature", self.temperature)

    def prepare(self, model: nn.Module, training: Training) -> nn.Module:
        """Make the generator."""
        self._generator = generator(training.seed)
        return model

    def finish(self, model: nn.Module, batches: Sequence[Batch]) -> nn.Module:
        """Align the head."""
        head = head_of(model)
        features, labels = (each.cpu() for each in collect(model, head, batches))
        known = torch.tensor(sorted({*labels.tolist()}))
        classes = [features[labels == label] for label in known]
        targets = known.repeat_interleave(self.draws)
        optimizer = torch.optim.SGD(head.parameters(), lr=self.lr, momentum=_MOMENTUM, weight_decay=_DECAY)
        for _ in range(_EPOCHS):
            drawn = torch.cat([self._draw(each) for each in classes])
            for picked in torch.randperm(len(drawn), generator=self._generator).split(_BATCH):  # type: ignore[no-untyped-call]
                logits = nn.functional.normalize(head(drawn[picked].to(head.weight)), dim=1) / self.temperature
                optimizer.zero_grad()
                nn.functional.cross_entropy(logits, targets[picked].to(logits.device)).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        return model

    def _draw(self, features: Tensor) -> Tensor:
        """Draw from the Gaussian with the mean and covariance of ``features (examples, width)``."""
        count, width = features.shape
        mean = features.mean(dim=0)
        weights = torch.randn(self.draws, count, generator=self._generator) / max(count - 1, 1) ** 0.5
        noise = _JITTER * torch.randn(self.draws, width, generator=self._generator)
        drawn: Tensor = mean + weights @ (features - mean) + noise
        return drawn


@torch.no_grad()
def collect(model: nn.Module, head: nn.Module, batches: Sequence[Batch]) -> tuple[Tensor, Tensor]:
    """Collect the inputs of the head, ``(examples, width)``, and the labels; leaves the model in evaluation mode."""
    found: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append(inputs[0].detach())

    handle = head.register_forward_pre_hook(keep)
    model.eval()
    labels = []
    for batch in batches:
        outputs_of(model, batch.inputs)
        labels.append(batch.targets)
    handle.remove()
    return torch.cat(found).float(), torch.cat(labels)
