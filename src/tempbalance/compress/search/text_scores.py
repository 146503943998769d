"""A live model whose weights vary, and how far it is from the dense model on calibration text."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tempbalance.compress.evaluation.causal_lm import restored_modes
from tempbalance.compress.layer_allocation import MethodScore
from tempbalance.compress.search.divergence import DenseOutputs, Divergence
from tempbalance.compress.search.varied_model import VariedModel

__all__ = ["TextScores", "text_scores"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextScores:
    """The outputs of the dense model on the text, and the model whose weights vary."""

    dense: DenseOutputs
    varied: VariedModel

    def of_batches(self, levels: Sequence[int], numbers: Sequence[int] | None) -> list[float]:
        """Return the divergence of the model with these levels on some batches, as parts of that on the whole text."""
        self.varied.set_levels(levels)
        return [each.kl / self.dense.tokens for each in self.dense.of(self.varied.model, numbers)]

    def score(self, method: str, levels: Sequence[int]) -> MethodScore:
        """Return what the model with these levels gives on the whole text."""
        self.varied.set_levels(levels)
        total = sum(self.dense.of(self.varied.model), Divergence())
        # not below zero by rounding, where the model is the dense one
        return MethodScore(method=method, kl=max(0.0, total.kl / total.tokens), perplexity=total.perplexity)

    def identity(self, sequences: Sequence[Tensor]) -> dict[str, str | int]:
        """Return what identifies a search on these sequences: the number of tokens, and hashes of text and weights."""
        text = hashlib.sha256()
        for sequence in sequences:
            text.update(sequence.numpy().tobytes() + b";")
        return {"tokens": self.dense.tokens, "text": text.hexdigest(), "model": self.varied.digest}


@contextlib.contextmanager
def text_scores(
    model: nn.Module,
    sequences: Sequence[Tensor],
    vary: Callable[[], VariedModel],
    *,
    tokens: int,
    announce: Callable[[float, int, int], object] = lambda *_: None,
) -> Generator[TextScores]:
    """Prepare a model and its text, without gradients and in evaluation mode; restore the model at the end."""
    # ``vary`` is called when the dense outputs are known: it may run the model.
    with restored_modes(model), torch.no_grad():
        model.eval()
        dense = DenseOutputs(model, sequences, tokens, announce)
        varied = vary()
        try:
            yield TextScores(dense=dense, varied=varied)
        finally:
            varied.close()
