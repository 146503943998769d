"""What users do around a balancer: hooks, replaced or frozen parameters, another recipe, masks."""

import copy
import dataclasses
import logging
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import tempbalance as tb
from tempbalance.balance.assign import ByRole, LayerwiseDecay, Linear, Times
from tempbalance.errors import BalanceError, BalanceWarning

from .conftest import Net, batches, make_net, train

RECIPE = tb.Recipe(name="mine", assignment=Linear(0.5, 1.5), every=tb.Every(steps=100))


def multipliers(balancer: tb.Balancer) -> dict[str, float]:
    return {unit.name: unit.multiplier for unit in balancer.units}


def replace_parameters(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put new parameters in the place of all, as Accelerate does for FSDP2."""
    new: dict[nn.Parameter, nn.Parameter] = {}
    for module in net.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            new[parameter] = nn.Parameter(parameter.detach().clone())
            setattr(module, name, new[parameter])
    for group in optimizer.param_groups:
        group["params"] = [new[parameter] for parameter in group["params"]]


def rates(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Make a step of SGD, and return the rate at which each parameter moved."""
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    (x, y) = next(batches(1))
    nn.functional.cross_entropy(net(x), y).backward()
    optimizer.step()
    found = {n: ((before[n] - p.detach()).norm() / p.grad.norm()).item() for n, p in net.named_parameters()}
    optimizer.zero_grad()
    return found


def test_a_scheduler_in_a_hook_after_the_step_sees_the_users_groups() -> None:
    seen = []
    for balanced in (False, True):
        net = make_net()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        optimizer.register_step_post_hook(lambda *_, scheduler=scheduler: scheduler.step())
        if balanced:
            tb.Balancer(optimizer, net, RECIPE)
        own: list[float] = []
        train(net, optimizer, steps=4, at_step=lambda _, o=optimizer, own=own: own.append(o.param_groups[0]["lr"]))
        seen.append(own)
    assert seen[0] == seen[1]


def test_a_run_whose_parameters_were_replaced_resumes_with_its_multipliers() -> None:
    states = []
    for _ in range(2):
        net = make_net()
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)
        balancer = tb.Balancer(optimizer, net, RECIPE)
        replace_parameters(net, optimizer)
        if states:
            optimizer.load_state_dict(states[0])
        found = rates(net, optimizer)
        states.append(optimizer.state_dict())
        expected = {name: 1e-2 * unit.multiplier for unit in balancer.units for name in unit.parameters}
        assert expected == pytest.approx({name: found[name] for name in expected}, rel=1e-3)


def test_weight_decays_of_zero_are_said_to_have_no_effect() -> None:
    net = make_net()
    recipe = tb.Recipe(name="mine", assignment=Linear(0.5, 1.5), target="weight_decay")
    balancer = tb.Balancer(torch.optim.AdamW(net.parameters(), weight_decay=0.0), net, recipe)
    with pytest.warns(BalanceWarning, match="weight decay of the optimizer is 0.* set weight_decay"):
        balancer.refresh()
    balancer = tb.Balancer(torch.optim.AdamW(net.parameters(), weight_decay=0.1), net, recipe)
    assert not any("weight decay" in finding.message for finding in balancer.refresh().findings)


