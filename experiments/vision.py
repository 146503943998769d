"""Vision from scratch on a part of CIFAR, a task for ``tempbalance study`` (as in TempBalance, at a size for a CPU).

ResNet-20 or a small VGG with SGD (momentum 0.9, weight decay 5e-4), or a small ViT with AdamW (weight decay 0.05); a
cosine over the epochs, flips and crops, accuracy after the last epoch. The seed chooses the images, the initial
weights, the order, flips and crops. Training and validation images are drawn from the training file, the same number
per class; the test is on the complete test file. The paper trains on 50,000 images of 32 x 32 pixels for 200 epochs in
batches of 128. For example

    tempbalance study --task experiments/vision.py --out vision/cifar10 --set examples=1000 --seeds 20 \
        --lr 0.003 0.01 0.03 0.1 --methods tempbalance tempbalance:control=shuffled

``--set data=DIR`` names a folder with ``cifar10.npz`` and ``cifar100.npz``: arrays ``train_images`` (n, 32, 32, 3) of
uint8, ``train_labels``, ``test_images`` and ``test_labels``.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from final_alpha import final_alpha
from gradients import gradients
from torch import Tensor, nn

from tempbalance.errors import NotFoundError, StudyError
from tempbalance.study import HOOKS, Batch, Method, Training

DATA = Path(__file__).parents[2] / "shared" / "data" / "images"
PIXELS = 32
VALIDATION = 2000  # images
EVALUATION_BATCH = 500
DECAY = 0.05  # of AdamW and Muon
SUPPORTS = (*(hook for hook in HOOKS if hook != "members"), "labels", "tensors")


class Block(nn.Module):
    """A residual block of two convolutions; where it halves the image, new channels are padded with zeros."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.stride, self.added = (2, width - before) if width > before else (1, 0)
        self.conv1 = nn.Conv2d(before, width, 3, self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """(n, before, h, w) to (n, width, h / stride, w / stride)."""
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        around = x[:, :, :: self.stride, :: self.stride]
        around = F.pad(around, (0, 0, 0, 0, self.added // 2, self.added // 2))
        return (y + around).relu()


class ResNet20(nn.Module):
    """He et al. 2016, section 4.2, with shortcuts of option A."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(Block(16, 16) for _ in range(3)))
        self.layer2 = nn.Sequential(Block(16, 32), Block(32, 32), Block(32, 32))
        self.layer3 = nn.Sequential(Block(32, 64), Block(64, 64), Block(64, 64))
        self.linear = nn.Linear(64, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (n, classes)."""
        x = self.bn1(self.conv1(images)).relu()
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def vgg(classes: int) -> nn.Sequential:
    """A VGG with BatchNorm: half the width of VGG-11, without its last two convolutions."""
    layers: list[nn.Module] = []
    before = 3
    for width, halves in [(32, True), (64, True), (128, False), (128, True), (256, False), (256, False)]:
        layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] * halves
        before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))


