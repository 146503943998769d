"""Training with a projection head that is dropped afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from tempbalance.study.methods.classifier_alignment import collect
from tempbalance.study.methods.hooks import (
    Batch,
    Training,
    TrainingMethod,
    check_positive,
    head_of,
    linear_layers,
    seeded,
)
from tempbalance.study.methods.probe import fit_head

__all__ = ["ProjectionHead"]


@dataclass
class ProjectionHead(TrainingMethod):
    """Train with a small network between the features and the head, then drop it and fit the head to the features.

    The loss makes the outputs of the projection forget what the training classes do not need; the features before it
    keep more. *When:* the test data differ from the training data, or classes are coarse.

    The projection is a hidden layer as wide as the features with ReLU and a linear layer. Deviation: the final head is
    a regularised logistic regression, not one trained by SGD.

    Attributes:
        c: Factor on the loss of the final head against half its sum of squares, as in scikit-learn.
    """

    source = "Xue et al., ICLR 2024, Investigating the benefits of projection head (arXiv 2403.11391)"
    needs = ("labels",)

    c: float = 1.0

    def __post_init__(self) -> None:
        check_positive("c", self.c)

    def prepare(self, model: nn.Module, training: Training) -> nn.Module:
        """Put the projection before the head."""
        _, self._name = linear_layers(model)
        self._head = head_of(model)
        width = self._head.in_features
        with seeded(training.seed):
            projection = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        self._replace(model, nn.Sequential(projection.to(self._head.weight), self._head))
        return model

    def finish(self, model: nn.Module, batches: Sequence[Batch]) -> nn.Module:
        """Drop the projection and fit the head."""
        self._replace(model, self._head)
        features, labels = collect(model, self._head, batches)
        fit_head(self._head, features, labels, self.c)
        return model

    def _replace(self, model: nn.Module, module: nn.Module) -> None:
        parent, _, name = self._name.rpartition(".")
        setattr(model.get_submodule(parent), name, module)
