"""Every way of saving a distributed optimizer restores the balancer, and the resumed run is bit-identical."""

from __future__ import annotations

import copy
import dataclasses
import io
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)

import tempbalance as tb

from .loops import (
    ENGINES,
    LAZY,
    RECIPE,
    equal,
    full_tensor,
    make,
    make_net,
    state_of,
    train,
    trained,
    weights_of,
    wrap,
)
from .worlds import run

RECIPES = {
    "ramp": dataclasses.replace(RECIPE, ramp=4),
    "tolerance": LAZY,
    "late": dataclasses.replace(LAZY, start=6),  # nothing is measured yet when it is saved
}
STOP, END = 5, 9


class Plain:
    """``optimizer.state_dict()``; with DDP through a file, as is usual."""

    def save(self, model, optimizer, folder):
        saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        if not isinstance(model, nn.parallel.DistributedDataParallel):
            return copy.deepcopy(saved)
        file = io.BytesIO()
        torch.save(saved, file)
        file.seek(0)
        return torch.load(file, weights_only=True)

    def load(self, model, optimizer, saved):
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])


@dataclasses.dataclass
class InMemory:
    """The functions of torch.distributed.checkpoint for state dicts."""

    getting: StateDictOptions = dataclasses.field(default_factory=StateDictOptions)
    setting: StateDictOptions = dataclasses.field(default_factory=StateDictOptions)

    def save(self, model, optimizer, folder):
        saved = (
            get_model_state_dict(model, options=self.getting),
            get_optimizer_state_dict(model, optimizer, options=self.getting),
        )
        return copy.deepcopy(saved)

    def load(self, model, optimizer, saved):
        set_model_state_dict(model, saved[0], options=self.setting)
        set_optimizer_state_dict(model, optimizer, saved[1], options=self.setting)


@dataclasses.dataclass
class OnDisk:
    """A distributed checkpoint, loaded into the state dict of a fresh optimizer."""

    flat: bool

    def save(self, model, optimizer, folder):
        states = get_state_dict(model, optimizer, options=StateDictOptions(flatten_optimizer_state_dict=self.flat))
        dcp.save(dict(zip(("model", "optimizer"), states, strict=True)), checkpoint_id=folder)
        return folder

    def load(self, model, optimizer, folder):
        options = StateDictOptions(flatten_optimizer_state_dict=self.flat)
        states = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer, options=options), strict=True))
        dcp.load(states, checkpoint_id=folder)
        set_state_dict(
            model,
            optimizer,
            model_state_dict=states["model"],
            optim_state_dict=states["optimizer"],
            options=options,
        )


WAYS = {
    "plain": Plain(),
    "sharded": InMemory(),
    "full": InMemory(StateDictOptions(full_state_dict=True), StateDictOptions(full_state_dict=True)),
    "from rank 0": InMemory(
        StateDictOptions(full_state_dict=True, cpu_offload=True),
        StateDictOptions(full_state_dict=True, broadcast_from_rank0=True),
    ),
    "flat": InMemory(
        StateDictOptions(flatten_optimizer_state_dict=True), StateDictOptions(flatten_optimizer_state_dict=True)
    ),
    "disk": OnDisk(flat=False),
    "flat on disk": OnDisk(flat=True),
}


def all_of(model: nn.Module, optimizer: torch.optim.Optimizer, balancer: tb.Balancer) -> dict[str, Any]:
    states = [optimizer.state[p] for p in model.parameters()]
    tensors = [{k: full_tensor(v) for k, v in sorted(state.items()) if isinstance(v, torch.Tensor)} for state in states]
    return {"weights": weights_of(model), "tensors": tensors, "state": state_of(balancer)}


