"""A small network in DDP or FSDP2, and a loop around it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import tempbalance as tb

RECIPE = tb.Recipe(name="test", assignment=tb.assign.Linear(0.5, 1.5), every=tb.Every(steps=3))
LAZY = dataclasses.replace(RECIPE, tolerance=0.5, every=tb.Every(steps=1))
ENGINES = ("ddp", "fsdp")


class Net(nn.Module):
    """Sizes that four processes cannot divide: 10 and 23 rows, and fewer than processes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(12, 23)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(23, 30), nn.ReLU(), nn.Linear(30, 23)) for _ in range(2))
        self.norm = nn.LayerNorm(23)
        self.neck = nn.Linear(23, 10)
        self.head = nn.Linear(10, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(torch.relu(self.neck(self.norm(x))))


FITTED = ["stem", "blocks.0.0", "blocks.0.2", "blocks.1.0", "blocks.1.2", "neck"]  # the head has too few eigenvalues


def make_net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    net = Net()
    with torch.no_grad():
        for i, name in enumerate(FITTED):
            weight = net.get_submodule(name).weight
            weight.mul_(torch.linspace(1, 2 + i, len(weight))[:, None])
    return net


def wrap(net: nn.Module, engine: str) -> nn.Module:
    if engine == "ddp":
        return DistributedDataParallel(net)
    if engine == "fsdp":
        for block in getattr(net, "blocks", ()):
            fully_shard(block)
        fully_shard(net)
    return net


def make(engine: str = "none", seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = wrap(make_net(seed), engine)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: int,
    *,
    start: int = 0,
    shared: bool = False,
    at_step: Callable[[int], object] = lambda _: None,
) -> None:
    """Train with data that depend on the step, and on the rank unless they are shared."""
    rank = dist.get_rank() if dist.is_initialized() and not shared else 0
    given = list(optimizer.param_groups)
    for step in range(start, steps):
        x = torch.randn(8, 12, generator=torch.Generator().manual_seed(100 * step + rank))
        nn.functional.cross_entropy(model(x), x[:, :3].argmax(1)).backward()
        at_step(step)
        optimizer.step()
        assert all(group is own for group, own in zip(optimizer.param_groups, given, strict=True))
        optimizer.zero_grad()


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().clone()


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name.removeprefix("module."): full_tensor(p) for name, p in model.named_parameters()}


def state_of(balancer: tb.Balancer) -> dict[str, Any]:
    """Return the state of a balancer."""
    return json.loads(balancer.state.to_json())


def units_of(balancer: tb.Balancer) -> list[tuple[str, float, float]]:
    return [(unit.name, unit.alpha, unit.multiplier) for unit in balancer.units]


def alone(weights: dict[str, torch.Tensor], recipe: tb.Recipe = RECIPE) -> list[tuple[str, float, float]]:
    """Return the units that a single process finds for these weights."""
    net = make_net()
    net.load_state_dict(weights)
    balancer = tb.Balancer(torch.optim.AdamW(net.parameters()), net, recipe)
    balancer.refresh()
    return units_of(balancer)


def trained(engine: str, recipe: tb.Recipe | None, steps: int = 7, shared: bool = True) -> dict[str, Any]:
    """Train, and return weights, optimizer state and balancer state."""
    model, optimizer = make(engine)
    balancer = tb.Balancer(optimizer, model, recipe) if recipe is not None else None
    train(model, optimizer, steps, shared=shared)
    return {
        "weights": weights_of(model),
        "moments": [full_tensor(optimizer.state[p]["exp_avg"]) for p in model.parameters()],
        "state": state_of(balancer) if balancer else None,
        "measured": [refresh.measured for refresh in balancer.history] if balancer else None,
    }


def equal(a: Any, b: Any) -> bool:
    """Return whether two results are bit-identical; NaN equals NaN."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return isinstance(b, (list, tuple)) and len(a) == len(b) and all(map(equal, a, b))
    return repr(a) == repr(b)
