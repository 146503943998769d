"""The Hugging Face Trainer with DDP, and Lightning with DDP and FSDP2, in two gloo processes."""

from __future__ import annotations

import dataclasses
import importlib
import os
import socket
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

import tempbalance as tb

from .loops import RECIPE, equal, full_tensor, state_of
from .worlds import fresh_world, run

NEUTRAL = dataclasses.replace(RECIPE, assignment=tb.assign.Linear(1.0, 1.0))


def set_up(module: str, port: int) -> None:
    """Set what torchrun sets, and import the framework."""
    rank = str(dist.get_rank())
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "HF_HUB_OFFLINE": "1"}
    warnings.simplefilter("ignore")  # of the frameworks
    importlib.import_module(module)
    # Transformers 5.17 resumes an optimizer on "cpu:0", which torch does not know.
    torch.serialization.register_package(0, lambda _: None, lambda storage, at: storage if at == "cpu:0" else None)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def with_transformers(folder: Path, recipe: tb.Recipe | None, resume: bool) -> tuple[Any, Any]:
    from integrations import test_transformers as tests

    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "ddp_backend": "gloo"}
    trainer = tests.make_trainer(folder, recipe, **settings)
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-3") if resume else None)
    assert type(trainer.model_wrapped).__name__ == "DistributedDataParallel"
    return trainer.model, getattr(trainer, "balancer", None)


def with_lightning(folder: Path, recipe: tb.Recipe | None, resume: bool, strategy: Any = "ddp") -> tuple[Any, Any]:
    import lightning.pytorch as pl

    from integrations import test_lightning as tests

    module = tests.make_module(pl)
    if strategy != "ddp":
        module.configure_model = lambda: fully_shard(module.net, mesh=module.device_mesh["data_parallel"])
    callback = tests.BalanceCallback(recipe) if recipe is not None else None
    save = pl.callbacks.ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    settings = {"strategy": strategy, "devices": 2, "max_epochs": 2, "enable_checkpointing": True}
    trainer = tests.make_trainer(pl, folder, *filter(None, [callback, save]), **settings)
    trainer.fit(module, tests.loader(), ckpt_path=folder / "epoch=0.ckpt" if resume else None)
    return module, callback.balancer if callback else None


def with_lightning_and_fsdp(folder: Path, recipe: tb.Recipe | None, resume: bool) -> tuple[Any, Any]:
    import lightning.pytorch as pl

    strategy = pl.strategies.ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    return with_lightning(folder, recipe, resume, strategy)


def trained(train: Any, folder: Path, recipe: tb.Recipe | None, resume: bool = False) -> dict[str, Any]:
    model, balancer = train(folder, recipe, resume)
    dist.barrier()
    return {
        "weights": {name: full_tensor(tensor) for name, tensor in model.named_parameters()},
        "state": state_of(balancer) if balancer else None,
        "steps": [refresh.step for refresh in balancer.history] if balancer else None,
    }


@pytest.mark.slow
@pytest.mark.parametrize("train", [with_transformers, with_lightning, with_lightning_and_fsdp])
def test_a_distributed_run_is_neutral_balances_and_resumes(train, tmp_path):
    module = "transformers" if train is with_transformers else "lightning.pytorch"
    pytest.importorskip(module)
    with fresh_world(2):
        run(2, set_up, module, free_port())
        plain, plain_too = run(2, trained, train, tmp_path / "plain", None)
        neutral, _ = run(2, trained, train, tmp_path / "neutral", NEUTRAL)
        whole, whole_too = run(2, trained, train, tmp_path / "balanced", RECIPE)
        resumed, _ = run(2, trained, train, tmp_path / "balanced", RECIPE, True)  # after the first of two epochs
    assert equal(plain, plain_too)
    assert equal(plain["weights"], neutral["weights"])
    assert equal(whole, whole_too)
    assert not equal(plain["weights"], whole["weights"])
    assert (whole["steps"], resumed["steps"]) == ([0, 3], [3])
    assert equal(whole["weights"], resumed["weights"])
    assert equal(whole["state"], resumed["state"])
