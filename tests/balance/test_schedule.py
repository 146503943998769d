"""When a recipe measures; the length of an epoch may be a number, a loader or a function."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

import tempbalance as tb
from tempbalance.errors import BalanceError

from .conftest import train


def steps(net: torch.nn.Module, recipe: tb.Recipe, **options: Any) -> list[int]:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    balancer = tb.Balancer(optimizer, net, dataclasses.replace(recipe, every=tb.Every(epochs=1)), **options)
    train(net, optimizer, steps=12)
    return [refresh.step for refresh in balancer.history]


LOADER = DataLoader(torch.zeros(8, 2), batch_size=2)


@pytest.mark.parametrize(
    "given", [4, LOADER, lambda: 4, lambda: LOADER], ids=["number", "loader", "function", "function of a loader"]
)
def test_the_length_of_an_epoch_may_be_given_in_several_ways(net, recipe, given):
    assert steps(net, recipe, steps_per_epoch=given) == [0, 4, 8]


def test_a_function_is_asked_once_at_the_first_refresh(net, recipe):
    asked = []

    def length() -> int:
        asked.append(1)
        return 4

    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    late = dataclasses.replace(recipe, every=tb.Every(epochs=1), start=2)
    balancer = tb.Balancer(optimizer, net, late, steps_per_epoch=length)
    assert repr(balancer) == "Balancer(test, 8 layers, every 1 epochs)"
    train(net, optimizer, steps=2)
    assert asked == []
    train(net, optimizer, steps=8, start=2)
    assert asked == [1]
    assert [refresh.step for refresh in balancer.history] == [2, 6]
    assert repr(balancer) == "Balancer(test, 8 layers, every 4 steps)"


def test_recipes_in_steps_do_not_ask(net, recipe):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    balancer = tb.Balancer(optimizer, net, recipe, steps_per_epoch=lambda: 1 / 0)
    train(net, optimizer, steps=6)
    assert [refresh.step for refresh in balancer.history] == [0, 5]


def test_unfreezing_asks_at_the_first_forward_pass(net):
    tb.Balancer(
        torch.optim.SGD(net.parameters(), lr=0.01), net, tb.recipes.gradual_unfreezing(), steps_per_epoch=lambda: 3
    )
    net(torch.zeros(1, 8))
    assert [net.head.weight.requires_grad, net.stem.weight.requires_grad] == [True, False]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.zeros(8, 2))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "counts in epochs: pass steps_per_epoch"),
        (0, "must be a positive number of optimizer steps, got 0"),
        (-3, "must be a positive number"),
        (True, "must be a positive number"),
        (lambda: 0, "must be a positive number"),
        (2.5, "has no length"),
        (DataLoader(Stream()), "has no length"),
        (lambda: None, "counts in epochs: pass steps_per_epoch"),
    ],
    ids=["none", "zero", "negative", "bool", "function of zero", "fraction", "stream", "function of none"],
)
def test_a_wrong_length_is_refused(net, recipe, given, message):
    with pytest.raises(BalanceError, match=message):
        steps(net, recipe, steps_per_epoch=given)


def test_a_very_long_epoch_is_no_work(net):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    recipe = tb.Recipe(name="x", assignment=tb.assign.Linear(0.5, 1.5), every=tb.Every(epochs=1e300))
    tb.Balancer(optimizer, net, recipe, steps_per_epoch=10**20)
