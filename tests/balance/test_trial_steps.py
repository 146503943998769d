"""Optimizers that compute over whole groups, or ignore what is multiplied, are found by steps of a small copy."""

from __future__ import annotations

import copy
import math
import random
import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tempbalance as tb
from tempbalance.balance.trial_steps import check_by_steps
from tempbalance.errors import BalanceError

from .conftest import Net

RECIPE = tb.Recipe(name="test", assignment=tb.assign.Linear(0.5, 1.5))


class Plain(torch.optim.Optimizer):
    """SGD with a weight decay; the base of the following."""

    def __init__(self, params: Any, lr: float = 0.1, weight_decay: float = 0.01, **more: Any) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, **more})

    def scale(self, group: dict[str, Any]) -> Any:
        """Return a factor of the steps of a group."""
        return 1.0

    def move(self, group: dict[str, Any], p: Tensor) -> Tensor:
        """Return a step."""
        return group["lr"] * (p.grad + group["weight_decay"] * p)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            scale = self.scale(group)
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(scale * self.move(group, p))


class Ignores(Plain):
    def move(self, group, p):
        return 1e-3 * p.grad


class IgnoresDecay(Plain):
    def move(self, group, p):
        return group["lr"] * p.grad


class NormOfGroup(Plain):
    def scale(self, group):
        return 1 / sum(p.grad.norm() for p in group["params"] if p.grad is not None)


class NormOfAll(Plain):
    """Sums over all parameters, one after the other: the same with other groups."""

    def scale(self, group):
        return 1 / sum(p.grad.norm() for g in self.param_groups for p in g["params"] if p.grad is not None)


class ListByGroup(Plain):
    """Like AdaBound: parameters of groups without an entry are not trained."""

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.base_rates = [group["lr"] for group in self.param_groups]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group, _ in zip(self.param_groups, self.base_rates, strict=False):
            for p in group["params"]:
                p.sub_(group["lr"] * p.grad)


class IndexByGroup(ListByGroup):
    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for i, group in enumerate(self.param_groups):
            for p in group["params"]:
                p.sub_(group["lr"] * p.grad * (1 + self.base_rates[i]))


class FirstForAll(Plain):
    """Like DAdaptSGD: the weight decay of the first group is that of all."""

    def move(self, group, p):
        return super().move({**group, "weight_decay": self.param_groups[0]["weight_decay"]}, p)


class DecaysMatrices(Plain):
    def move(self, group, p):
        return super().move(group if p.ndim > 1 else {**group, "weight_decay": 0.0}, p)


class OneValue(Plain):
    """Like Prodigy."""

    def scale(self, group):
        if len({each["lr"] for each in self.param_groups}) > 1:
            raise RuntimeError("only one lr is supported")
        return 1.0


class NeedsClosure(NormOfGroup):
    def step(self, closure):
        closure()
        super().step()


class Warns(Plain):
    def move(self, group, p):
        print("a step")
        torch.randn(3), np.random.random(), random.random()
        return super().move(group, p)


class RandomByGroup(Plain):
    def scale(self, group):
        return 1.0 + torch.rand(())


class RandomByParameter(Plain):
    def move(self, group, p):
        return super().move(group, p) + 0.01 * torch.randn_like(p)


class Explodes(Plain):
    def scale(self, group):
        return math.inf


class CannotBeCopied(Ignores):
    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.lock = threading.Lock()


class Late(Ignores):
    """Moves nothing in its first steps."""

    def move(self, group, p):
        self.state[p]["step"] = self.state[p].get("step", 0) + 1
        return super().move(group, p) * (self.state[p]["step"] > 100)


BAD = {
    Ignores: "Ignores ignores the lr of its groups: use another optimizer",
    NormOfGroup: "NormOfGroup makes other steps if its parameter groups are split",
    RandomByGroup: "RandomByGroup makes other steps if its parameter groups are split",
    ListByGroup: "ListByGroup makes other steps if its parameter groups are split",
    IndexByGroup: "IndexByGroup fails with several parameter groups: list index out of range",
    OneValue: "OneValue fails with different values of lr: only one lr is supported",
    NeedsClosure: "NeedsClosure makes other steps",
}


@pytest.mark.parametrize("cls", BAD)
def test_an_optimizer_that_cannot_be_split_is_refused_and_unchanged(net: Net, cls):
    optimizer = cls(net.parameters())
    before = {key: repr(value) for key, value in vars(optimizer).items()}
    weights = copy.deepcopy(net.state_dict())
    with pytest.raises(BalanceError, match=BAD[cls]):
        tb.Balancer(optimizer, net, RECIPE)
    assert {key: repr(value) for key, value in vars(optimizer).items()} == before
    assert all(torch.equal(weights[name], value) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    "cls", [Plain, IgnoresDecay, NormOfAll, Warns, RandomByParameter, Explodes, CannotBeCopied, Late]
)
def test_other_optimizers_are_accepted(net: Net, cls):
    tb.Balancer(cls(net.parameters()), net, RECIPE)


def test_each_option_is_checked(net: Net):
    with pytest.raises(BalanceError, match="IgnoresDecay ignores the weight_decay of its groups"):
        check_by_steps(IgnoresDecay(net.parameters()), ["lr", "weight_decay"])
    with pytest.raises(BalanceError, match="FirstForAll ignores the weight_decay of its groups"):
        check_by_steps(FirstForAll(net.parameters()), ["lr", "weight_decay"])
    check_by_steps(OneValue(net.parameters()), ["weight_decay"])


@pytest.mark.parametrize("group_by", ["one", "each", "kind"])
def test_decay_of_matrices_only_is_an_effect(net: Net, group_by):
    parameters = list(net.parameters())
    vectors = [p for p in parameters if p.ndim < 2]
    groups = {
        "one": [{"params": parameters}],
        "each": [{"params": [p]} for p in parameters],
        "kind": [{"params": vectors}, {"params": [p for p in parameters if p.ndim > 1]}],
    }
    check_by_steps(DecaysMatrices(groups[group_by]), ["lr", "weight_decay"])


def test_one_parameter_is_enough(net: Net):
    check_by_steps(Plain([net.head.weight]), ["lr", "weight_decay"])


@pytest.mark.parametrize("lr", [0.0, 1e-9, torch.tensor(0.0)], ids=["zero", "tiny", "tensor"])
def test_the_rate_of_a_warm_up_does_not_matter(net: Net, lr):
    check_by_steps(Plain(net.parameters(), lr=lr), ["lr"])
    with pytest.raises(BalanceError, match="other steps"):
        check_by_steps(NormOfGroup(net.parameters(), lr=lr), ["lr"])


def test_nothing_outside_the_copy_changes(net: Net, capfd):
    optimizer = Warns(net.parameters())
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    calls = []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    optimizer.step()
    capfd.readouterr()
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    weights = copy.deepcopy(net.state_dict())
    check_by_steps(optimizer, ["lr"])
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all()
    assert states[2] == random.getstate()
    assert all(torch.equal(weights[name], value) for name, value in net.state_dict().items())
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in net.parameters())
    assert (len(calls), capfd.readouterr().out) == (1, "")


def test_parameters_of_any_kind_are_accepted():
    parameters = [nn.Parameter(torch.randn(3, 4, dtype=dtype)) for dtype in (torch.bfloat16, torch.complex64)]
    check_by_steps(Plain([*parameters, nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.empty(0, 3))]), ["lr"])
    check_by_steps(Plain([nn.Parameter(torch.ones(2, device="meta"))]), ["lr"])
