"""The optimizer stays the user's: between steps its groups are those of a run without a balancer."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

import tempbalance as tb
from tempbalance.errors import BalanceError, BalanceWarning

from .conftest import Net, assert_same_bits, batches, by_parameter, in_steps, make_net, options, train
from .optimizers import OPTIMIZERS

RECIPE = tb.Recipe(name="test", assignment=tb.assign.Linear(0.5, 1.5), every=tb.Every(steps=3))
NEUTRAL = dataclasses.replace(RECIPE, assignment=tb.assign.Linear(1.0, 1.0))


def two_groups(net: nn.Module, build: Callable[[Any], torch.optim.Optimizer]) -> torch.optim.Optimizer:
    """An optimizer with a group of matrices and one of vectors, as in fine-tuning."""
    matrices = [p for p in net.parameters() if p.ndim > 1]
    return build([{"params": matrices}, {"params": [p for p in net.parameters() if p.ndim < 2], "weight_decay": 0.0}])


class Cosine:
    """A scheduler that keeps base values by position, as timm's and most hand-written ones."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer, self.base = optimizer, [group["lr"] for group in optimizer.param_groups]
        self.steps = 0

    def step(self) -> None:
        self.steps += 1
        for group, base in zip(self.optimizer.param_groups, self.base, strict=True):
            group["lr"] = base * (1 - self.steps / 40)


def ppo(optimizer: torch.optim.Optimizer) -> None:
    """A PPO loop writes to group 0."""
    optimizer.param_groups[0]["lr"] *= 0.9


def dino(optimizer: torch.optim.Optimizer) -> None:
    """DINO schedules the decay of group 0 only."""
    for i, group in enumerate(optimizer.param_groups):
        if i == 0:
            group["weight_decay"] += 0.01


SCHEDULES = {
    "OneCycle with a list": lambda o: lr_scheduler.OneCycleLR(o, max_lr=[1e-2, 2e-2], total_steps=41),
    "LambdaLR with a list": lambda o: lr_scheduler.LambdaLR(o, [lambda s: 0.9**s, lambda s: 0.5**s]),
    "CyclicLR with a list": lambda o: lr_scheduler.CyclicLR(
        o, base_lr=[1e-3, 2e-3], max_lr=[1e-2, 2e-2], step_size_up=3, cycle_momentum=False
    ),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 40),
    "by hand": Cosine,
    "writes to group 0": lambda o: type("PPO", (), {"step": lambda self: ppo(o)})(),
    "decay of group 0": lambda o: type("DINO", (), {"step": lambda self: dino(o)})(),
}
KINDS = {name: OPTIMIZERS[name] for name in ("SGD", "AdamW foreach", "AdamW fused")}


def watched_run(kind: str, schedule: str, recipe: tb.Recipe | None, early: bool) -> tuple[list[Any], Net]:
    """Train, and return the options of all groups after every step and schedule."""
    net = make_net()
    optimizer = two_groups(net, KINDS[kind])
    given = list(optimizer.param_groups)
    scheduler = SCHEDULES[schedule](optimizer) if early else None
    if recipe is not None:
        tb.Balancer(optimizer, net, recipe)
    scheduler = scheduler or SCHEDULES[schedule](optimizer)
    seen = []
    for x, y in batches(12):
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        assert all(ours is theirs for ours, theirs in zip(optimizer.param_groups, given, strict=True))
        seen.append(options(optimizer))
        scheduler.step()
        seen.append(options(optimizer))
        optimizer.zero_grad()
    return seen, net