class Roles(nn.Module):
    """Layers of known roles, an embedding and a bare parameter."""

    def __init__(self, blocks: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.emb = nn.Embedding(80, 32)
        self.mix = nn.Parameter(torch.randn(32, 32))
        self.layers = nn.ModuleList(
            nn.ModuleDict({"q_proj": nn.Linear(32, 32), "v_proj": nn.Linear(32, 32)}) for _ in range(blocks)
        )
        self.lm_head = nn.Linear(32, 80)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.emb(x) @ self.mix
        for layer in self.layers:
            x = layer["v_proj"](layer["q_proj"](x))
        return self.lm_head(x)


def test_a_role_does_not_contain_what_is_left_out() -> None:
    net = Roles()
    recipe = tb.Recipe(name="mine", assignment=Linear(0.5, 1.5), unit="role", first=False)
    balancer = tb.Balancer(torch.optim.SGD(net.parameters(), lr=0.1), net, recipe)
    inside = {name for unit in balancer.units for name in unit.parameters}
    skipped = {skipped.name for skipped in balancer.skipped}
    assert "emb.weight" in skipped and len(skipped) > 1
    assert not inside & skipped


def test_names_of_units_of_roles_are_unique_and_a_role_has_no_depth() -> None:
    net = Roles()
    by_both = Times(ByRole({"v": 0.5}), Linear(0.5, 1.5))
    recipe = tb.Recipe(name="mine", assignment=by_both, unit="role", first=False, last=False)
    balancer = tb.Balancer(torch.optim.SGD(net.parameters(), lr=0.1), net, recipe)
    assert len({unit.name for unit in balancer.refresh().units}) == len(balancer.units)
    recipe = tb.Recipe(name="mine", assignment=Times(LayerwiseDecay(0.5), Linear(0.5, 1.5)), unit="role")
    with pytest.raises(BalanceError, match="a role is at all depths: use unit='layer'"):
        tb.Balancer(torch.optim.SGD(net.parameters(), lr=0.1), net, recipe)


def test_a_run_that_unfroze_a_part_of_a_block_loads_its_own_state() -> None:
    assignment = Times(LayerwiseDecay(0.9), Linear(0.5, 1.5))
    recipe = tb.Recipe(name="mine", assignment=assignment, every=tb.Every(steps=2))

    def build(*, frozen: bool) -> tuple[Net, torch.optim.Optimizer, tb.Balancer]:
        net = make_net()
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(not (frozen and name.startswith("blocks.0.fc")))
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
        return net, optimizer, tb.Balancer(optimizer, net, recipe)

    net, optimizer, balancer = build(frozen=True)
    train(net, optimizer, steps=3)
    before = multipliers(balancer)
    net.requires_grad_(True)
    train(net, optimizer, steps=6, start=3)
    assert multipliers(balancer).keys() != before.keys()
    for frozen in (True, False):
        _, other, resumed = build(frozen=frozen)
        other.load_state_dict(optimizer.state_dict())
        assert multipliers(resumed) == multipliers(balancer)


def test_blocks_that_are_all_frozen_are_named_as_the_reason() -> None:
    net = make_net()
    net.blocks.requires_grad_(False)
    with pytest.raises(BalanceError, match="none of the model's blocks is trained by this optimizer yet"):
        tb.Balancer(torch.optim.SGD(net.parameters(), lr=0.1), net, tb.recipes.model_balancing(), steps_per_epoch=10)


def test_the_update_of_a_weight_starts_when_it_is_unfrozen() -> None:
    net = make_net()
    net.head.requires_grad_(False)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    recipe = tb.Recipe(name="mine", assignment=Linear(0.5, 1.5), spectrum_of="update", every=tb.Every(steps=10))
    tb.Balancer(optimizer, net, recipe)
    start = net.blocks[0]["fc1"].weight.detach().clone()
    train(net, optimizer, steps=3)
    frozen = make_net().blocks[0]["fc1"].weight
    assert torch.equal(start, frozen)
    net.head.requires_grad_(True)
    start = net.head.weight.detach().clone()
    train(net, optimizer, steps=6, start=3)
    assert torch.equal(optimizer.state[net.head.weight]["tempbalance_start"], start)


def test_a_layer_with_a_mask_is_measured_at_every_refresh() -> None:
    """Its weight changes with the mask, which no step of the optimizer does."""
    net = nn.Sequential(*(nn.Linear(64, 64) for _ in range(2)))
    prune.l1_unstructured(net[0], "weight", amount=0.1)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-6)
    recipe = tb.Recipe(name="mine", assignment=Linear(0.5, 1.5), tolerance=0.5)
    balancer = tb.Balancer(optimizer, net, recipe)
    net(torch.ones(1, 64)).sum().backward()
    optimizer.step()
    before = balancer.units[0].alpha
    prune.l1_unstructured(net[0], "weight", amount=0.3)
    refresh = balancer.refresh()
    assert refresh.measured == 1
    assert refresh.units[0].alpha != before


def test_a_state_of_another_recipe_is_measured_at_the_next_step(caplog: pytest.LogCaptureFixture) -> None:
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    tb.Balancer(optimizer, net, tb.recipes.fixed({"head.weight": 0.25}))
    train(net, optimizer, steps=2)
    other = torch.optim.SGD(net.parameters(), lr=0.1)
    balancer = tb.Balancer(other, net, tb.recipes.fixed({"head.weight": 4.0}))
    with caplog.at_level(logging.WARNING, logger="tempbalance"):
        other.load_state_dict(optimizer.state_dict())
    assert "saved with another recipe (fixed)" in caplog.text
    train(net, other, steps=3, start=2)
    assert next(unit.multiplier for unit in balancer.units if "head.weight" in unit.parameters) == 4.0


