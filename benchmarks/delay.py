"""Measure the cost of an asynchronous refresh, paired with one that training waits for.

Run with ``OMP_NUM_THREADS=1 python benchmarks/delay.py [--quick]`` on two cores or more: one for training, one for the
measurement. Writes ``delay.json`` next to this file (not with ``--quick``).
"""

from __future__ import annotations

import argparse
import json
import time
from statistics import median
from typing import Any

import torch
from balancing import HERE, minilm, text_loss
from run import machine
from torch import nn

import tempbalance as tb

_INTERVAL = 12  # optimizer steps from one refresh to the next


def interval(model: nn.Module, delay: int) -> dict[str, float]:
    """Train from one refresh of all weights to the next.

    Args:
        model: The model, which is trained.
        delay: Optimizer steps from the refresh to its effect; 0 makes training wait.

    Returns:
        Seconds that training waited for the refresh, and seconds of the interval, which contains one refresh.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    recipe = tb.Recipe(name="benchmark", assignment=tb.assign.Sigmoid(), unit="block", every=tb.Every(steps=_INTERVAL))
    balancer = tb.Balancer(optimizer, model, recipe, delay=delay)
    began = time.perf_counter()
    for step in range(_INTERVAL):
        text_loss(model, step).backward()
        optimizer.step()
        optimizer.zero_grad()
    optimizer.state_dict()  # waits for the measurement, as the next step would
    seconds = time.perf_counter() - began
    (refresh,) = balancer.history
    balancer.remove()
    return {"waited": refresh.seconds, "whole": seconds}


def compare(pairs: int) -> dict[str, Any]:
    """Run both variants in turn, after one pair that is not counted; in units of a step of the waiting variant."""
    torch.manual_seed(0)
    model = minilm().train()
    found = [(interval(model, 0), interval(model, _INTERVAL)) for _ in range(pairs + 1)][1:]
    steps = [(waiting["whole"] - waiting["waited"]) / _INTERVAL for waiting, _ in found]
    sides = {"training waits": [pair[0] for pair in found], "asynchronous": [pair[1] for pair in found]}
    return {
        "name": f"MiniLM, batches of 16 x 32 tokens, all weights every {_INTERVAL} steps",
        "refresh_in_steps": {side: _in_steps("waited", runs, steps) for side, runs in sides.items()},
        "interval_in_steps": {side: _in_steps("whole", runs, steps) for side, runs in sides.items()},
        "seconds": found,
    }


def _in_steps(what: str, runs: list[dict[str, float]], steps: list[float]) -> dict[str, float]:
    ratios = [run[what] / step for run, step in zip(runs, steps, strict=True)]
    return {"median": median(ratios), "min": min(ratios), "max": max(ratios)}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one pair; writes nothing")
    quick = parser.parse_args().quick
    row = compare(1 if quick else 5)
    print({key: value for key, value in row.items() if key != "seconds"}, flush=True)
    if not quick:
        results = {"command": "python benchmarks/delay.py", "machine": machine(), "results": [row]}
        (HERE / "delay.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
