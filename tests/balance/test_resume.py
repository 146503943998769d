"""A run that is killed at a step and resumed from its last checkpoint ends in the same bits as an uninterrupted one."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

import tempbalance as tb
from processes import exit_code

from .conftest import assert_same_bits, make_net, train

EXACT = tb.Recipe(name="test", assignment=tb.assign.Linear(0.5, 1.5), every=tb.Every(steps=3), ramp=2)
RESUMED = {
    "exact": EXACT,
    "tolerance": dataclasses.replace(EXACT, tolerance=0.3),
    "update": dataclasses.replace(EXACT, spectrum_of="update", unfreeze=tb.Every(steps=3)),
    "change": dataclasses.replace(EXACT, assignment=tb.assign.AlphaChange(tb.assign.Damped(tb.assign.Sigmoid()))),
    "depth": dataclasses.replace(
        EXACT, assignment=tb.assign.Times(tb.assign.LayerwiseDecay(0.5), tb.assign.Linear()), unit="block"
    ),
    "unfreezing": tb.recipes.gradual_unfreezing(),
    "asynchronous": dataclasses.replace(EXACT, tolerance=0.3),
}
DELAY = {"asynchronous": 2}


STEPS = 20


def load_checkpoint(parts: dict[str, Any], folder: Path | None) -> int:
    """Load the checkpoint in a folder, if there is one; return the steps that it has taken."""
    if folder is None or not (folder / "checkpoint").exists():
        return 0
    saved = torch.load(folder / "checkpoint", weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(saved[name])
    return saved["step"]


def save_checkpoint(parts: dict[str, Any], folder: Path | None, step: int) -> None:
    """Save a checkpoint after a step, if there is a folder."""
    if folder is not None:
        state = {name: part.state_dict() for name, part in parts.items()}
        torch.save({**state, "step": step + 1}, folder / "new")
        (folder / "new").replace(folder / "checkpoint")


def run(recipe: str, folder: Path | None = None, kill: int = -1) -> dict[str, torch.Tensor]:
    """Train to the end, from the checkpoint in the folder if there is one; save after every step if there is."""
    net = make_net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    tb.Balancer(optimizer, net, RESUMED[recipe], steps_per_epoch=3, delay=DELAY.get(recipe, 0))
    scheduler = lr_scheduler.CosineAnnealingLR(optimizer, 30)
    parts = {"net": net, "optimizer": optimizer, "scheduler": scheduler}
    start = load_checkpoint(parts, folder)

    def at_step(step: int) -> None:
        save_checkpoint(parts, folder, step)
        if step == kill:
            os.kill(os.getpid(), signal.SIGKILL)

    train(net, optimizer, scheduler, steps=STEPS, start=start, at_step=at_step)
    return net.state_dict()


def killed(recipe: str, folder: Path, kill: int, threads: int) -> None:
    """Run in a process of its own until it is killed."""
    torch.set_num_threads(threads)
    run(recipe, folder, kill)


@pytest.fixture(scope="module")
def uninterrupted() -> dict[str, dict[str, torch.Tensor]]:
    """Results of runs without a checkpoint, by recipe."""
    return {}


@pytest.mark.parametrize("recipe", RESUMED)
@pytest.mark.parametrize("kill", [0, 4, 13])
def test_a_run_killed_at_a_step_and_resumed_ends_in_the_same_bits(tmp_path, kill, recipe, uninterrupted):
    assert exit_code(killed, recipe, tmp_path, kill, torch.get_num_threads()) == -signal.SIGKILL
    assert torch.load(tmp_path / "checkpoint", weights_only=True)["step"] == kill + 1
    resumed = run(recipe, tmp_path)
    if recipe not in uninterrupted:
        uninterrupted[recipe] = run(recipe)
    assert_same_bits(resumed, uninterrupted[recipe])


@pytest.mark.parametrize("name", ["blocks.0.fc1.bias", "blocks.0.norm.weight", "blocks.0.fc1.weight"])
@pytest.mark.parametrize("frozen", [range(0, 2), range(2, 6), range(2, 20)], ids=["first", "a while", "later"])
def test_parameters_that_are_frozen_or_unfrozen_between_two_refreshes_change_no_bit_of_a_resumed_run(name, frozen):
    recipe = dataclasses.replace(EXACT, every=tb.Every(steps=10))
    results = []
    for stop in (-1, 4):
        net = make_net()
        net.get_parameter(name).requires_grad_(0 not in frozen)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        tb.Balancer(optimizer, net, recipe)
        for step in range(12):
            if step == stop:
                saved = net.state_dict(), optimizer.state_dict()
                net = make_net(1)
                net.get_parameter(name).requires_grad_(step not in frozen)
                optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
                tb.Balancer(optimizer, net, recipe)
                net.load_state_dict(saved[0])
                optimizer.load_state_dict(saved[1])
            net.get_parameter(name).requires_grad_(step not in frozen)
            train(net, optimizer, steps=step + 1, start=step)
        results.append(net.state_dict())
    assert_same_bits(*results)
