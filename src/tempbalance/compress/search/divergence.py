"""Next-token probabilities of a dense model on calibration text, and how far a pruned model is from them."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from tempbalance.compress.evaluation.likelihood import check_causal, check_vocabulary, next_token_logits
from tempbalance.errors import NonFiniteError, TokensError

__all__ = ["DenseOutputs", "Divergence"]

_logger = logging.getLogger("tempbalance")

_BATCHES = 16  # at least so many, to draw from
_MEMORY = 2**30  # bytes of probabilities
_COPIES = 3  # logits, their log-probabilities, and the products with the probabilities of the dense model


class Divergence(NamedTuple):
    """Sums over the tokens of some batches."""

    kl: float = 0.0
    loss: float = 0.0  # negative log-likelihood
    tokens: int = 0
    predicted: int = 0

    def __add__(self, other: tuple[Any, ...]) -> Divergence:
        return Divergence(*(a + b for a, b in zip(self, other, strict=True)))

    @property
    def perplexity(self) -> float:
        """Perplexity of the predicted tokens; infinite if it overflows."""
        return float(torch.tensor(self.loss / max(1, self.predicted), dtype=torch.float64).exp())


class _Batch(NamedTuple):
    """Sequences, padded on the right: in a causal model the padding changes nothing before it."""

    ids: Tensor  # (sequences, longest)
    real: Tensor  # mask of the tokens that are no padding
    whole: bool  # whether none is
    probs: Tensor  # (tokens, vocabulary), of the dense model
    entropy: float  # of these, added over the tokens

    @property
    def targets(self) -> Tensor:
        """The next token of each token; -1 for the last one of a sequence."""
        following = torch.where(self.real, self.ids, -1)[:, 1:]
        return F.pad(following, (0, 1), value=-1)[self.real]


class DenseOutputs:
    """Probabilities of every next token by the dense model, kept in float32 on the device of the model."""

    def __init__(
        self, model: nn.Module, sequences: Sequence[Tensor], tokens: int, announce: Callable[[float, int, int], object]
    ) -> None:
        """Run the dense model over at most ``tokens`` tokens, or as many as the bounded memory holds."""
        # ``announce`` is called after the first batch, with the seconds that a token takes, the number of tokens, and
        # the bytes that their probabilities and those of a changed model on a batch take.
        check_vocabulary(model, sequences)
        if max(map(len, sequences)) < 2:  # noqa: PLR2004
            raise TokensError("allocations are measured on sequences of at least two tokens")
        vocabulary = check_causal(model, sequences)
        held = _MEMORY // (4 * vocabulary)
        if held < tokens:
            _logger.warning(
                "allocations are measured on %s tokens instead of %s: the probabilities of more take over 1 GiB",
                held,
                tokens,
            )
        self._batches: list[_Batch] = []
        device = next(model.parameters()).device
        pieces = _pieces(sequences, min(held, tokens))
        started = time.perf_counter()
        for group in _grouped(pieces):
            ids, real = _padded(group, device)
            whole = bool(real.all())
            log_probs = _log_probs(model, ids, real, whole)
            if not bool(log_probs.isfinite().all()):
                raise NonFiniteError("the dense model gives probabilities that are not finite on the calibration text")
            if not self._batches:
                total = sum(map(len, pieces))
                size = 4 * vocabulary * (total + _COPIES * len(log_probs))
                announce((time.perf_counter() - started) / len(log_probs), total, size)
            probs = log_probs.exp()
            entropy = -float(torch.linalg.vecdot(probs, log_probs).sum(dtype=torch.float64))
            self._batches.append(_Batch(ids, real, whole, probs, entropy))

    def __len__(self) -> int:
        return len(self._batches)

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return sum(len(batch.probs) for batch in self._batches)

    def of(self, model: nn.Module, numbers: Iterable[int] | None = None) -> list[Divergence]:
        """Return the divergence of a model for each of some batches, by default all."""
        chosen = self._batches if numbers is None else [self._batches[number] for number in numbers]
        return [_compare(model, batch) for batch in chosen]


def _compare(model: nn.Module, batch: _Batch) -> Divergence:
    """Return the Kullback-Leibler divergence and the loss of a pruned model, added over the tokens of a batch."""
    log_probs, targets = _log_probs(model, batch.ids, batch.real, batch.whole), batch.targets
    loss = F.nll_loss(log_probs, targets, ignore_index=-1, reduction="none").sum(dtype=torch.float64)
    # sum p (log p - log q), where the entropy of p is known: to 1e-7 a token, as both sums are in float32
    kl = -batch.entropy - torch.linalg.vecdot(batch.probs, log_probs).sum(dtype=torch.float64)
    return Divergence(_finite(kl), _finite(loss), len(targets), int((targets >= 0).sum()))


def _log_probs(model: nn.Module, ids: Tensor, real: Tensor, whole: bool) -> Tensor:
    """Return log-probabilities of the next tokens, ``(tokens, vocabulary)``, without those after padding."""
    logits = next_token_logits(model, ids)
    return (logits.flatten(0, 1) if whole else logits[real]).float().log_softmax(dim=-1)


def _finite(value: Tensor) -> float:
    """Return a number; infinity for NaN, so that it is the worst of all."""
    return float(value) if bool(value.isfinite()) else math.inf


def _pieces(sequences: Sequence[Tensor], tokens: int) -> list[Tensor]:
    """Return pieces of the sequences, of every sequence the first one first, with at most ``tokens`` tokens."""
    length = max(2, tokens // _BATCHES)
    result: list[Tensor] = []
    left = tokens
    for start in range(0, max(map(len, sequences)), length):
        for sequence in sequences:
            piece = sequence[start : start + length][:left]
            if len(piece) > 1:
                result.append(piece)
                left -= len(piece)
    return result


def _grouped(pieces: Sequence[Tensor]) -> list[list[Tensor]]:
    """Group consecutive pieces to batches of about equal numbers of tokens."""
    most = max(sum(map(len, pieces)) / _BATCHES, *map(len, pieces))
    groups: list[list[Tensor]] = []
    for piece in pieces:
        if not groups or sum(map(len, groups[-1])) + len(piece) > most:
            groups.append([])
        groups[-1].append(piece)
    return groups


def _padded(pieces: Sequence[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    ids = pad_sequence(list(pieces), batch_first=True)
    real = pad_sequence([torch.ones(len(piece), dtype=torch.bool) for piece in pieces], batch_first=True)
    return ids.to(device), real.to(device)
