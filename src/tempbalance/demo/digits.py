"""Handwritten digits, a small network that knows some of them, and how it is fine-tuned on a few of the others."""

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

from tempbalance.errors import MissingExtraError

__all__ = ["CLASSES", "DigitsNet", "NewDigits", "Settings", "Start", "pretrain_digits"]

CLASSES = 5
_PIXELS, _BRIGHTEST = 64, 16
_Batches: TypeAlias = DataLoader[tuple[Tensor, ...]]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that shapes the numbers. Nothing in it was tuned, for any of the arms.

    Attributes:
        seeds: How many times the comparison is made; seed ``i`` chooses images, the new head, and the batches.
        examples: Images of each of the five new digits to fine-tune on.
        epochs: Passes over them; accuracy is that after the last.
        batch_size: Images in a batch.
        lr: Highest learning rate; that and the weight decay are the defaults of ``torch.optim.AdamW``.
        weight_decay: Weight decay.
        warmup: Share of the steps in which the rate rises; it falls to zero in the rest. As in Model Balancing.
        blocks: Residual blocks of the network, all of one shape, so that their alphas can be compared.
        width: Its width, and the number of eigenvalues of each weight matrix of a block.
        pretrain_epochs: Passes over the images of the digits 0 to 4.
        pretrain_lr: The smallest of 0.001, 0.003 and 0.01 at which no block looks untrained afterwards.
        pretrain_batch_size: Images in a batch.
    """

    seeds: int = 20
    examples: int = 8
    epochs: int = 40
    batch_size: int = 8
    lr: float = 1e-3
    weight_decay: float = 1e-2
    warmup: float = 0.06
    blocks: int = 4
    width: int = 128
    pretrain_epochs: int = 40
    pretrain_lr: float = 3e-3
    pretrain_batch_size: int = 32

    def __post_init__(self) -> None:
        """Check what a user may set.

        Raises:
            ValueError: There is nothing to compare or to learn from.
        """
        if self.seeds < 2 or not 1 <= self.examples <= 100:  # noqa: PLR2004  each digit has at least 174 images
            raise ValueError(f"seeds must be at least 2 and examples 1 to 100, got {self.seeds} and {self.examples}")


class _Block(nn.Module):
    """What a transformer block does to each token, without the attention."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, width)
        self.down = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Add to the input what the block makes of it."""
        out: Tensor = x + self.down(F.gelu(self.up(self.norm(x))))
        return out


class DigitsNet(nn.Module):
    """A residual network for images of 8 x 8 pixels and five classes.

    Example:
        >>> DigitsNet(blocks=2, width=16)(torch.zeros(3, 64)).shape
        torch.Size([3, 5])
    """

    def __init__(self, blocks: int, width: int) -> None:
        """Make a network with random weights.

        Args:
            blocks: How many blocks.
            width: Their width.
        """
        super().__init__()
        self.stem = nn.Linear(_PIXELS, width)
        self.blocks = nn.Sequential(*(_Block(width) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of five classes.

        Args:
            images: Pixels between 0 and 1, an image a row.

        Returns:
            A row for each image.
        """
        logits: Tensor = self.head(self.norm(self.blocks(self.stem(images))))
        return logits


class Start(NamedTuple):
    """A fine-tuning that is about to begin.

    Attributes:
        model: The pretrained network with a new head.
        batches: The images to train on.
        others: The places of all other images, in random order.
    """

    model: DigitsNet
    batches: _Batches
    others: Tensor


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Matrices so small gain nothing from more, and sums keep their order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True, kw_only=True)
class NewDigits:
    """What all fine-tunings share: the images of the digits 5 to 9, and a network that knows 0 to 4.

    Attributes:
        images: Pixels between 0 and 1, an image a row.
        labels: Classes 0 to 4, which stand for the digits 5 to 9.
        pretrained: The network.
        settings: How it was trained, and shall be fine-tuned.
    """

    images: Tensor
    labels: Tensor
    pretrained: DigitsNet
    settings: Settings

    def start(self, seed: int) -> Start:
        """Get everything ready for an optimizer.

        Args:
            seed: Chooses the images, the new head, and the batches.

        Returns:
            The network, and the images.
        """
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
        """A usual training loop, which knows nothing of balancing.

        Args:
            start: The network and the images.
            optimizer: Of the network.
        """
        _train(start.model, optimizer, start.batches, self.settings.epochs, self.settings.warmup)

    @_one_thread()
    @torch.no_grad()
    def accuracy(self, model: nn.Module, places: Tensor) -> float:
        """The share of images that are recognised.

        Args:
            model: A network.
            places: Which images.

        Returns:
            Between 0 and 1.
        """
        recognised = model(self.images[places]).argmax(dim=1) == self.labels[places]
        return int(recognised.sum()) / len(places)


def pretrain_digits(settings: Settings) -> NewDigits:
    """Train a network on the digits 0 to 4.

    Args:
        settings: How.

    Returns:
        The network, with the images of the digits 5 to 9.

    Raises:
        MissingExtraError: scikit-learn, which has the images, is not installed.
    """
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
    """1,797 images of 8 x 8 pixels as rows of numbers between 0 and 1, and the digits they show."""
    try:
        from sklearn.datasets import load_digits  # only for the demo
    except ImportError as error:
        raise MissingExtraError(
            "the demo fine-tunes on the digits that come with scikit-learn: pip install 'tempbalance[demo]'"
        ) from error
    digits = load_digits()
    return torch.tensor(digits.data, dtype=torch.float32) / _BRIGHTEST, torch.tensor(digits.target)


def _batches(images: Tensor, labels: Tensor, size: int, seed: int) -> _Batches:
    return DataLoader(TensorDataset(images, labels), size, shuffle=True, generator=torch.Generator().manual_seed(seed))


@_one_thread()
def _train(model: DigitsNet, optimizer: torch.optim.Optimizer, batches: _Batches, epochs: int, warmup: float) -> None:
    scheduler = _warmup_and_decay(optimizer, epochs * len(batches), warmup)
    for _ in range(epochs):
        for images, labels in batches:
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            scheduler.step()


def _warmup_and_decay(
    optimizer: torch.optim.Optimizer, steps: int, share: float
) -> torch.optim.lr_scheduler.LRScheduler:
    warmup = max(1, round(share * steps))

    def rate(step: int) -> float:
        """The factor on the learning rate."""
        return min((step + 1) / warmup, (steps - step) / (steps - warmup + 1))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