class ViT(nn.Module):
    """A vision transformer of 4 blocks of width 64 on patches of a quarter of the image's side."""

    def __init__(self, classes: int, size: int) -> None:
        super().__init__()
        config = transformers.ViTConfig(
            image_size=size,
            patch_size=size // 4,
            hidden_size=64,
            num_hidden_layers=4,
            num_attention_heads=2,
            intermediate_size=256,
            num_labels=classes,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        self.model = transformers.ViTForImageClassification(config)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (n, classes)."""
        logits: Tensor = self.model(images).logits
        return logits


NETWORKS = ("resnet20", "vgg", "vit")


def build(network: str, classes: int, size: int) -> nn.Module:
    """Build a network by its name, with random weights."""
    if network == "vit":
        return ViT(classes, size)
    return {"resnet20": ResNet20, "vgg": vgg}[network](classes).to(memory_format=torch.channels_last)


class Images(NamedTuple):
    """Images (n, 3, size, size), normalised, and their labels."""

    images: Tensor
    labels: Tensor

    def at(self, places: Tensor) -> Images:
        """Select images by index."""
        return Images(self.images[places], self.labels[places])

    def batches(self, size: int) -> list[Batch]:
        """Make batches of up to ``size`` images, in this order."""
        return [Batch(*part) for part in zip(self.images.split(size), self.labels.split(size), strict=True)]

    def chosen(self, method: Method, model: nn.Module, training: Training, size: int) -> Images:
        """Select the images that a method chooses."""
        kept = method.choose(model, self.batches(size), training)
        return self if kept is None else self.at(kept)


def train(  # noqa: PLR0913  each can be set on the command line
    seed: int,
    method: Method,
    lr: float = 0.01,
    *,
    network: str = "resnet20",
    classes: int = 10,
    examples: int = 1000,
    epochs: int = 30,
    batch_size: int = 32,
    size: int = 16,
    tested: int | None = None,
    data: str = str(DATA),
) -> dict[str, float]:
    """Train once.

    Args:
        seed: Seed of everything random.
        method: How to balance, or to regularise.
        lr: Highest learning rate.
        network: ``resnet20``, ``vgg`` or ``vit``.
        classes: 10 for CIFAR-10, 100 for CIFAR-100.
        examples: Images to train on, as many of each class.
        epochs: Passes over them; 200 in the paper.
        batch_size: Images in a batch; 128 in the paper.
        size: Pixels of a side, 32 or a divisor: smaller images are means over squares, and cost less.
        tested: Test images, always the same ones; all of them unless given.
        data: Folder of the files.

    Returns:
        Accuracies on validation, test and (without flips and crops) training images; alphas of the last weights.

    Raises:
        StudyError: There is no such network.
    """
    if network not in NETWORKS:
        raise StudyError(f"network must be one of {', '.join(NETWORKS)}, got {network!r}")
    all_few, held_out = draw(load(data, classes, "train", size), examples, seed)
    torch.manual_seed(seed)
    model = build(network, classes, size)
    rng = torch.Generator().manual_seed(seed)
    epochs = round(epochs * method.epochs)
    few = all_few.chosen(method, model, Training(seed, epochs, -(-examples // batch_size)), batch_size)
    steps_per_epoch = -(-len(few.labels) // batch_size)
    model = method.prepare(model, Training(seed, epochs, steps_per_epoch))
    method.start(model, few.batches(EVALUATION_BATCH))

    optimizers = method.optimizers(model, lr, method.decay * DECAY) or [optimizer_for(model, network, lr, method.decay)]
    method.balance(optimizers[-1], model, steps_per_epoch=steps_per_epoch)
    schedulers = [torch.optim.lr_scheduler.CosineAnnealingLR(each, T_max=epochs) for each in optimizers]
    model.train()
    for _ in range(epochs):
        for places in torch.randperm(len(few.labels), generator=rng).split(batch_size):
            images, labels = few.at(places)
            batch = Batch(augmented(images, rng), labels)
            method.backward(model, functools.partial(gradients, model, method, batch))
            method.before_step(model)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            method.after_step(model, optimizers)
        for scheduler in schedulers:
            scheduler.step()
    model = method.finish(model, few.batches(EVALUATION_BATCH))
    test = load(data, classes, "test", size)
    if tested is not None:
        test = test.at(torch.randperm(len(test.labels), generator=torch.Generator().manual_seed(0))[:tested])
    return {
        "validation": accuracy(model, held_out),
        "test": accuracy(model, test),
        "train": accuracy(model, all_few),
        **final_alpha(model),
    }


def optimizer_for(model: nn.Module, network: str, lr: float, decay: float = 1.0) -> torch.optim.Optimizer:
    """Build the optimizer of a network; ``decay`` is a factor on its weight decay."""
    ours = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if network == "vit":
        return torch.optim.AdamW(ours, lr=lr, weight_decay=decay * DECAY, fused=True)
    return torch.optim.SGD(ours, lr=lr, momentum=0.9, weight_decay=decay * 5e-4)


@functools.cache
def load(data: str, classes: int, part: str, size: int) -> Images:
    """All images of a file, normalised by the mean and standard deviation of each colour in the training images."""
    path = Path(data) / f"cifar{classes}.npz"
    if not path.is_file():
        raise NotFoundError(
            f"there is no {path}: make it from CIFAR-{classes} (cs.toronto.edu/~kriz/cifar.html) with arrays "
            "train_images (n, 32, 32, 3), train_labels, test_images, test_labels, and name its folder by --set data=DIR"
        )
    if size < 1 or PIXELS % size:
        raise StudyError(f"size must divide {PIXELS}, got {size}")
    with np.load(path) as file:
        pixels, labels = file[f"{part}_images"], file[f"{part}_labels"]
        colours = file["train_images"].reshape(-1, 3) / np.float32(255)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    mean, std = (torch.from_numpy(each(colours, axis=0)).reshape(3, 1, 1) for each in (np.mean, np.std))
    images = F.avg_pool2d((images - mean) / std, PIXELS // size)
    return Images(images.contiguous(memory_format=torch.channels_last), torch.from_numpy(labels).long())


def draw(all_images: Images, examples: int, seed: int) -> tuple[Images, Images]:
    """Draw training images and other validation images, the same number per class."""
    labels = all_images.labels
    counts = labels.bincount()
    classes, least = len(counts), int(counts.min())
    if examples % classes or not 0 < examples < classes * least:
        raise StudyError(
            f"examples must be a multiple of {classes}, as many of each class, below {classes * least}, got {examples}"
        )
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    of_class = torch.stack([shuffled[labels[shuffled] == label][:least] for label in range(classes)])
    here, there = examples // classes, max(1, VALIDATION // classes)
    return all_images.at(of_class[:, :here].flatten()), all_images.at(of_class[:, here : here + there].flatten())


def augmented(images: Tensor, rng: torch.Generator) -> Tensor:
    """Flip half of the images, and shift each by up to an eighth of its side (4 pixels of 32), padded with zeros."""
    count, size = len(images), images.shape[-1]
    most = size // 8
    flipped = torch.rand(count, 1, generator=rng) < 0.5
    down, right = torch.randint(2 * most + 1, (2, count, 1), generator=rng)
    rows, columns = down + torch.arange(size), torch.arange(size).repeat(count, 1)
    columns = right + torch.where(flipped, columns.flip(1), columns)
    padded = F.pad(images, (most,) * 4).permute(0, 2, 3, 1)
    moved = padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2)  # channels last in memory


@torch.no_grad()
def accuracy(model: nn.Module, images: Images) -> float:
    """Compute the accuracy; NaN if the network has diverged."""
    model.eval()
    logits = torch.cat([model(some) for some in images.images.split(EVALUATION_BATCH)])
    right = logits.argmax(dim=1) == images.labels
    return float(right.float().mean()) if logits.isfinite().all() else math.nan
