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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import nn

from tempbalance._progress import progress_bar
from tempbalance.balance import Balancer, Refresh, recipes
from tempbalance.demo.digits import CLASSES, DigitsNet, NewDigits, Settings, pretrain_digits

__all__ = ["ARMS", "Outcome", "SeedResult", "finetune_digits"]

ARMS = ("plain", "balanced", "one_rate")


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
    history: Sequence[Refresh]


def finetune_digits(settings: Settings | None = None, *, progress: bool = True) -> Outcome:
    """Run the comparison.

    Args:
        settings: By default ``Settings()``.
        progress: Whether to show a progress bar (only ever on a terminal).

    Returns:
        Accuracies of all seeds and arms.

    Raises:
        MissingExtraError: scikit-learn, which has the images, is not installed.
    """
    settings = settings or Settings()
    with progress_bar("fine-tuning", 1 + len(ARMS) * settings.seeds, progress) as advance:
        digits = pretrain_digits(settings)
        advance(1)
        results = []
        for seed in range(settings.seeds):
            plain = _run(digits, seed, "plain")
            advance(1)
            balanced = _run(digits, seed, "balanced")
            advance(1)
            factor = fmean(unit.multiplier for refresh in balanced.history for unit in refresh.units)
            one_rate = _run(digits, seed, "one_rate", factor)
            advance(1)
            if seed == 0:
                first = balanced
            runs = zip(ARMS, (plain, balanced, one_rate), strict=True)
            results.append(SeedResult(seed, {arm: run.accuracy for arm, run in runs}, factor))
    test_images = len(digits.labels) - CLASSES * settings.examples
    return Outcome(
        settings=settings, test_images=test_images, results=results, model=first.model, history=first.history
    )


class _Run(NamedTuple):
    """A network after fine-tuning."""

    model: DigitsNet
    accuracy: float
    history: list[Refresh]


def _run(digits: NewDigits, seed: int, arm: str, factor: float = 1.0) -> _Run:
    """Fine-tune on a few images and test on the others; balancing takes one line."""
    settings = digits.settings
    start = digits.start(seed)
    model = start.model
    parameters = model.parameters() if arm != "one_rate" else _faster_blocks(model, factor * settings.lr)
    steps, balancer = len(start.batches), None

    optimizer = torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay)
    if arm == "balanced":
        balancer = Balancer(optimizer, model, recipes.model_balancing(), steps_per_epoch=steps)  # <- !
    digits.finetune(start, optimizer)

    accuracy = 100 * digits.accuracy(model, start.others)
    return _Run(model, accuracy, balancer.history if balancer is not None else [])


def _faster_blocks(model: DigitsNet, lr: float) -> list[dict[str, Any]]:
    """All parameters, with another rate for the blocks, which are what the balancer balances."""
    ends = chain(model.stem.parameters(), model.norm.parameters(), model.head.parameters())
    return [{"params": list(ends)}, {"params": list(model.blocks.parameters()), "lr": lr}]
