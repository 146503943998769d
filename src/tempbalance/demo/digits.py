"""Handwritten digits, a small network pretrained on five of them, and its fine-tuning on a few of the others."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from tempbalance.errors import ArgumentError, require_extra

__all__ = [
    "CLASSES",
    "DigitsNet",
    "NewDigits",
    "Settings",
    "Start",
    "one_thread",
    "pretrain_digits",
    "warmup_and_decay",
]

CLASSES = 5
_PIXELS, _BRIGHTEST = 64, 16
_Batches: TypeAlias = DataLoader[tuple[Tensor, ...]]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the demo. None of them was tuned, for any arm."""

    seeds: int = 10  # at least 2; a seed chooses the images, the new head and the batches
    examples: int = 8  # training images of each of the five new digits, at most 100
    epochs: int = 40  # passes over them; accuracy is measured after the last
    batch_size: int = 8
    lr: float = 1e-3  # highest; the default of ``torch.optim.AdamW``, like the weight decay
    weight_decay: float = 1e-2
    warmup: float = 0.06  # fraction of the steps, before linear decay to zero; as in Model Balancing
    blocks: int = 4  # all of the same shape, so that their alphas are comparable
    width: int = 128  # the number of eigenvalues of each weight matrix of a block
    pretrain_epochs: int = 40  # passes over the images of the digits 0 to 4
    pretrain_lr: float = 3e-3  # the smallest of 0.001, 0.003 and 0.01 after which no block looks random
    pretrain_batch_size: int = 32

    def __post_init__(self) -> None:
        if self.seeds < 2 or not 1 <= self.examples <= 100:  # noqa: PLR2004  each digit has at least 174 images
            raise ArgumentError(f"seeds must be at least 2 and examples 1 to 100, got {self.seeds} and {self.examples}")


class _Block(nn.Module):
    """The MLP block of a transformer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, width)
        self.down = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.down(F.gelu(self.up(self.norm(x))))
        return out


class DigitsNet(nn.Module):
    """A residual network for images of 8 x 8 pixels and five classes.

    Example:
        >>> DigitsNet(blocks=2, width=16)(torch.zeros(3, 64)).shape
        torch.Size([3, 5])
    """

    def __init__(self, blocks: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Linear(_PIXELS, width)
        self.blocks = nn.Sequential(*(_Block(width) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(images, 5)`` for pixels in [0, 1], ``(images, 64)``."""
        logits: Tensor = self.head(self.norm(self.blocks(self.stem(images))))
        return logits


class Start(NamedTuple):
    """The start of a fine-tuning."""

    model: DigitsNet  # pretrained, with a new head
    batches: _Batches
    others: Tensor  # indices of all other images, in random order


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Use one thread: as fast for small matrices, and sums have a fixed order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True, kw_only=True)
class NewDigits:
    """The images of the digits 5 to 9, and a network pretrained on 0 to 4."""

    images: Tensor  # pixels in [0, 1], ``(images, 64)``
    labels: Tensor  # classes 0 to 4, for the digits 5 to 9
    pretrained: DigitsNet
    settings: Settings

    def start(self, seed: int) -> Start:
        """Prepare a fine-tuning; the seed chooses the images, the new head and the batches."""
        model = copy.deepcopy(self.pretrained)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model.head = nn.Linear(self.settings.width, CLASSES)
        shuffled = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(seed))
        of_class = [shuffled[self.labels[shuffled] == label] for label in range(CLASSES)]
        few = torch.cat([places[: self.settings.examples] for places in of_class])
        batches = _batches(self.images[few], self.labels[few], self.settings.batch_size, seed)
        return Start(model, batches, shuffled[~torch.isin(shuffled, few)])

    def finetune(self, start: Start, optimizer: torch.optim.Optimizer) -> None:
        """Train by an ordinary loop, without balancing in it."""
        _train(start.model, optimizer, start.batches, self.settings.epochs, self.settings.warmup)

    @one_thread()
    @torch.no_grad()
    def accuracy(self, model: nn.Module, places: Tensor) -> float:
        """Compute the accuracy on the images of these indices, in [0, 1]."""
        correct = model(self.images[places]).argmax(dim=1) == self.labels[places]
        return int(correct.sum()) / len(places)


def pretrain_digits(settings: Settings) -> NewDigits:
    """Train a network on the digits 0 to 4, and return it with the images of the digits 5 to 9."""
    images, labels = _digits()
    old = labels < CLASSES
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = DigitsNet(settings.blocks, settings.width)
    batches = _batches(images[old], labels[old], settings.pretrain_batch_size, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.pretrain_lr, weight_decay=settings.weight_decay)
    _train(model, optimizer, batches, settings.pretrain_epochs, settings.warmup)
    return NewDigits(images=images[~old], labels=labels[~old] - CLASSES, pretrained=model, settings=settings)


def _digits() -> tuple[Tensor, Tensor]:
    """Return 1,797 images ``(images, 64)`` with pixels in [0, 1], and their digits."""
    with require_extra("demo", "the demo needs the digits of scikit-learn"):
        from sklearn.datasets import load_digits
    digits = load_digits()
    return torch.tensor(digits.data, dtype=torch.float32) / _BRIGHTEST, torch.tensor(digits.target)


def _batches(images: Tensor, labels: Tensor, size: int, seed: int) -> _Batches:
    return DataLoader(TensorDataset(images, labels), size, shuffle=True, generator=torch.Generator().manual_seed(seed))


@one_thread()
def _train(model: DigitsNet, optimizer: torch.optim.Optimizer, batches: _Batches, epochs: int, warmup: float) -> None:
    scheduler = warmup_and_decay(optimizer, epochs * len(batches), warmup)
    for _ in range(epochs):
        for images, labels in batches:
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            scheduler.step()


def warmup_and_decay(
    optimizer: torch.optim.Optimizer, steps: int, fraction: float
) -> torch.optim.lr_scheduler.LRScheduler:
    """Build a scheduler of linear warm-up in a fraction of the steps, then linear decay to zero."""
    warmup = max(1, round(fraction * steps))

    def rate(step: int) -> float:
        return min((step + 1) / warmup, (steps - step) / (steps - warmup + 1))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
