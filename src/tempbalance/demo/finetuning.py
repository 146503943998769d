"""Fine-tuning on a few images, with and without balancing, over paired seeds.

A small network is pretrained on the handwritten digits 0 to 4. For every seed, it is fine-tuned three times on a few
images each of the digits 5 to 9, and tested on all other images of these:

- ``plain``: without tempbalance;
- ``balanced``: the same with a balancer, one more line;
- ``one_rate``: ``plain``, with the learning rate of all blocks multiplied by the mean multiplier of ``balanced``. This
  control shows whether the rates of the blocks matter, or only the mean rate.

Within a seed all three have the same images, initial weights and batches.
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
    """The results of one seed."""

    seed: int
    accuracy: Mapping[str, float]  # on the test images in per cent, by arm
    mean_multiplier: float  # over blocks and refreshes of ``balanced``; the factor of ``one_rate``


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The results of all seeds."""

    settings: Settings
    test_images: int
    results: Sequence[SeedResult]
    pretrained: nn.Module  # the network before fine-tuning
    model: nn.Module  # the network of the first seed after balanced fine-tuning
    history: Sequence[Refresh]  # the refreshes of its balancer


def finetune_digits(settings: Settings | None = None, *, progress: bool = True) -> Outcome:
    """Return the accuracies of all seeds and arms; a MissingExtraError without scikit-learn, which has the images."""
    settings = settings or Settings()
    with progress_bar("fine-tuning", 1 + len(ARMS) * settings.seeds, progress) as advance:
        digits = pretrain_digits(settings)
        advance(1)
        results, factor = [], 1.0
        for seed in range(settings.seeds):
            runs: dict[str, _Run] = {}
            for arm in ARMS:  # "one_rate" uses the mean multiplier of "balanced"
                runs[arm] = _run(digits, seed, arm, factor)
                if arm == "balanced":
                    factor = fmean(unit.multiplier for refresh in runs[arm].history for unit in refresh.units)
                advance(1)
            if seed == 0:
                first = runs["balanced"]
            results.append(SeedResult(seed, {arm: run.accuracy for arm, run in runs.items()}, factor))
    test_images = len(digits.labels) - CLASSES * settings.examples
    return Outcome(
        settings=settings,
        test_images=test_images,
        results=results,
        pretrained=digits.pretrained,
        model=first.model,
        history=first.history,
    )


class _Run(NamedTuple):
    model: DigitsNet
    accuracy: float
    history: list[Refresh]


def _run(digits: NewDigits, seed: int, arm: str, factor: float) -> _Run:
    settings = digits.settings
    start = digits.start(seed)
    model = start.model
    parameters = model.parameters() if arm != "one_rate" else _with_block_rate(model, factor * settings.lr)
    steps, balancer = len(start.batches), None

    optimizer = torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay)
    if arm == "balanced":
        balancer = Balancer(optimizer, model, recipes.model_balancing(), steps_per_epoch=steps)  # the one line
    digits.finetune(start, optimizer)

    accuracy = 100 * digits.accuracy(model, start.others)
    return _Run(model, accuracy, balancer.history if balancer is not None else [])


def _with_block_rate(model: DigitsNet, lr: float) -> list[dict[str, Any]]:
    """Return all parameters, with another learning rate for the blocks, the units of the balancer."""
    ends = chain(model.stem.parameters(), model.norm.parameters(), model.head.parameters())
    return [{"params": list(ends)}, {"params": list(model.blocks.parameters()), "lr": lr}]
