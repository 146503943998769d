"""Spectrum: train the layers with the highest signal-to-noise ratio."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from tempbalance.analysis.analyzer import analyze
from tempbalance.compress.trainable import allocate_trainable, set_trainable, signal_to_noise
from tempbalance.errors import AllocationError, ArgumentError
from tempbalance.study.methods.hooks import Training, TrainingMethod, check_range, head_of, trained

__all__ = ["Spectrum"]


@dataclass
class Spectrum(TrainingMethod):
    """Train the layers of each type with the highest signal-to-noise ratio, and the head; all others are frozen.

    A layer with much signal is thought to use its weights well. *When:* fine-tuning of a large transformer in little
    memory.

    The layers are those of ``tempbalance.compress.allocate_trainable``. Deviation: embeddings are frozen; the paper
    trains them. What the task has frozen stays frozen, except the head.

    Attributes:
        share: Fraction of the layers of each type that is trained; 0.25 and 0.5 in the paper.
        by: ``"snr"``, or ``"alpha"`` for the layers with the largest alpha, which are the least well trained.
    """

    source = "Spectrum (Hartford et al. 2024, arXiv 2406.06623)"
    needs = ("pretrained",)

    share: float = 0.25
    by: Literal["snr", "alpha"] = "snr"

    def __post_init__(self) -> None:
        check_range("share", self.share, 1)
        if self.by not in {"snr", "alpha"}:
            raise ArgumentError(f"by must be 'snr' or 'alpha', got {self.by!r}")

    def prepare(self, model: nn.Module, training: Training) -> nn.Module:
        """Freeze the other layers."""
        before = {*trained(model)}
        scores = signal_to_noise(model, progress=False) if self.by == "snr" else None
        try:
            chosen = allocate_trainable(analyze(model, progress=False), self.share, method=self.by, scores=scores)
        except AllocationError as error:
            raise ArgumentError(f"spectrum: {error}") from error
        set_trainable(model, chosen)
        for name, parameter in trained(model).items():
            parameter.requires_grad_(name in before)
        head_of(model).requires_grad_(True)
        return model
