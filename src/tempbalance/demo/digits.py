"""Fine-tuning on a few images, with and without balancing, seed by seed.

A small network learns the handwritten digits 0 to 4. Then, for every seed, it is fine-tuned three times on a few images
each of the digits 5 to 9, and tested on all their other images:

- ``plain``: as one would do it without tempbalance;
- ``balanced``: the same, with one line more;
- ``one_rate``: the same as ``plain``, but the learning rate of all blocks is multiplied by the mean multiplier of
  ``balanced``. It is the control: does it matter which block gets more, or only that the rate has changed?

Within a seed all three have the same images, the same initial weights and the same batches.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import tempbalance as tb
from tempbalance.errors import MissingExtraError
from tempbalance.report.progress import progress_bar

__all__ = ["ARMS", "DigitsNet", "Outcome", "SeedResult", "Settings", "finetune_digits"]

ARMS = ("plain", "balanced", "one_rate")
_PIXELS, _BRIGHTEST = 64, 16
_CLASSES = 5


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


class SeedResult(NamedTuple):
    """What one seed gave.

    Attributes:
        seed: The seed.
        accuracy: Per cent of the test images that are recognised, by arm.
        mean_multiplier: Mean over blocks and refreshes of the multipliers in ``balanced``; the factor of ``one_rate``.
    """

    seed: int
    accuracy: Mapping[str, float]
    mean_multiplier: float


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """All that the runs gave.

    Attributes:
        settings: The settings.
        test_images: How many images each accuracy is a share of.
        results: One entry per seed.
        model: The network of the first seed after balanced fine-tuning.
        history: What the balancer did to it.
    """

    settings: Settings
    test_images: int
    results: Sequence[SeedResult]
    model: nn.Module
    history: Sequence[tb.Refresh]


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
        self.head = nn.Linear(width, _CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of five classes.

        Args:
            images: Pixels between 0 and 1, an image a row.

        Returns:
            A row for each image.
        """
        logits: Tensor = self.head(self.norm(self.blocks(self.stem(images))))
        return logits


def finetune_digits(settings: Settings | None = None, *, progress: bool = True) -> Outcome:
    """Run the comparison, on one thread: matrices so small gain nothing from more, and sums keep their order.

    Args:
        settings: By default ``Settings()``.
        progress: Whether to show a progress bar (only ever on a terminal).

    Returns:
        Accuracies of all seeds and arms.

    Raises:
        MissingExtraError: scikit-learn, which has the images, is not installed.
    """
    settings = settings or Settings()
    images, labels = _digits()
    old = labels < _CLASSES
    with _one_thread(), progress_bar("fine-tuning", 1 + len(ARMS) * settings.seeds, progress) as advance:
        pretrained = _pretrain(images[old], labels[old], settings)
        advance(1)
        task = _Task(images[~old], labels[~old] - _CLASSES, pretrained, settings)
        results = []
        for seed in range(settings.seeds):
            plain = task.finetune(seed, "plain")
            advance(1)
            balanced = task.finetune(seed, "balanced")
            advance(1)
            factor = fmean(unit.multiplier for refresh in balanced.history for unit in refresh.units)
            one_rate = task.finetune(seed, "one_rate", factor)
            advance(1)
            if seed == 0:
                first = balanced
            runs = zip(ARMS, (plain, balanced, one_rate), strict=True)
            results.append(SeedResult(seed, {arm: run.accuracy for arm, run in runs}, factor))
    test_images = int((~old).sum()) - _CLASSES * settings.examples
    return Outcome(
        settings=settings, test_images=test_images, results=results, model=first.model, history=first.history
    )


class _Run(NamedTuple):
    """A network after fine-tuning."""

    model: DigitsNet
    accuracy: float
    history: list[tb.Refresh]


@dataclass(frozen=True)
class _Task:
    """What all seeds and arms share: the images of the new digits, and a network that knows the old ones."""

    images: Tensor
    labels: Tensor
    pretrained: DigitsNet
    settings: Settings

    def finetune(self, seed: int, arm: str, factor: float = 1.0) -> _Run:
        """Fine-tune on a few images and test on the others; balancing takes one line."""
        settings = self.settings
        model = copy.deepcopy(self.pretrained)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model.head = nn.Linear(settings.width, _CLASSES)
        train, test = self._split(seed)
        loader = _loader(train, settings.batch_size, seed)
        parameters = model.parameters() if arm != "one_rate" else _faster_blocks(model, factor * settings.lr)
        balancer = None

        optimizer = torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay)
        if arm == "balanced":
            balancer = tb.Balancer(optimizer, model, tb.recipes.model_balancing(), steps_per_epoch=len(loader))  # <- !
        _train(model, optimizer, loader, settings.epochs, settings.warmup)

        return _Run(model, _accuracy(model, *test), balancer.history if balancer is not None else [])

    def _split(self, seed: int) -> tuple[TensorDataset, tuple[Tensor, Tensor]]:
        """The same number of images of each digit to train on, and all others to test on."""
        generator = torch.Generator().manual_seed(seed)
        shuffled = torch.randperm(len(self.labels), generator=generator)
        of_class = [shuffled[self.labels[shuffled] == label] for label in range(_CLASSES)]
        train = torch.cat([places[: self.settings.examples] for places in of_class])
        test = torch.cat([places[self.settings.examples :] for places in of_class])
        return TensorDataset(self.images[train], self.labels[train]), (self.images[test], self.labels[test])


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


def _pretrain(images: Tensor, labels: Tensor, settings: Settings) -> DigitsNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = DigitsNet(settings.blocks, settings.width)
    loader = _loader(TensorDataset(images, labels), settings.pretrain_batch_size, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.pretrain_lr, weight_decay=settings.weight_decay)
    _train(model, optimizer, loader, settings.pretrain_epochs, settings.warmup)
    return model


def _train(
    model: DigitsNet,
    optimizer: torch.optim.Optimizer,
    loader: DataLoader[tuple[Tensor, ...]],
    epochs: int,
    warmup: float,
) -> None:
    """A usual training loop, which knows nothing of balancing."""
    scheduler = _warmup_and_decay(optimizer, epochs * len(loader), warmup)
    for _ in range(epochs):
        for images, labels in loader:
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            scheduler.step()


def _loader(data: TensorDataset, batch_size: int, seed: int) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(data, batch_size, shuffle=True, generator=torch.Generator().manual_seed(seed))


def _faster_blocks(model: DigitsNet, lr: float) -> list[dict[str, Any]]:
    """All parameters, with another rate for the blocks, which are what the balancer balances."""
    ends = chain(model.stem.parameters(), model.norm.parameters(), model.head.parameters())
    return [{"params": list(ends)}, {"params": list(model.blocks.parameters()), "lr": lr}]


def _warmup_and_decay(
    optimizer: torch.optim.Optimizer, steps: int, share: float
) -> torch.optim.lr_scheduler.LRScheduler:
    warmup = max(1, round(share * steps))

    def rate(step: int) -> float:
        """The factor on the learning rate."""
        return min((step + 1) / warmup, (steps - step) / (steps - warmup + 1))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, rate)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
def _accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    recognised = model(images).argmax(dim=1) == labels
    return 100 * int(recognised.sum()) / len(labels)
