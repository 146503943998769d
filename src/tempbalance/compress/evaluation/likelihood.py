"""Perplexity of a causal language model, with its standard error."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tempbalance._progress import progress_bar
from tempbalance.compress.allocation import Allocation
from tempbalance.compress.evaluation.causal_lm import load_causal_lm, restored_modes, transformers_bars
from tempbalance.compress.evaluation.fake_quantization import quantized
from tempbalance.compress.evaluation.tokens import Documents, batch_size, batches, context_length, read_documents
from tempbalance.errors import TokensError, check_integer

__all__ = [
    "Perplexity",
    "check_causal",
    "check_vocabulary",
    "default_length",
    "next_token_logits",
    "perplexity",
    "token_losses",
]

_PROBE = 16  # tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Perplexity:
    """Perplexity with its standard error.

    Attributes:
        value: ``exp`` of the mean negative log-likelihood of a token; infinite if that overflows.
        stderr: Standard error of ``value`` over windows of text (delta method); NaN for one window.
        tokens: Number of predicted tokens.
        windows: Number of windows of text.
    """

    value: float
    stderr: float
    tokens: int
    windows: int

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        stderr = f"{self.stderr:.2g}" if math.isfinite(self.stderr) else "unknown"
        return f"{self.value:.4g} (standard error {stderr})"


def perplexity(  # noqa: PLR0913  most are keyword options
    model: nn.Module | str | os.PathLike[str],
    tokens: Documents,
    stride: int | None = None,
    *,
    length: int | None = None,
    bits: Allocation | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Perplexity:
    """Compute the perplexity of a Hugging Face causal language model.

    Each document is cut into windows of ``length`` tokens, ``stride`` apart. Every token but the first of a document is
    predicted once, in the first window that contains it. By default windows do not overlap, and the first token of each
    window is not predicted: GPTQ, Wanda and AlphaPruning report WikiText-2 in this way.

    Args:
        model: Takes ``input_ids`` of shape ``(batch, length)`` and returns ``logits``; or the folder or hub
            id of one. Its training mode is restored.
        tokens: Token ids: one document of shape ``(length,)``, or several, as tensors, lists or the output of a
            tokenizer; or a file of tokens or, for a folder or hub id, of text (see ``load_tokens``).
        stride: Tokens from one window to the next, at most ``length``; a smaller stride gives each token more context.
        length: Tokens in a window; by default the model's context length, at most 2,048.
        bits: An allocation of bits: the weights are rounded to its formats for the measurement (see ``quantized``).
        device: Device of a model that is loaded from a folder; by default the CPU.
        progress: Whether to show a progress bar (on a terminal only).

    Returns:
        The perplexity. Likelihoods are computed in float32 and added in float64.

    Raises:
        TokensError: No document has two tokens, an id is outside the vocabulary, a length is out of range, a file of
            tokens cannot be read, or the model is no causal language model.
        CheckpointError: The folder or hub id is not a causal language model.
        AllocationError: ``bits`` is for another model or of another quantity.

    Example:
        >>> class Uniform(nn.Module):
        ...     def forward(self, input_ids, **_):
        ...         return {"logits": torch.zeros(*input_ids.shape, 50)}
        >>> round(float(perplexity(Uniform(), torch.arange(40))), 3)
        50.0
    """
    tokenizer = None if isinstance(model, nn.Module) else model
    documents = read_documents(tokens, tokenizer)
    if not isinstance(model, nn.Module):
        with transformers_bars(progress):
            model = load_causal_lm(model, device)
    if length is None:
        length = default_length(model)
    stride = length if stride is None else stride
    check_integer("length", length)
    check_integer("stride", stride)
    if length < 2 or not 1 <= stride <= length:  # noqa: PLR2004
        raise TokensError(f"length must be at least 2 and stride from 1 to length, got {length} and {stride}")
    windows = [window for document in documents for window in _windows(document, length, stride)]
    if not windows:
        raise TokensError("no document has two tokens, so there is nothing to predict")
    texts = [window for window, _ in windows]
    check_vocabulary(model, texts)
    size = batch_size(texts, check_causal(model, texts))
    with quantized(model, bits) if bits is not None else contextlib.nullcontext():
        sums, counts = _measure(model, windows, size, progress)
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
    """Return the context length of a language model, at most 2,048."""
    return context_length(lambda name: getattr(getattr(model, "config", None), name, None))


def check_vocabulary(model: nn.Module, sequences: Sequence[Tensor]) -> None:
    """Raise a TokensError if a token is not in the vocabulary of a Hugging Face causal language model."""
    vocabulary = getattr(getattr(model, "config", None), "vocab_size", math.inf)
    lowest, highest = min(int(each.min()) for each in sequences), max(int(each.max()) for each in sequences)
    if highest >= vocabulary or lowest < 0:
        wrong = highest if highest >= vocabulary else lowest
        raise TokensError(f"token {wrong} is not in the vocabulary of {vocabulary}: use the tokenizer of this model")


@torch.no_grad()
def check_causal(model: nn.Module, sequences: Sequence[Tensor]) -> int:
    """Return the size of the vocabulary; raise a TokensError unless the model predicts from the tokens before."""
    probe = max(sequences, key=len)[:_PROBE]
    changed = probe.clone()
    changed[-1] = probe[0] if probe[-1] != probe[0] else (probe[0] + 1 if probe[0] == 0 else probe[0] - 1)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with restored_modes(model):
        model.eval()
        one, other = (next_token_logits(model, ids[None].to(device)) for ids in (probe, changed))
    tolerance = torch.finfo(one.dtype).eps ** 0.5 * float(one.abs().max())  # tokens can change the order of sums
    if bool(((one - other)[:, :-1].abs() > tolerance).any()):
        raise TokensError(
            f"{type(model).__name__} is no causal language model: its outputs depend on the tokens that follow"
        )
    return one.shape[-1]


def next_token_logits(model: nn.Module, batch: Tensor) -> Tensor:
    """Compute the logits ``(batch, length, vocabulary)`` of a model that has a head for the next token."""
    outputs = model(input_ids=batch, use_cache=False)
    logits = outputs.get("logits") if isinstance(outputs, Mapping) else None
    if not isinstance(logits, Tensor) or logits.shape[:-1] != batch.shape:
        raise TokensError(
            f"{type(model).__name__} has no head that predicts the next token: load it with AutoModelForCausalLM"
        )
    return logits


def token_losses(model: nn.Module, batch: Tensor) -> Tensor:
    """Compute the negative log-likelihood, ``(batch, length - 1)`` in float32, of every token but the first."""
    logits = next_token_logits(model, batch)
    losses = F.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), batch[:, 1:].flatten().to(logits.device), reduction="none"
    )
    return losses.view(len(batch), -1)


def _windows(document: Tensor, length: int, stride: int) -> Iterator[tuple[Tensor, int]]:
    """Yield the windows of a document, each with the number of its last tokens to predict."""
    done = 0
    for start in range(0, len(document), stride):
        window = document[start : start + length]
        count = min(start + len(window) - done, len(window) - 1)
        if count > 0:
            yield window, count
        done = max(done, start + len(window))


def _measure(
    model: nn.Module, windows: Sequence[tuple[Tensor, int]], size: int, progress: bool
) -> tuple[Tensor, Tensor]:
    """Return the sum of negative log-likelihoods and the number of tokens of each window."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    counts = torch.tensor([count for _, count in windows], dtype=torch.float64)
    sums: list[Tensor] = []
    with restored_modes(model), torch.inference_mode(), progress_bar("perplexity", len(windows), progress) as advance:
        model.eval()
        for batch in batches([window for window, _ in windows], size):
            for row in token_losses(model, batch.to(device)).double().cpu():
                sums.append(row[len(row) - int(counts[len(sums)]) :].sum())
            advance(len(batch))
    return torch.stack(sums), counts
