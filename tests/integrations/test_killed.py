"""A run that is killed within a step and resumed from its last checkpoint ends in the same bits."""

from __future__ import annotations

import importlib
import os
import signal
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import tempbalance as tb
from processes import exit_code

from .conftest import same, states_of

Weights = dict[str, torch.Tensor]
RECIPE = tb.Recipe(name="test", assignment=tb.assign.Linear(0.5, 1.5), every=tb.Every(steps=2), ramp=2, tolerance=0.2)
KILL, SAVE = 8, 3  # optimizer steps; the last checkpoint before it is that of step 6


DELAYS = (0, 2)


def at_step(kill: int) -> Any:
    """Return a hook that counts optimizer steps and kills the process at one of them."""
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


def kill_each(train: Any, folder: Path, threads: int) -> None:
    """Start one process per delay, in which training kills itself; the frameworks are imported once."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    importlib.import_module("transformers" if train is train_with_transformers else "lightning.pytorch")
    for delay in DELAYS:
        process = os.fork()
        if process == 0:
            train(folder / str(delay), delay, kill=KILL)
            os._exit(1)
        assert os.WTERMSIG(os.waitpid(process, 0)[1]) == signal.SIGKILL


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # both frameworks warn about a run that starts within an epoch
@pytest.mark.parametrize("train", [train_with_transformers, train_with_lightning])
def test_a_killed_and_resumed_run_ends_in_the_same_bits(train: Any, tmp_path: Path):
    assert exit_code(kill_each, train, tmp_path, torch.get_num_threads()) == 0
    for delay in DELAYS:
        resumed = train(tmp_path / str(delay), delay, resume=True)
        assert same(resumed, train(tmp_path / f"uninterrupted {delay}", delay, save=False)), delay
