"""A frozen probe, fine-tuning that starts from it, and a constant: what fine-tuning must be better than."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tempbalance.errors import ArgumentError
from tempbalance.study.methods.classifier_alignment import collect
from tempbalance.study.methods.hooks import Batch, TrainingMethod, check_positive, head_of

__all__ = ["LPFT", "Constant", "Probe", "fit_head"]

_ITERATIONS = 500


@dataclass
class LPFT(TrainingMethod):
    """Linear probing, then fine-tuning: the head starts from a logistic regression on the frozen features.

    A random head sends random gradients into pre-trained weights. *When:* always, if the features are good without
    fine-tuning.

    Deviation: their probe is trained by SGD and stopped early, ours is the minimum of the regularised loss.

    Attributes:
        c: Factor on the loss of the probe against half the sum of squares of the head and its bias, without which
            it is that of scikit-learn.
    """

    source = "Kumar et al., ICLR 2022 (arXiv 2202.10054)"
    needs = ("labels", "pretrained")

    c: float = 1.0

    def __post_init__(self) -> None:
        check_positive("c", self.c)

    def start(self, model: nn.Module, batches: Sequence[Batch]) -> None:
        """Fit the head."""
        head = head_of(model)
        features, labels = collect(model, head, batches)
        fit_head(head, features, labels, self.c)


@dataclass
class Probe(LPFT):
    """Logistic regression on the features of the frozen model, without fine-tuning. It has no learning rate.

    Attributes:
        c: As of ``LPFT``.
    """

    source = "a reference"

    epochs: float = 0.0


@dataclass
class Constant(TrainingMethod):
    """The most frequent class of the training data, for every input. It has no learning rate."""

    source = "a reference"
    needs = ("labels",)

    epochs: float = 0.0

    @torch.no_grad()
    def start(self, model: nn.Module, batches: Sequence[Batch]) -> None:
        """Set the head's bias to the logarithm of the frequencies, each class counted once more, and weights to 0."""
        head = head_of(model)
        if head.bias is None:
            raise ArgumentError("constant needs a model whose head has a bias")
        labels = torch.cat([batch.targets for batch in batches])
        for parameter in head.parameters():
            parameter.zero_()
        head.bias.copy_(torch.bincount(labels, minlength=head.out_features).add(1).log())


def fit_head(head: nn.Module, features: Tensor, labels: Tensor, c: float) -> None:
    """Set a linear head to the minimum of ``c`` times the summed cross-entropy plus half its sum of squares."""
    parameters = [parameter for parameter in head.parameters()]
    found = [torch.zeros(parameter.shape, dtype=torch.float64, requires_grad=True) for parameter in parameters]
    inputs, labels = features.cpu().double(), labels.cpu()  # Apple GPUs have no float64
    optimizer = torch.optim.LBFGS(found, max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(nn.functional.linear(inputs, *found), labels, reduction="sum")
        total = c * loss + sum(each.square().sum() for each in found) / 2
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimizer.step(objective)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for parameter, value in zip(parameters, found, strict=True):
            parameter.copy_(value)
