"""A live model with any numbers of zeros, and how far it is from the dense model on calibration text."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tempbalance.compress.allocation import Allocation
from tempbalance.compress.evaluation.causal_lm import restored_modes
from tempbalance.compress.method_scores import MethodScore
from tempbalance.compress.pruning.pruner import Criterion
from tempbalance.compress.search.divergence import DenseOutputs, Divergence
from tempbalance.compress.search.masked_model import MaskedModel

__all__ = ["TextScores", "text_scores"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextScores:
    """The outputs of the dense model on the text, and the model whose weights can be masked."""

    dense: DenseOutputs
    masked: MaskedModel

    def of_batches(self, zeros: Sequence[int], numbers: Sequence[int] | None) -> list[float]:
        """Return the divergence of the model with these zeros on some batches, as parts of that on the whole text."""
        self.masked.set_zeros(zeros)
        return [each.kl / self.dense.tokens for each in self.dense.of(self.masked.model, numbers)]

    def score(self, method: str, zeros: Sequence[int]) -> MethodScore:
        """Return what the model with these zeros gives on the whole text."""
        self.masked.set_zeros(zeros)
        total = sum(self.dense.of(self.masked.model), Divergence())
        return MethodScore(method=method, kl=total.kl / total.tokens, perplexity=total.perplexity)


@contextlib.contextmanager
def text_scores(  # noqa: PLR0913  four parameters, and options by keyword
    model: nn.Module,
    allocation: Allocation,
    sequences: Sequence[Tensor],
    criterion: Criterion,
    *,
    tokens: int,
    progress: bool,
    announce: Callable[[float, int], object] = lambda *_: None,
) -> Generator[TextScores]:
    """Prepare a model and its text, without gradients and in evaluation mode; restore the model at the end."""
    # ``allocation`` has the layers that get zeros, and the zeros with which the inputs of the layers are measured.
    with restored_modes(model), torch.no_grad():
        model.eval()
        dense = DenseOutputs(model, sequences, tokens, announce)
        masked = MaskedModel(model, allocation, criterion, sequences, progress)
        try:
            yield TextScores(dense=dense, masked=masked)
        finally:
            masked.restore()
