"""Low-data fine-tuning on images, a task for ``tempbalance study``: the network and the digits of ``tempbalance demo``.

A small network trained on the handwritten digits 0 to 4 is fine-tuned on 5 to 9 with a few images each; only the rate,
the number of images and the method differ from the demo. The seed chooses the images, the new head and the batches. Of
the other images 300 are for validation, the rest for the test. For example

    tempbalance study --task experiments/digits.py --out digits --set examples=8 --seeds 30 \
        --lr 1e-3 3e-3 1e-2 3e-2 --methods model_balancing model_balancing:control=uniform
"""

from __future__ import annotations

import functools

import torch

from tempbalance.demo import NewDigits, Settings, pretrain_digits
from tempbalance.study import Method

VALIDATION = 300


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
        Accuracies on validation and test images.
    """
    digits = pretrained(examples, epochs, pretrain_epochs)
    start = digits.start(seed)
    optimizer = torch.optim.AdamW(start.model.parameters(), lr=lr, weight_decay=digits.settings.weight_decay)
    method.balance(optimizer, start.model, steps_per_epoch=len(start.batches))
    digits.finetune(start, optimizer)
    return {
        "validation": digits.accuracy(start.model, start.others[:VALIDATION]),
        "test": digits.accuracy(start.model, start.others[VALIDATION:]),
    }


@functools.cache
def pretrained(examples: int, epochs: int, pretrain_epochs: int) -> NewDigits:
    """The network before fine-tuning, the same for all trials."""
    return pretrain_digits(Settings(examples=examples, epochs=epochs, pretrain_epochs=pretrain_epochs))
