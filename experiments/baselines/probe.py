"""A frozen probe, fine-tuning that starts from it, and a constant: what fine-tuning must be better than."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from baselines.base import Baseline, Batch, linear_layers
from baselines.classifier_alignment import collect

ITERATIONS = 500


@dataclass
class LPFT(Baseline):
    """Linear probing, then fine-tuning: the head starts from a logistic regression on the frozen features.

    A random head sends random gradients into pre-trained weights. *When:* always, if the features are good without
    fine-tuning.

    Kumar et al. 2022 (arXiv 2202.10054). Deviation: their probe is trained by SGD and stopped early, ours is the
    minimum of the regularised loss.

    Attributes:
        c: Factor on the loss of the probe against half the sum of squares of the head, as in scikit-learn.
    """

    c: float = 1.0

    def __post_init__(self) -> None:
        if not self.c > 0:
            raise ValueError(f"c must be positive, got {self.c}")

    def start(self, model: nn.Module, batches: Iterable[Batch]) -> None:
        """Fit the head."""
        head = model.get_submodule(linear_layers(model)[1])
        features, labels = collect(model, head, batches)
        fit_head(head, features, labels, self.c)


@dataclass
class Probe(LPFT):
    """The same without fine-tuning: logistic regression on the features of the frozen model. It has no learning rate.

    Attributes:
        c: As above.
    """

    epochs: float = 0.0


@dataclass
class Constant(Baseline):
    """The most frequent class of the training data, for every input. It has no learning rate."""

    epochs: float = 0.0

    @torch.no_grad()
    def start(self, model: nn.Module, batches: Iterable[Batch]) -> None:
        """Set the head's bias to the logarithm of the frequencies, each class counted once more, and weights to 0."""
        head = model.get_submodule(linear_layers(model)[1])
        labels = torch.cat([batch.targets for batch in batches])
        for parameter in head.parameters():
            parameter.zero_()
        head.bias.copy_(torch.bincount(labels, minlength=len(head.bias)).add(1).log())  # type: ignore[union-attr]


def fit_head(head: nn.Module, features: Tensor, labels: Tensor, c: float) -> None:
    """Set a linear head to the minimum of ``c`` times the summed cross-entropy plus half its sum of squares."""
    parameters = [parameter for parameter in head.parameters()]
    found = [torch.zeros_like(parameter, dtype=torch.float64).requires_grad_() for parameter in parameters]
    inputs = features.double()
    optimizer = torch.optim.LBFGS(found, max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(nn.functional.linear(inputs, *found), labels, reduction="sum")
        total = c * loss + sum(each.square().sum() for each in found) / 2
        total.backward()
        return total

    optimizer.step(objective)
    with torch.no_grad():
        for parameter, value in zip(parameters, found, strict=True):
            parameter.copy_(value)
