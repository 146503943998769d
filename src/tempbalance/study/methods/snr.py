"""Spectral norm regularisation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tempbalance.study.methods.hooks import Training, TrainingMethod, check_range, generator, trained

__all__ = ["SpectralNorm"]

_FIRST = 20  # power iterations at the first step


@dataclass
class SpectralNorm(TrainingMethod):
    """Add ``strength / 2`` times the squared spectral norms of all weights to the loss.

    Spectral norms are computed by power iteration, whose vectors are kept from step to step. *When:* few or noisy data
    and a large network; TempBalance is compared with it.

    As in their algorithm 1, a convolution is the matrix ``(out, rest)`` and every step makes one iteration. Deviations:
    the first step makes 20, to start with a good direction; the gradient of the penalty, ``strength * spectral_norm * u
    v^T``, is added to the gradients, which is equivalent. (TempBalance's code for this baseline makes 5 iterations from
    a new random vector at every step.) In a decoupled optimizer such as AdamW the penalty passes through the moments,
    unlike weight decay.

    Attributes:
        strength: 0.0001 to 0.015 in TempBalance's experiments with SGD.
    """

    source = "Yoshida and Miyato 2017 (arXiv 1705.10941)"

    strength: float = 0.01

    def __post_init__(self) -> None:
        check_range("strength", self.strength)

    def prepare(self, model: nn.Module, training: Training) -> nn.Module:
        """Reset the vectors."""
        self._generator = generator(training.seed)
        self._vectors: dict[str, Tensor] = {}
        return model

    @torch.no_grad()
    def before_step(self, model: nn.Module) -> None:
        """Add the gradient of the penalty."""
        for name, parameter in trained(model).items():
            if parameter.ndim <= 1 or parameter.grad is None:
                continue
            matrix = parameter.flatten(1)
            known = self._vectors.get(name)
            u = self._random(matrix) if known is None else known
            for _ in range(_FIRST if known is None else 1):
                v = nn.functional.normalize(matrix.mH @ u, dim=0)
                u = nn.functional.normalize(matrix @ v, dim=0)
            self._vectors[name] = u
            spectral_norm = torch.linalg.vector_norm(matrix @ v)
            gradient = torch.outer(self.strength * spectral_norm * u, v.conj())
            parameter.grad.add_(gradient.view_as(parameter))

    def _random(self, matrix: Tensor) -> Tensor:
        return torch.randn(len(matrix), dtype=matrix.dtype, generator=self._generator).to(matrix.device)
