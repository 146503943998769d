"""Data diet: the examples that are hard early in training."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tempbalance.errors import ArgumentError, check_integer
from tempbalance.study.methods.classifier_alignment import collect
from tempbalance.study.methods.hooks import (
    Batch,
    Training,
    TrainingMethod,
    check_positive,
    head_of,
    outputs_of,
    seeded,
    trained,
)

__all__ = ["DataDiet"]


@dataclass
class DataDiet(TrainingMethod):
    """Train on the share of the examples with the largest scores early in training: the hard ones.

    ``el2n`` is the norm of ``softmax(logits) - one_hot(label)``, ``grand`` the norm of the gradient of an example's
    loss, both averaged over ``runs`` copies of the model that are trained for ``passes`` epochs with new heads. *When:*
    many redundant examples; with few or noisy data the hardest ones may be the wrong ones.

    Deviations: the gradient is that of the head's parameters; training on the chosen examples has as many epochs, and
    so fewer steps; the copies are trained by AdamW.

    Attributes:
        keep: Share of the examples to train on.
        score: ``el2n`` or ``grand``.
        passes: Epochs before the scores are computed; 0 for the initial model.
        runs: Number of copies; 10 in the paper.
        rate: Learning rate of the copies.
    """

    source = "Paul et al., NeurIPS 2021, Deep learning on a data diet (arXiv 2107.07075)"
    needs = ("labels",)

    keep: float = 0.5
    score: Literal["el2n", "grand"] = "el2n"
    passes: int = 2
    runs: int = 3
    rate: float = 1e-3

    def __post_init__(self) -> None:
        check_positive("keep", self.keep)
        check_positive("rate", self.rate)
        check_integer("passes", self.passes, 0)
        check_integer("runs", self.runs, 1)
        if self.keep > 1:
            raise ArgumentError(f"keep must be at most 1, got {self.keep}")
        if self.score not in ("el2n", "grand"):
            raise ArgumentError(f"score must be el2n or grand, got {self.score}")

    def choose(self, model: nn.Module, batches: Sequence[Batch], training: Training) -> Tensor:
        """Train copies, score the examples and choose the largest scores."""
        scores = []
        for run in range(self.runs):
            with seeded(training.seed + run):
                scores.append(self._scores(copy.deepcopy(model), batches))
        mean = torch.stack(scores).mean(dim=0)
        return mean.topk(max(1, round(self.keep * len(mean)))).indices.sort().values.cpu()

    def _scores(self, model: nn.Module, batches: Sequence[Batch]) -> Tensor:
        """Train a copy of the model, and return a score per example."""
        head = head_of(model)
        head.reset_parameters()
        optimizer = torch.optim.AdamW(trained(model).values(), lr=self.rate)
        model.train()
        for _ in range(self.passes):
            for place in torch.randperm(len(batches)).tolist():
                optimizer.zero_grad()
                outputs = outputs_of(model, batches[place].inputs)
                nn.functional.cross_entropy(outputs, batches[place].targets).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        features, labels = collect(model, head, batches)
        with torch.no_grad():
            errors = head(features).softmax(dim=1) - nn.functional.one_hot(labels, head.out_features)
            scores: Tensor = errors.norm(dim=1)
            if self.score == "grand":  # of the outer product with the features and, for the bias, 1
                scores = scores * (features.square().sum(dim=1) + (head.bias is not None)).sqrt()
        return scores