@pytest.mark.parametrize("early", [True, False], ids=["built before", "built after"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind", KINDS)
def test_groups_and_options_are_those_of_a_run_without_a_balancer(kind, schedule, early):
    plain, net = watched_run(kind, schedule, None, early)
    neutral, same_net = watched_run(kind, schedule, NEUTRAL, early)
    balanced, other_net = watched_run(kind, schedule, RECIPE, early)
    assert plain == neutral == balanced
    assert_same_bits(net.state_dict(), same_net.state_dict())
    assert any(not torch.equal(a, b) for a, b in zip(net.parameters(), other_net.parameters(), strict=True))


def test_a_state_dict_differs_from_a_plain_one_by_one_key(net):
    plain = two_groups(make_net(), OPTIMIZERS["AdamW foreach"]).state_dict()
    optimizer = two_groups(net, OPTIMIZERS["AdamW foreach"])
    tb.Balancer(optimizer, net, RECIPE)
    train(net, optimizer, steps=2)
    first, second = optimizer.state_dict()["param_groups"]
    assert isinstance(first.pop("tempbalance"), str)
    assert [first, second] == plain["param_groups"]


class TestExceptions:
    def unchanged_after(self, net: Net, step: Callable[[torch.optim.Optimizer], Any], **changes: Any) -> None:
        optimizer = two_groups(net, OPTIMIZERS["SGD"])
        given, before = list(optimizer.param_groups), options(optimizer)
        balancer = tb.Balancer(optimizer, net, RECIPE)
        train(net, optimizer, steps=1)
        with pytest.raises(KeyboardInterrupt):
            step(optimizer)
        assert all(ours is theirs for ours, theirs in zip(optimizer.param_groups, given, strict=True))
        assert options(optimizer) == before
        rates = in_steps(optimizer, net)
        train(net, optimizer, steps=2, start=1)
        multipliers = by_parameter(balancer)
        assert rates[0] == {name: 0.01 * multipliers.get(name, 1.0) for name in rates[0]}

    def test_a_closure_that_raises_leaves_the_groups(self, net):
        def closure() -> None:
            raise KeyboardInterrupt

        self.unchanged_after(net, lambda optimizer: optimizer.step(closure))

    def test_a_step_that_raises_leaves_the_groups(self, net, monkeypatch):
        def interrupted(optimizer: torch.optim.Optimizer) -> None:
            def broken(*_: Any, **__: Any) -> None:
                raise KeyboardInterrupt

            with monkeypatch.context() as patch:
                patch.setattr(importlib.import_module("torch.optim.sgd"), "sgd", broken)
                optimizer.step()

        self.unchanged_after(net, interrupted)

    def test_a_hook_of_the_user_that_raises_leaves_the_groups(self, net):
        def interrupted(optimizer: torch.optim.Optimizer) -> None:
            def broken(*_: Any) -> None:
                raise KeyboardInterrupt

            handle = optimizer.register_step_pre_hook(broken)
            try:
                optimizer.step()
            finally:
                handle.remove()

        self.unchanged_after(net, interrupted)


def test_user_code_in_a_closure_sees_the_groups_and_rates_of_the_user(net):
    optimizer = two_groups(net, OPTIMIZERS["SGD"])
    given = list(optimizer.param_groups)
    tb.Balancer(optimizer, net, RECIPE)
    seen = []

    def closure() -> torch.Tensor:
        seen.append((list(optimizer.param_groups), [group["lr"] for group in optimizer.param_groups]))
        optimizer.param_groups[0]["lr"] *= 0.5  # applies to this step
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        return loss

    ((x, y),) = batches(1)
    before = net.head.bias.detach().clone(), net.blocks[0]["fc1"].weight.detach().clone()
    assert optimizer.step(closure=closure) > 0
    assert all(ours is theirs for ours, theirs in zip(seen[0][0], given, strict=True))
    assert seen[0][1] == [0.01, 0.01]
    moved = (before[0] - net.head.bias.detach()) / net.head.bias.grad
    torch.testing.assert_close(moved, torch.full_like(moved, 0.01), rtol=1e-3, atol=0)
    assert [group["lr"] for group in optimizer.param_groups] == [0.005, 0.01]


def test_an_optimizer_whose_step_calls_that_of_its_base_class_counts_once(net):
    class Twice(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    torch.optim.SGD(net.parameters(), lr=0.1)  # its step has hooks now, and so has that of the subclass
    optimizer = Twice(net.parameters(), lr=0.1)
    balancer = tb.Balancer(optimizer, net, RECIPE)
    train(net, optimizer, steps=4)
    assert balancer.state.steps == 4
    assert [refresh.step for refresh in balancer.history] == [0, 3]
    assert len(optimizer.param_groups) == 1


class TestTensorRates:
    @pytest.mark.parametrize("pattern", ["set once", "set every step", "filled by hand"])
    def test_groups_may_share_one_tensor(self, net, pattern):
        optimizer = two_groups(net, lambda p: torch.optim.SGD(p, lr=torch.tensor(0.1)))
        balancer = tb.Balancer(optimizer, net, RECIPE)
        rates, shared = in_steps(optimizer, net), torch.tensor(0.1)
        for group in optimizer.param_groups:
            group["lr"] = shared
        for step in range(3):
            expected = 0.1 / (step + 1)
            if pattern == "set every step":
                for group in optimizer.param_groups:
                    group["lr"] = shared.fill_(expected)
            elif pattern == "filled by hand":
                shared.fill_(expected)
            train(net, optimizer, steps=step + 1, start=step)
            rate = 0.1 if pattern == "set once" else expected
            multipliers = by_parameter(balancer)
            assert rates[-1] == pytest.approx({name: rate * multipliers.get(name, 1.0) for name in rates[-1]})
            assert all(
                group["lr"] is shared and float(shared) == pytest.approx(rate) for group in optimizer.param_groups
            )

    def test_a_rate_may_become_a_tensor_and_a_number_again(self, net):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, foreach=False)
        balancer = tb.Balancer(optimizer, net, RECIPE)
        rates = in_steps(optimizer, net)
        for step, lr in enumerate((0.1, torch.tensor(0.2), torch.tensor(0.3, dtype=torch.float64), 0.4)):
            optimizer.param_groups[0]["lr"] = lr
            train(net, optimizer, steps=step + 1, start=step)
            multipliers = by_parameter(balancer)
            assert rates[-1] == pytest.approx({name: float(lr) * multipliers.get(name, 1.0) for name in rates[-1]})
            assert optimizer.param_groups[0]["lr"] is lr


def test_a_scaler_that_skips_fused_steps_changes_no_bit():
    results = []
    for recipe in (None, NEUTRAL):
        net = make_net()
        optimizer = two_groups(net, OPTIMIZERS["AdamW fused"])
        if recipe is not None:
            tb.Balancer(optimizer, net, recipe)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4, growth_interval=2)
        for step, (x, y) in enumerate(batches(9)):
            loss = nn.functional.cross_entropy(net(x), y)
            scaler.scale(loss * (float("inf") if step in (2, 5) else 1.0)).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        results.append((net.state_dict(), scaler.get_scale()))
    assert results[0][1] == results[1][1]
    assert_same_bits(results[0][0], results[1][0])


class TestCopies:
    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deep", "pickle"])
    def test_a_copy_of_an_optimizer_says_that_it_is_not_balanced(self, net, copied):
        optimizer = two_groups(net, OPTIMIZERS["AdamW foreach"])
        balancer = tb.Balancer(optimizer, net, RECIPE)
        train(net, optimizer, steps=2)
        with pytest.warns(BalanceWarning, match="the copy of a balanced optimizer is not balanced"):
            other = copied(optimizer)
        assert options(other) == options(optimizer)
        for group in other.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.ones_like(parameter)
        rates = [group["lr"] for group in other.param_groups]
        other.step()
        assert (balancer.state.steps, [group["lr"] for group in other.param_groups]) == (2, rates)
        train(net, optimizer, steps=3, start=2)
        assert balancer.state.steps == 3

    def test_a_balanced_pair_of_model_and_optimizer_can_be_copied_and_balanced_again(self, net):
        optimizer = two_groups(net, OPTIMIZERS["AdamW foreach"])
        balancer = tb.Balancer(optimizer, net, RECIPE)
        train(net, optimizer, steps=2)
        with pytest.warns(BalanceWarning, match="not balanced"):
            other_net, other = copy.deepcopy((net, optimizer))
        second = tb.Balancer(other, other_net, RECIPE)
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for each, opt in ((net, optimizer), (other_net, other)):
            train(each, opt, steps=7, start=2)
        assert_same_bits(net.state_dict(), other_net.state_dict())
        assert second.units == balancer.units

    @pytest.mark.filterwarnings("ignore:the copy of a balanced optimizer")
    def test_a_copy_of_a_balancer_keeps_its_results_and_cannot_refresh(self, net):
        balancer = tb.Balancer(two_groups(net, OPTIMIZERS["SGD"]), net, RECIPE)
        balancer.refresh()
        for other in (copy.deepcopy(balancer), pickle.loads(pickle.dumps(balancer))):
            assert repr(other.units) == repr(balancer.units)
            assert repr(other.history) == repr(balancer.history)
            with pytest.raises(BalanceError, match=r"removed .* or is a copy: build a new Balancer"):
                other.refresh()

    def test_a_removed_balancer_cannot_refresh(self, net):
        balancer = tb.Balancer(two_groups(net, OPTIMIZERS["SGD"]), net, RECIPE)
        balancer.remove()
        with pytest.raises(BalanceError, match=r"removed .* build a new Balancer"):
            balancer.refresh()
        balancer.remove()  # may be called twice


class TestRemoved:
    def test_removing_puts_step_and_state_back(self, net):
        optimizer = two_groups(net, OPTIMIZERS["SGD"])
        before = dict(vars(optimizer))
        balancer = tb.Balancer(optimizer, net, dataclasses.replace(RECIPE, tolerance=0.1))
        train(net, optimizer, steps=2)
        balancer.remove()
        assert {key for key in vars(optimizer) if vars(optimizer)[key] is not before.get(key)} == set()
        assert "tempbalance" not in optimizer.state_dict()["param_groups"][0]
        copy.deepcopy(optimizer)  # without a warning

    def test_a_scheduler_keeps_its_own_step(self, net):
        optimizer = two_groups(net, OPTIMIZERS["SGD"])
        scheduler = lr_scheduler.StepLR(optimizer, 1)
        wrapped = vars(optimizer)["step"]
        balancer = tb.Balancer(optimizer, net, RECIPE)
        later = lr_scheduler.StepLR(optimizer, 1)
        balancer.remove()
        train(net, optimizer, scheduler, steps=2)
        later.step()
        assert wrapped is not None
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1e-5, 1e-5])


