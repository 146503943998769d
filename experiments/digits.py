"""Low-data fine-tuning on images, a task for ``tempbalance study``: the network and the digits of ``tempbalance demo``.

A small network trained on the handwritten digits 0 to 4 is fine-tuned on 5 to 9 with a few images each; only the rate,
the number of images and the method differ from the demo. The seed chooses the images, the new head and the batches. Of
the other images 300 are for validation, the rest for the test. For example

    tempbalance study --task experiments/digits.py --out digits --set examples=8 --seeds 30 \
        --lr 1e-3 3e-3 1e-2 3e-2 --methods model_balancing model_balancing:control=uniform
"""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import torch
from gradients import gradients
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tempbalance.demo import NewDigits, Settings, pretrain_digits
from tempbalance.demo.digits import one_thread, warmup_and_decay
from tempbalance.study import HOOKS, Batch, Method, Training

VALIDATION = 300
NEXT_MEMBER = 2**32  # beyond every seed
NOISE = 0.3  # standard deviation, of pixels in [0, 1]
ANGLE = 20.0  # degrees
SUPPORTS = (*HOOKS, "labels", "pretrained", "tensors")


def train(
    seed: int,
    method: Method,
    lr: float = 1e-3,
    *,
    examples: int = 8,
    epochs: int = 40,
    pretrain_epochs: int = 40,
) -> dict[str, float]:
    """Fine-tune once.

    Args:
        seed: Seed of everything random.
        method: How to balance.
        lr: Highest learning rate.
        examples: Images of each new digit.
        epochs: Passes over them.
        pretrain_epochs: Passes over the digits 0 to 4.

    Returns:
        Accuracies on validation and test images, and on test images with noise, and rotated.
    """
    digits = pretrained(examples, pretrain_epochs)
    others = digits.start(seed).others
    validation, test = others[:VALIDATION], others[VALIDATION:]
    noise = torch.randn(digits.images.shape, generator=torch.Generator().manual_seed(seed))
    members = [
        finetune(digits, method, lr, round(epochs * method.epochs), seed, member) for member in range(method.members)
    ]
    return {
        "validation": accuracy(digits, members, validation),
        "test": accuracy(digits, members, test),
        "noisy": accuracy(replace(digits, images=digits.images + NOISE * noise), members, test),
        "rotated": accuracy(replace(digits, images=rotated(digits.images)), members, test),
    }


def rotated(images: Tensor) -> Tensor:
    """Rotate images of 8 x 8 pixels."""
    cosine, sine = math.cos(math.radians(ANGLE)), math.sin(math.radians(ANGLE))
    turn = torch.tensor([[cosine, -sine, 0.0], [sine, cosine, 0.0]]).expand(len(images), 2, 3)
    grid = nn.functional.affine_grid(turn, [len(images), 1, 8, 8], align_corners=False)
    found = nn.functional.grid_sample(images.view(-1, 1, 8, 8), grid, align_corners=False)
    return found.view(-1, 64)


@one_thread()
def finetune(digits: NewDigits, method: Method, lr: float, epochs: int, seed: int, member: int) -> nn.Module:
    """Fine-tune one model; those of an ensemble have the same images, another new head and another order."""
    settings, order = digits.settings, seed + NEXT_MEMBER * member
    start = digits.start(seed)
    few = start.batches.dataset
    assert isinstance(few, TensorDataset)
    model: nn.Module = start.model if member == 0 else digits.start(order).model
    kept = method.choose(model, batches(few, settings.batch_size), Training(order, epochs, len(start.batches)))
    few = few if kept is None else TensorDataset(*few[kept.tolist()])
    loader = DataLoader(few, settings.batch_size, shuffle=True, generator=torch.Generator().manual_seed(order))
    model = method.prepare(model, Training(order, epochs, len(loader)))
    method.start(model, batches(few, len(few)))
    ours = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decay = method.decay * settings.weight_decay
    optimizers = method.optimizers(model, lr, decay) or [torch.optim.AdamW(ours, lr=lr, weight_decay=decay)]
    method.balance(optimizers[0], model, steps_per_epoch=len(loader))
    schedulers = [warmup_and_decay(each, max(1, epochs * len(loader)), settings.warmup) for each in optimizers]
    model.train()
    for _ in range(epochs):
        for images, labels in loader:
            method.backward(model, functools.partial(gradients, model, method, Batch(images, labels)))
            method.before_step(model)
            for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            method.after_step(model, optimizers)
    return method.finish(model, batches(few, len(few)))


def batches(few: TensorDataset, size: int) -> list[Batch]:
    """All images in their order."""
    return [Batch(*part) for part in DataLoader(few, size)]


@one_thread()
@torch.no_grad()
def accuracy(digits: NewDigits, members: list[nn.Module], places: Tensor) -> float:
    """Compute the accuracy of the mean logits."""
    logits = torch.stack([model.eval()(digits.images[places]) for model in members]).mean(dim=0)
    return int((logits.argmax(dim=1) == digits.labels[places]).sum()) / len(places)


@functools.cache
def pretrained(examples: int, pretrain_epochs: int) -> NewDigits:
    """The network before fine-tuning, the same for all trials."""
    return pretrain_digits(Settings(examples=examples, pretrain_epochs=pretrain_epochs))