def interrupted(engine: str, recipe: tb.Recipe, folder: str) -> None:
    model, optimizer = make(engine)
    balancer = tb.Balancer(optimizer, model, recipe)
    train(model, optimizer, STOP)
    at_stop = all_of(model, optimizer, balancer)
    saved = {name: way.save(model, optimizer, f"{folder}/{name}") for name, way in WAYS.items()}
    train(model, optimizer, END, start=STOP)
    at_end = all_of(model, optimizer, balancer)
    measured = [refresh.measured for refresh in balancer.history if refresh.step >= STOP]
    assert measured
    assert len({unit.multiplier for unit in balancer.units}) > 2

    for name, way in WAYS.items():
        model, optimizer = make(engine, seed=1)
        balancer = tb.Balancer(optimizer, model, recipe)
        way.load(model, optimizer, saved[name])
        assert equal(all_of(model, optimizer, balancer), at_stop), name
        assert balancer.history == []
        train(model, optimizer, END, start=STOP)
        assert equal(all_of(model, optimizer, balancer), at_end), name
        assert [refresh.measured for refresh in balancer.history] == measured, name


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_resumed_distributed_run_is_bit_identical(engine, recipe, tmp_path):
    run(2, interrupted, engine, RECIPES[recipe], str(tmp_path))
    assert list(Path(tmp_path).iterdir())


def saved_by_some(folder: str) -> dict[str, Any]:
    model, optimizer = make("fsdp")
    balancer = tb.Balancer(optimizer, model, LAZY)
    train(model, optimizer, STOP, shared=True)
    WAYS["disk"].save(model, optimizer, folder)
    train(model, optimizer, END, start=STOP, shared=True)
    return all_of(model, optimizer, balancer)


def loaded_by_others(folder: str) -> dict[str, Any]:
    model, optimizer = make("fsdp", seed=1)
    balancer = tb.Balancer(optimizer, model, LAZY)
    WAYS["disk"].load(model, optimizer, folder)
    train(model, optimizer, END, start=STOP, shared=True)
    return all_of(model, optimizer, balancer)


def test_a_run_resumes_with_another_number_of_processes(tmp_path):
    expected = run(2, saved_by_some, str(tmp_path))[0]
    for rank in run(4, loaded_by_others, str(tmp_path)):
        assert equal(rank, expected)


def saved_before_training(engine: str) -> None:
    results = []
    for saves in (False, True):
        model = wrap(make_net(), engine)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
        refreshes: list[tb.balance.Refresh] = []
        balancer = tb.Balancer(optimizer, model, LAZY, on_refresh=[refreshes.append])
        if saves:
            saved = get_optimizer_state_dict(model, optimizer)  # makes a step with zero rates and gradients
            assert saved["state"]
            assert balancer.history == refreshes == []
            assert state_of(balancer)["steps"] == 0
        train(model, optimizer, 4)
        assert len(balancer.history) == 4
        results.append(all_of(model, optimizer, balancer))
    assert equal(*results)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_step_that_sets_up_a_state_does_not_count(engine):
    run(2, saved_before_training, engine)


def first_step_at_rate_zero(engine: str) -> None:
    model, optimizer = make(engine)
    balancer = tb.Balancer(optimizer, model, RECIPE)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 10)
    assert scheduler.get_last_lr()[0] == 0.0
    train(model, optimizer, 1)
    assert [refresh.step for refresh in balancer.history] == [0]
    assert state_of(balancer)["steps"] == 1


@pytest.mark.parametrize("engine", ENGINES)
def test_a_real_step_at_rate_zero_counts(engine):
    run(2, first_step_at_rate_zero, engine)


def divided_optimizer() -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)  # used by the package itself
        from torch.distributed.optim import ZeroRedundancyOptimizer

    def fresh(seed: int):
        net = make_net(seed)
        optimizer = ZeroRedundancyOptimizer(net.parameters(), torch.optim.AdamW, lr=1e-2, weight_decay=0.1)
        model = wrap(net, "ddp")
        return model, optimizer, tb.Balancer(optimizer, model, RECIPE)

    expected = trained("none", RECIPE, END)
    model, optimizer, balancer = fresh(0)
    train(model, optimizer, STOP, shared=True)
    optimizer.consolidate_state_dict(to=0)
    saved = copy.deepcopy([model.state_dict(), optimizer.state_dict() if dist.get_rank() == 0 else None])
    dist.broadcast_object_list(saved, 0)
    train(model, optimizer, END, start=STOP, shared=True)
    assert equal(weights_of(model), expected["weights"])
    assert equal(state_of(balancer), expected["state"])

    model, optimizer, balancer = fresh(1)
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    train(model, optimizer, END, start=STOP, shared=True)
    assert equal(weights_of(model), expected["weights"])
    assert equal(state_of(balancer), expected["state"])


def test_a_zero_redundancy_optimizer_resumes():
    run(2, divided_optimizer)
