"""Kill training runs with SIGKILL at random steps and resume them: each must end in the bits of an uninterrupted run.

``make kills`` runs it (``make kills KILLS=500`` for more). A run is killed inside a step, after the step, or after its
checkpoint was written; kinds of optimizer, scheduler and recipe are drawn at random. It prints a line per variant, and
ends with exit code 1 if a run ended in other bits.

Example: ``python -m kills.training --kills 20 --seed 1``, with ``tests`` in ``PYTHONPATH``
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.optim import lr_scheduler

import tempbalance as tb
from balance.conftest import make_net, train
from balance.optimizers import OPTIMIZERS
from balance.test_resume import DELAY, RESUMED, load_checkpoint, save_checkpoint
from processes import exit_code

STEPS = 20
SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 30),
    "a list per group": lambda o: lr_scheduler.OneCycleLR(
        o, max_lr=[1e-3, 2e-3], total_steps=STEPS + 1, cycle_momentum=False
    ),
    "group 0": lambda o: lr_scheduler.LambdaLR(o, [lambda step: 0.9**step, lambda _: 1.0]),
}
Variant = tuple[str, str, str]


def run(variant: Variant, folder: Path | None, kill: tuple[int, str] = (-1, "")) -> dict[str, torch.Tensor]:
    """Train to the end, from the checkpoint in the folder if there is one; with a folder, save after every step."""
    recipe, optimizer_name, schedule = variant
    net = make_net()
    matrices = [p for p in net.parameters() if p.ndim > 1]
    vectors = [p for p in net.parameters() if p.ndim < 2]
    optimizer = OPTIMIZERS[optimizer_name]([{"params": matrices}, {"params": vectors, "weight_decay": 0.0}])
    scheduler = SCHEDULERS[schedule](optimizer)
    tb.Balancer(optimizer, net, RESUMED[recipe], steps_per_epoch=3, delay=DELAY.get(recipe, 0))
    parts = {"net": net, "optimizer": optimizer, "scheduler": scheduler}
    start = load_checkpoint(parts, folder)
    steps = iter(range(start, STEPS))

    def die(moment: str, step: int) -> None:
        if kill == (step, moment):
            os.kill(os.getpid(), signal.SIGKILL)

    def at_step(step: int) -> None:
        die("after the step", step)
        save_checkpoint(parts, folder, step)
        die("after the checkpoint", step)

    optimizer.register_step_pre_hook(lambda *_: die("inside the step", next(steps)))
    train(net, optimizer, scheduler, steps=STEPS, start=start, at_step=at_step)
    return net.state_dict()


def killed(variant: Variant, folder: Path, kill: tuple[int, str]) -> None:
    """Run in a process of its own until it is killed."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    run(variant, folder, kill)


def main() -> None:
    """Kill, resume, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="number of runs that are killed")
    parser.add_argument("--seed", type=int, default=0, help="seed of the variants and steps")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    draw, began = random.Random(options.seed), time.monotonic()
    expected: dict[Variant, dict[str, torch.Tensor]] = {}
    good, bad = Counter[str](), []
    for number in range(options.kills):
        variant = (draw.choice(list(RESUMED)), draw.choice(list(OPTIMIZERS)), draw.choice(list(SCHEDULERS)))
        kill = (
            draw.randrange(STEPS),
            draw.choice(["inside the step", "after the step", "after the checkpoint"]),
        )
        with tempfile.TemporaryDirectory() as folder:
            assert exit_code(killed, variant, Path(folder), kill) == -signal.SIGKILL
            resumed = run(variant, Path(folder))
        if variant not in expected:
            expected[variant] = run(variant, None)
        if all(torch.equal(value, expected[variant][name]) for name, value in resumed.items()):
            good[variant[0]] += 1
        else:
            bad.append((variant, kill))
            print("other bits:", variant, kill, flush=True)
        print(f"\r{number + 1}/{options.kills}", end="", file=sys.stderr, flush=True)
    print(f"\n{sum(good.values())} of {options.kills} runs end in the same bits ({time.monotonic() - began:.0f} s)")
    print(dict(sorted(good.items())))
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
