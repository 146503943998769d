"""A small network whose layers differ, and recipes for it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import tempbalance as tb
from tempbalance.layers import parameter_names

os.environ["HF_HUB_OFFLINE"] = "1"

NEUTRAL = tb.assign.Linear(1.0, 1.0)


@pytest.fixture(autouse=True)
def _wandb_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """For these tests only: otherwise, a later import of Transformers prints a line about it."""
    monkeypatch.setenv("WANDB_MODE", "offline")


def spread(model: nn.Module) -> None:
    """Give every weight matrix a spectrum of its own, so that alphas and multipliers differ."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    with torch.no_grad():
        for i, matrix in enumerate(matrices):
            matrix.mul_(torch.linspace(1, 2 + i, len(matrix))[:, None])


def make_net() -> nn.Sequential:
    """Three layers of 24 x 24 and a norm."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(24, 24), nn.LayerNorm(24), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 24))
    spread(net)
    return net


def applied(balancer: tb.Balancer, model: nn.Module, seen: list[dict[str, float]]) -> Any:
    """Record the learning rate of every unit inside a step."""
    parameters = parameter_names(model)
    unit_of = {id(parameters[name]): unit.name for unit in balancer.units for name in unit.parameters}

    def note(inner: Any, *_: Any) -> None:
        rates = {unit_of.get(id(p)): float(group["lr"]) for group in inner.param_groups for p in group["params"]}
        seen.append({unit: rate for unit, rate in rates.items() if unit is not None})

    return balancer.optimizer.register_step_pre_hook(note)


def trained_at_rates_of_units(trainer: Any, steps: int) -> list[tb.balance.Refresh]:
    """Train a trainer that measures every 2 steps, check the rate of every unit, and return its refreshes."""
    seen: list[dict[str, float]] = []
    applied(trainer.balancer, trainer.model, seen)
    trainer.train()
    scheduled = [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry]
    refreshes = [refresh for refresh in trainer.balancer.history for _ in range(2)]
    assert len(seen) == len(scheduled) == len(refreshes) == steps
    for rates, rate, refresh in zip(seen, scheduled, refreshes, strict=True):
        assert rates == {unit.name: rate * unit.multiplier for unit in refresh.units}
    return trainer.balancer.history


def states_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def make_recipe() -> Callable[..., tb.Recipe]:
    """Layers, measured every 2 steps, from half to one and a half."""
    recipe = tb.Recipe(name="test", assignment=tb.assign.Linear(0.5, 1.5), every=tb.Every(steps=2))
    return lambda **changes: replace(recipe, **changes)


@pytest.fixture
def refresh() -> tb.balance.Refresh:
    """Two units with an alpha and one without."""
    units = [("blocks.0", 2.0, 0.5), ("blocks.1", 5.0, 1.5), ("blocks.2", float("nan"), 1.0)]
    return tb.balance.Refresh(
        step=7,
        units=[tb.balance.UnitState(name=n, alpha=a, multiplier=m) for n, a, m in units],
        measured=3,
        seconds=0.25,
    )
