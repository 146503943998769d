"""Perplexity of a causal language model, with its standard error."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tempbalance._progress import progress_bar
from tempbalance.compress.evaluation.tokens import batches
from tempbalance.errors import TokensError

__all__ = ["Perplexity", "check_vocabulary", "default_length", "perplexity", "token_losses"]

_DEFAULT_LENGTH = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Perplexity:
    """How surprised a model is by a token, on average.

    Attributes:
        value: ``exp`` of the mean negative log-likelihood of a token; infinite where it overflows.
        stderr: Standard error of ``value`` over windows of text (delta method); NaN with one window.
        tokens: How many tokens were predicted.
        windows: How many windows of text they came from.
    """

    value: float
    stderr: float
    tokens: int
    windows: int

    def __float__(self) -> float:
        """The value."""
        return self.value


def perplexity(
    model: nn.Module,
    tokens: Tensor | Sequence[Tensor],
    stride: int | None = None,
    *,
    length: int | None = None,
    progress: bool = True,
) -> Perplexity:
    """Perplexity of a Hugging Face causal language model on given tokens.

    Each document is cut into windows of ``length`` tokens, ``stride`` apart. The first token of a document is given,
    every other one is predicted once, in the first window that holds it; without a stride the windows do not overlap
    and the first token of each is given, which is how GPTQ, Wanda and AlphaPruning report WikiText-2.

    Args:
        model: Takes ``input_ids`` of shape ``(batch, length)`` and returns ``logits``. Its mode is put back.
        tokens: Token ids: one document of shape ``(length,)``, or several.
        stride: Tokens from one window to the next, at most ``length``; a small one gives each token more context.
        length: Tokens in a window; by default what the model was made for, at most 2,048.
        progress: Whether to show a progress bar (only ever on a terminal).

    Returns:
        The perplexity. Likelihoods are computed in float32 and added in float64.

    Raises:
        TokensError: No document has two tokens, an id is outside of the vocabulary, or a length is impossible.

    Example:
        >>> class Uniform(nn.Module):
        ...     def forward(self, input_ids, **_):
        ...         return {"logits": torch.zeros(*input_ids.shape, 50)}
        >>> round(float(perplexity(Uniform(), torch.arange(40))), 3)
        50.0
    """
    documents = [tokens] if isinstance(tokens, Tensor) else list(tokens)
    if length is None:
        length = default_length(model)
    stride = length if stride is None else stride
    if length < 2 or not 1 <= stride <= length:  # noqa: PLR2004
        raise TokensError(f"windows need two tokens or more and a stride from 1 to their length: {length}, {stride}")
    windows = [window for document in documents for window in _windows(document, length, stride)]
    if not windows:
        raise TokensError("no document has two tokens: there is nothing to predict")
    check_vocabulary(model, [window for window, _ in windows])
    sums, counts = _measure(model, windows, progress)
    mean = float(sums.sum() / counts.sum())
    value = float(torch.tensor(mean, dtype=torch.float64).exp())  # math.exp would raise where it overflows
    spread = float((sums - mean * counts).square().sum().sqrt() / counts.sum())
    many = len(windows)
    return Perplexity(
        value=value,
        stderr=value * spread * math.sqrt(many / (many - 1)) if many > 1 else math.nan,
        tokens=int(counts.sum()),
        windows=many,
    )


def default_length(model: nn.Module) -> int:
    """Tokens that a language model was made for, at most 2,048."""
    config: Any = getattr(model, "config", None)
    return min(_DEFAULT_LENGTH, getattr(config, "max_position_embeddings", None) or _DEFAULT_LENGTH)


def check_vocabulary(model: nn.Module, sequences: Sequence[Tensor]) -> None:
    """Make sure that a language model knows all tokens.

    Args:
        model: A Hugging Face causal language model.
        sequences: Token ids, each of shape ``(length,)``, with one token at least.

    Raises:
        TokensError: An id is outside of its vocabulary.
    """
    vocabulary = getattr(getattr(model, "config", None), "vocab_size", math.inf)
    lowest, highest = min(int(each.min()) for each in sequences), max(int(each.max()) for each in sequences)
    if highest >= vocabulary or lowest < 0:
        raise TokensError(f"token {highest} is not in the vocabulary of {vocabulary}: another model's tokens?")


def token_losses(model: nn.Module, batch: Tensor) -> Tensor:
    """Negative log-likelihood of every token but the first, in float32.

    Args:
        model: Takes ``input_ids`` of shape ``(batch, length)`` and returns ``logits``.
        batch: Token ids of shape ``(batch, length)``, on the device of the model.

    Returns:
        A tensor of shape ``(batch, length - 1)``.
    """
    logits = model(input_ids=batch, use_cache=False)["logits"]
    losses = F.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), batch[:, 1:].flatten().to(logits.device), reduction="none"
    )
    return losses.view(len(batch), -1)


def _windows(document: Tensor, length: int, stride: int) -> Iterator[tuple[Tensor, int]]:
    """Windows of a document, each with how many of its last tokens are to be predicted."""
    done = 0
    for start in range(0, len(document), stride):
        window = document[start : start + length]
        count = min(start + len(window) - done, len(window) - 1)
        if count > 0:
            yield window, count
        done = max(done, start + len(window))


def _measure(model: nn.Module, windows: Sequence[tuple[Tensor, int]], progress: bool) -> tuple[Tensor, Tensor]:
    """Sum of negative log-likelihoods, and number of tokens, of each window."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    training = model.training
    counts = torch.tensor([count for _, count in windows], dtype=torch.float64)
    sums: list[Tensor] = []
    model.eval()
    try:
        with torch.inference_mode(), progress_bar("perplexity", len(windows), progress) as advance:
            for batch in batches([window.long() for window, _ in windows]):
                for row in token_losses(model, batch.to(device)).double().cpu():
                    sums.append(row[len(row) - int(counts[len(sums)]) :].sum())
                advance(len(batch))
    finally:
        model.train(training)
    return torch.stack(sums), counts
