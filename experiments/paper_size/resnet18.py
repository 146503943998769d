"""TempBalance at its size: ResNet-18 on CIFAR-100, 200 epochs, for one GPU.

SGD (momentum 0.9, weight decay 5e-4), batches of 128, a cosine by epoch, crops and flips; mixed precision in bfloat16,
channels last. The paper (released code) tracks the best test accuracy; here it is that of the last epoch, and learning
rates are chosen on 5,000 training images that trials for tuning leave out.

The data is a folder with ``cifar100.npz``, see ``vision.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from final_alpha import final_alpha
from pieces import Piece, generator
from torch import Tensor, nn
from vision import PIXELS, Images, accuracy, augmented, load

from tempbalance.errors import StudyError
from tempbalance.study import Method
from tempbalance.study.runner import FIRST_TUNING_SEED

CLASSES = 100
HELD_OUT = 0.1  # of the training images, in a trial for tuning
REHEARSAL = {"epochs": 2, "batch_size": 50, "width": 4}


class Block(nn.Module):
    """A residual block of two convolutions, with a convolution around it where the shape changes."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride > 1 or before != width:
            self.shortcut = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """(n, before, h, w) to (n, width, h / stride, w / stride)."""
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + self.shortcut(x)).relu()


class ResNet18(nn.Module):
    """ResNet-18 for images of 32 pixels: the first convolution is 3 x 3, without pooling after it."""

    def __init__(self, classes: int, width: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        blocks, before = list[nn.Module](), width
        for stage in range(4):
            after = width * 2**stage
            blocks += [Block(before, after, 2 if stage else 1), Block(after, after, 1)]
            before = after
        self.blocks = nn.Sequential(*blocks)
        self.linear = nn.Linear(before, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (n, classes)."""
        x = self.bn1(self.conv1(images)).relu()
        logits: Tensor = self.linear(self.blocks(x).mean((2, 3)))
        return logits


def check(data: Path, parameters: Mapping[str, Any]) -> None:
    """Raise a StudyError unless the file is CIFAR-100."""
    images = {part: load(str(data), CLASSES, part, PIXELS) for part in ("train", "test")}
    for part, found in images.items():
        labels = sorted(set(found.labels.tolist()))
        if found.images.shape[1:] != (3, PIXELS, PIXELS) or labels != [*range(CLASSES)]:
            raise StudyError(
                f"the {part} images of {data / 'cifar100.npz'} have shape {tuple(found.images.shape)} and "
                f"{len(labels)} labels; expected (n, 3, {PIXELS}, {PIXELS}) and {CLASSES}"
            )


def write_tiny(data: Path) -> None:
    """Write a tiny data set for the rehearsal."""
    rng = np.random.default_rng(0)
    labels = np.arange(CLASSES)
    images = {f"{part}_images": rng.integers(0, 255, (len(labels), 32, 32, 3), np.uint8) for part in ("train", "test")}
    np.savez(data / "cifar100.npz", **images, train_labels=labels, test_labels=labels)


def train(  # noqa: PLR0913  each can be set on the command line
    seed: int,
    method: Method,
    lr: float = 0.1,
    *,
    data: str,
    epochs: int = 200,
    batch_size: int = 128,
    width: int = 64,
    piece: Piece | None = None,
) -> dict[str, float]:
    """Train once.

    Args:
        seed: Seed of the weights, the order, crops and flips.
        method: How to balance.
        lr: Highest learning rate.
        data: Folder of the file.
        epochs: Passes over the images.
        batch_size: Images in a batch.
        width: Channels of the first convolution.
        piece: Where to train, and for how long.

    Returns:
        Accuracies on test images and, for a tuning seed, on held-out training images; the loss of the last batch;
        alphas of the last weights; seconds of training.
    """
    piece = piece or Piece()
    given, held_out = split(load(data, CLASSES, "train", PIXELS), seed)
    images, labels = (part.to(piece.device) for part in given)
    torch.manual_seed(seed)
    model = ResNet18(CLASSES, width).to(piece.device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    per_epoch = -(-len(labels) // batch_size)
    method.balance(optimizer, model, steps_per_epoch=per_epoch)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)

    loss = torch.tensor(math.nan)
    order: list[Tensor] = []
    state = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    for step in piece.steps(f"{method.name} {lr} {seed}", epochs * per_epoch, state, method):
        epoch, place = divmod(step, per_epoch)
        if not place or not order:
            order = [*torch.randperm(len(labels), generator=generator(seed, epoch)).split(batch_size)]
        chosen = order[place].to(piece.device)
        model.train()
        with torch.autocast(torch.device(piece.device).type, torch.bfloat16):
            loss = F.cross_entropy(model(augmented(images[chosen], generator(seed, step))), labels[chosen])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if place + 1 == per_epoch:
            scheduler.step()
    parts = {"test": load(data, CLASSES, "test", PIXELS)} | ({"validation": held_out} if len(held_out.labels) else {})
    accuracies = {
        name: accuracy(model, Images(*(part.to(piece.device) for part in found))) for name, found in parts.items()
    }
    return {**accuracies, "last_loss": loss.item(), **final_alpha(model), "seconds": piece.spent}


def split(images: Images, seed: int) -> tuple[Images, Images]:
    """All images to train on; for a tuning seed without those that it holds out."""
    if seed < FIRST_TUNING_SEED:
        return images, images.at(torch.tensor([], dtype=torch.long))
    order = torch.randperm(len(images.labels), generator=generator(seed, 0))
    count = round(HELD_OUT * len(order))
    return images.at(order[count:]), images.at(order[:count])
