"""A training that is killed in the middle of a step and resumed from its last checkpoint ends in the same bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

import tempbalance as tb

from .conftest import same, states_of

Weights = dict[str, torch.Tensor]
RECIPE = tb.Recipe(name="test", assignment=tb.assign.Linear(0.5, 1.5), every=tb.Every(steps=2), ramp=2, tolerance=0.2)
KILL, SAVE = 8, 3  # optimizer steps; the last checkpoint before it is that of step 6


def at_step(kill: int) -> Any:
    """Counts optimizer steps by a hook that every refresh leaves alone, and dies in one of them."""
    taken = 0

    def note(*_: Any) -> None:
        nonlocal taken
        taken += 1
        if taken == kill:
            os.kill(os.getpid(), signal.SIGKILL)

    return note


def train_with_transformers(
    folder: Path, delay: int, save: bool = True, kill: int = 0, resume: bool = False
) -> dict[str, torch.Tensor]:
    from . import test_transformers as tests

    saving = {"save_strategy": "steps", "save_steps": SAVE} if save else {}
    trainer = tests.make_trainer(folder, RECIPE, delay=delay, max_steps=12, **saving)
    if kill:
        trainer.create_optimizer()
        trainer.optimizer.register_step_post_hook(at_step(kill))
    trainer.train(resume_from_checkpoint=True if resume else None)
    return states_of(trainer.model)


def train_with_lightning(
    folder: Path, delay: int, save: bool = True, kill: int = 0, resume: bool = False
) -> dict[str, torch.Tensor]:
    import lightning.pytorch as pl

    from . import test_lightning as tests

    class Note(pl.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            if kill:
                trainer.optimizers[0].register_step_post_hook(at_step(kill))

    callbacks: list[Any] = [tests.BalanceCallback(RECIPE, delay=delay), Note()]
    if save:
        callbacks.append(
            pl.callbacks.ModelCheckpoint(folder, filename="{step}", every_n_train_steps=SAVE, save_last=True)
        )
    settings = {"enable_checkpointing": save, "ckpt_path": folder / "last.ckpt" if resume else None}
    torch.manual_seed(0)
    return states_of(tests.fit(pl, folder, *callbacks, **settings))


@pytest.mark.filterwarnings("ignore")  # both frameworks remark that a run starts in the middle of an epoch
@pytest.mark.parametrize("delay", [0, 2], ids=["in place", "beside training"])
@pytest.mark.parametrize("train", [train_with_transformers, train_with_lightning])
def test_killed_and_resumed_it_ends_in_the_same_bits(train, delay: int, tmp_path: Path):
    program = f"""
        import sys, torch, warnings
        from pathlib import Path
        warnings.simplefilter("ignore")
        sys.path.insert(0, {str(Path(__file__).parents[1])!r})
        torch.set_num_threads({torch.get_num_threads()})
        from integrations.test_killed import {train.__name__}
        {train.__name__}(Path({str(tmp_path)!r}), {delay}, kill={KILL})
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert same(train(tmp_path, delay, resume=True), train(tmp_path / "whole", delay, save=False))