def test_parameters_of_no_unit_keep_the_base_rate_beside_a_unit_of_the_whole_model() -> None:
    net = nn.MultiheadAttention(64, 4)
    extra = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([*net.parameters(), extra], lr=1.0)
    balancer = tb.Balancer(optimizer, net, RECIPE)
    x = torch.randn(3, 2, 64)
    net(x, x, x)[0].square().sum().backward()
    extra.grad = torch.ones(3)
    optimizer.step()
    assert multipliers(balancer)[""] != 1.0
    assert extra.tolist() == [0.0, 0.0, 0.0]


def test_an_option_that_is_nan_is_saved() -> None:
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    optimizer.param_groups[0]["note"] = float("nan")
    tb.Balancer(optimizer, net, RECIPE)
    train(net, optimizer, steps=1)
    optimizer.load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("steps", [np.int64(10), 10])
def test_steps_per_epoch_may_be_an_integer_of_numpy(steps: int) -> None:
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    recipe = tb.Recipe(name="mine", assignment=Linear(0.5, 1.5), every=tb.Every(epochs=1))
    assert "every 10 steps" in repr(tb.Balancer(optimizer, net, recipe, steps_per_epoch=steps))


def test_a_fraction_of_steps_per_epoch_is_refused_at_once() -> None:
    net = make_net()
    with pytest.raises(BalanceError, match=r"steps_per_epoch is 12.5"):
        tb.Balancer(torch.optim.SGD(net.parameters(), lr=0.1), net, tb.recipes.model_balancing(), steps_per_epoch=12.5)


def test_a_replaced_parameter_keeps_the_multiplier_of_its_name() -> None:
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    tb.Balancer(optimizer, net, tb.recipes.fixed({"head.weight": 0.25}))
    train(net, optimizer, steps=1)
    old, net.head.weight = net.head.weight, nn.Parameter(net.head.weight.detach().clone())
    group = optimizer.param_groups[0]
    group["params"] = [net.head.weight if p is old else p for p in group["params"]]
    assert rates(net, optimizer)["head.weight"] == pytest.approx(0.25)


def test_a_state_dict_of_inside_a_step_has_the_users_groups() -> None:
    """A signal handler may save a checkpoint there."""
    net, same = make_net(), make_net()
    saved: list[dict[str, Any]] = []
    for each in (net, same):
        optimizer = torch.optim.SGD(each.parameters(), lr=0.1, momentum=0.9)
        tb.Balancer(optimizer, each, tb.recipes.fixed({"head.weight": 0.25}))
        if each is net:
            optimizer.register_step_pre_hook(lambda optimizer, *_: saved.append(optimizer.state_dict()))
        train(each, optimizer, steps=3)
    assert torch.equal(net.head.weight, same.head.weight)
    assert [[group["lr"] for group in state["param_groups"]] for state in saved] == [[0.1]] * 3
    torch.optim.SGD(net.parameters(), lr=1.0).load_state_dict(saved[-1])


@pytest.mark.parametrize("other", [{"windows": tb.FARMS()}, {"estimator": "ks"}, {"spectrum_of": "update"}])
def test_alphas_that_were_measured_in_another_way_are_not_compared(other: dict[str, Any]) -> None:
    recipe = tb.Recipe(name="mine", assignment=Linear(0.5, 1.5), tolerance=1e6, every=tb.Every(steps=100))
    net = make_net()
    first = torch.optim.SGD(net.parameters(), lr=1e-6)
    tb.Balancer(first, net, recipe)
    train(net, first, steps=2)
    second = torch.optim.SGD(net.parameters(), lr=1e-6)
    balancer = tb.Balancer(second, net, dataclasses.replace(recipe, **other))
    second.load_state_dict(first.state_dict())
    train(net, second, steps=3, start=2)
    assert balancer.history[-1].measured == len(balancer.units)


def test_a_copy_of_a_balancer_keeps_its_state() -> None:
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    balancer = tb.Balancer(optimizer, net, RECIPE)
    train(net, optimizer, steps=2)
    assert copy.deepcopy(balancer).state == balancer.state