@pytest.mark.parametrize("convert", [nn.Module.double, nn.Module.bfloat16, lambda net: net.to(torch.float16)])
@pytest.mark.parametrize("kind", ["weights", "update"])
def test_a_model_may_be_converted_after_the_balancer_was_built(net, convert, kind):
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    recipe = dataclasses.replace(RECIPE, tolerance=0.2, spectrum_of=kind, every=tb.Every(steps=1))
    balancer = tb.Balancer(optimizer, net, recipe)
    train(net, optimizer, steps=2)
    optimizer.zero_grad()
    convert(net)
    dtype = next(net.parameters()).dtype
    for x, y in batches(3):
        nn.functional.cross_entropy(net(x.to(dtype)), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert len(balancer.history) == 5
    assert balancer.history[2].measured == 6  # of 8: all that have a fit, because the old copies have another dtype


class TestRemovedInsideAStep:
    def check(self, net: Net, optimizer: torch.optim.Optimizer, balancer: tb.Balancer, given: list[Any]) -> None:
        assert all(ours is theirs for ours, theirs in zip(optimizer.param_groups, given, strict=True))
        assert "tempbalance" not in optimizer.state_dict()["param_groups"][0]
        steps = len(balancer.history)
        train(net, optimizer, steps=6, start=2)
        assert len(balancer.history) == steps

    def test_a_closure_may_remove_the_balancer(self, net):
        optimizer = two_groups(net, OPTIMIZERS["SGD"])
        given = list(optimizer.param_groups)
        balancer = tb.Balancer(optimizer, net, RECIPE)
        optimizer.step(balancer.remove)
        self.check(net, optimizer, balancer, given)

    def test_a_function_that_is_called_at_a_refresh_may_remove_the_balancer(self, net):
        optimizer = two_groups(net, OPTIMIZERS["SGD"])
        given, holder = list(optimizer.param_groups), []
        holder.append(tb.Balancer(optimizer, net, RECIPE, on_refresh=[lambda _: holder[0].remove()]))
        optimizer.step()
        self.check(net, optimizer, holder[0], given)


def test_options_that_the_optimizer_removes_and_arrays_among_the_options_are_followed(net):
    class Odd(torch.optim.SGD):
        """Removes an option in its second step, and has an array for another."""

        def step(self, closure: Any = None) -> None:
            for group in self.param_groups:
                if group.pop("once", None) is None:
                    group["array"] = np.arange(3)

    optimizer = Odd(net.parameters(), lr=0.1)
    optimizer.param_groups[0].update(once=1, array=np.zeros(3))
    tb.Balancer(optimizer, net, RECIPE)
    optimizer.step()
    assert "once" not in optimizer.param_groups[0]
    optimizer.step()
    assert optimizer.param_groups[0]["array"].tolist() == [0, 1, 2]
    optimizer.step()
    optimizer.state_dict()
