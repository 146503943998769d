"""A small network and a loop around it, for every test of the balancer."""

from __future__ import annotations

import copy
import importlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tempbalance as tb
from tempbalance.layers import parameter_names


class Net(nn.Module):
    """Two blocks of two layers with norms, between a stem and a head; the tails of their weights differ."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.stem = nn.Linear(8, width)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"fc1": nn.Linear(width, width), "norm": nn.LayerNorm(width), "fc2": nn.Linear(width, width)})
            for _ in range(3)
        )
        self.head = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block["fc2"](torch.relu(block["norm"](block["fc1"](x))))
        return self.head(x)


def make_net(seed: int = 0, width: int = 24) -> Net:
    torch.manual_seed(seed)
    net = Net(width)
    with torch.no_grad():
        for i, block in enumerate(net.blocks):
            for j, name in enumerate(("fc1", "fc2")):
                block[name].weight.mul_(torch.linspace(1, 2 + 3 * i + 2 * j, width)[:, None])
    return net


def batches(steps: int, seed: int = 1, start: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield batches that depend only on the step."""
    for step in range(start, steps):
        generator = torch.Generator().manual_seed(1000 * seed + step)
        x = torch.randn(16, 8, generator=generator)
        yield x, (x[:, :3] + 0.1 * torch.randn(16, 3, generator=generator)).argmax(1)


def train(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: Any = None,
    *,
    steps: int,
    start: int = 0,
    at_step: Callable[[int], None] = lambda _: None,
) -> None:
    """Train, and check that no step leaves a trace in the groups of the optimizer."""
    given = [(group, set(group)) for group in optimizer.param_groups]
    for step, (x, y) in enumerate(batches(steps, start=start), start):
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        assert len(optimizer.param_groups) == len(given)
        for group, (own, keys) in zip(optimizer.param_groups, given, strict=True):
            assert group is own
            assert set(group) >= keys - {"tempbalance"}
            assert "tempbalance" not in set(group) - keys
        optimizer.zero_grad()
        if scheduler is not None:
            plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
            scheduler.step(*([loss.item()] if plateau else []))
        at_step(step)


def in_steps(optimizer: torch.optim.Optimizer, model: nn.Module, key: str = "lr") -> list[dict[str, float]]:
    """Return a list that is filled with an option of every parameter, by name, inside each step."""
    names = {id(parameter): name for name, parameter in parameter_names(model).items()}
    seen: list[dict[str, float]] = []

    def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        groups = optimizer.param_groups
        seen.append({names.get(id(p), "of no model"): float(group[key]) for group in groups for p in group["params"]})

    optimizer.register_step_pre_hook(note)
    return seen


def by_parameter(balancer: tb.Balancer) -> dict[str, float]:
    """Return the multiplier of every parameter that is in a unit."""
    return {name: unit.multiplier for unit in balancer.units for name in unit.parameters}


def options(optimizer: Any) -> list[dict[str, Any]]:
    """Return a copy of the options of every group."""
    return [{k: copy.deepcopy(v) for k, v in group.items() if k != "params"} for group in optimizer.param_groups]


def assert_same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


@pytest.fixture
def net() -> Net:
    return make_net()


@pytest.fixture
def recipe() -> tb.Recipe:
    """Layers, measured every 5 steps, from half to one and a half."""
    return tb.Recipe(name="test", assignment=tb.assign.Linear(0.5, 1.5), every=tb.Every(steps=5))


@pytest.fixture
def divided(tmp_path: Path) -> Iterator[Any]:
    """The class ZeroRedundancyOptimizer, in a world of one process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch scripts a function there
        cls = importlib.import_module("torch.distributed.optim").ZeroRedundancyOptimizer
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        yield cls
    finally:
        torch.distributed.destroy_process_group()
