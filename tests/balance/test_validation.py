"""Optimizers, models and recipes that do not fit together are refused, and the message says what to do."""

from __future__ import annotations

import copy
import dataclasses
import logging
import math

import pytest
import torch
import transformers
from torch import nn

import tempbalance as tb
from tempbalance.errors import BalanceError

from .conftest import make_net, train
from .optimizers import SCHEDULERS, assert_same_bits


class TestBadInput:
    def test_an_optimizer_of_another_model_is_refused(self, net, recipe):
        optimizer = torch.optim.SGD(make_net(1).parameters(), lr=1.0)
        with pytest.raises(BalanceError, match="no parameter of this model"):
            tb.Balancer(optimizer, net, recipe)

    def test_parameters_of_no_model_keep_their_learning_rate(self, net, recipe):
        extra = nn.Parameter(torch.ones(3))
        optimizer = torch.optim.SGD([*net.parameters(), extra], lr=1.0)
        balancer = tb.Balancer(optimizer, net, recipe)
        balancer.refresh()
        (group,) = [g for g in optimizer.param_groups if any(p is extra for p in g["params"])]
        assert group["tempbalance"]["multiplier"] == 1.0

    @pytest.mark.parametrize("schedule", SCHEDULERS)
    def test_a_scheduler_built_before_the_balancer_is_refused(self, net, recipe, schedule):
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
        scheduler = SCHEDULERS[schedule](optimizer)
        with pytest.raises(BalanceError, match=r"built on this optimizer before.*schedulers="):
            tb.Balancer(optimizer, net, recipe)
        del scheduler

    @pytest.mark.parametrize("schedule", SCHEDULERS)
    def test_a_scheduler_passed_to_the_balancer_works_as_one_built_later(self, recipe, schedule):
        rates = []
        for early in (True, False):
            net = make_net()
            optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
            scheduler = SCHEDULERS[schedule](optimizer) if early else None
            tb.Balancer(optimizer, net, recipe, schedulers=[scheduler] if early else [])
            scheduler = scheduler or SCHEDULERS[schedule](optimizer)
            seen: list[list[float]] = []
            train(
                net, optimizer, scheduler, steps=30,
                at_step=lambda _, o=optimizer, seen=seen: seen.append([g["lr"] for g in o.param_groups]),
            )  # fmt: skip
            rates.append((seen, net.state_dict()))
        assert rates[0][0] == rates[1][0]
        assert_same_bits(rates[0][1], rates[1][1])

    def test_a_second_balancer_on_one_optimizer_is_refused(self, net, recipe):
        optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
        first = tb.Balancer(optimizer, net, recipe)
        with pytest.raises(BalanceError, match=r"already.*remove\(\)"):
            tb.Balancer(optimizer, net, recipe)
        first.remove()
        tb.Balancer(optimizer, net, recipe)

    def test_a_removed_balancer_leaves_no_state(self, net, recipe):
        optimizer = torch.optim.SGD(net.parameters(), lr=1.0, momentum=0.9)
        balancer = tb.Balancer(optimizer, net, dataclasses.replace(recipe, tolerance=0.1))
        train(net, optimizer, steps=2)
        balancer.remove()
        train(net, optimizer, steps=2)
        assert len(balancer.history) == 1
        assert all("tempbalance" not in group for group in optimizer.param_groups)
        assert all(set(state) == {"momentum_buffer"} for state in optimizer.state.values())

    def test_a_shared_parameter_is_in_the_unit_of_its_first_name(self, net, recipe):
        net.blocks[2]["fc1"] = net.blocks[0]["fc1"]
        optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
        balancer = tb.Balancer(optimizer, net, recipe)
        train(net, optimizer, steps=1)
        assert "blocks.0.fc1" in {unit.name for unit in balancer.units}
        assert "blocks.2.fc1" not in {unit.name for unit in balancer.units}
        assert "tied to blocks.0.fc1.weight" in dict(balancer.skipped)["blocks.2.fc1.weight"]

    def test_a_model_without_weight_matrices_is_refused(self, recipe):
        model = nn.LayerNorm(8)
        with pytest.raises(BalanceError, match="no weight of the model can be balanced"):
            tb.Balancer(torch.optim.SGD(model.parameters(), lr=1.0), model, recipe)

    def test_a_recipe_by_block_refuses_a_model_without_blocks(self, recipe):
        model = nn.Linear(20, 20)
        with pytest.raises(BalanceError, match="unit='layer'"):
            tb.Balancer(torch.optim.SGD(model.parameters(), lr=1.0), model, dataclasses.replace(recipe, unit="block"))

    def test_a_frozen_model_is_refused(self, net, recipe):
        optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
        net.requires_grad_(False)
        with pytest.raises(BalanceError, match="frozen"):
            tb.Balancer(optimizer, net, recipe)

    def test_frozen_layers_are_skipped(self, net, recipe):
        net.blocks[2].requires_grad_(False)
        optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
        balancer = tb.Balancer(optimizer, net, recipe)
        assert not any(unit.name.startswith("blocks.2") for unit in balancer.units)
        assert "frozen" in dict(balancer.skipped)["blocks.2.fc1.weight"]

    def test_layers_frozen_after_the_start_get_multiplier_one(self, net, recipe):
        optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
        balancer = tb.Balancer(optimizer, net, recipe)
        net.blocks[2].requires_grad_(False)
        balancer.refresh()
        late = [unit for unit in balancer.units if unit.name.startswith("blocks.2")]
        assert late
        assert all(math.isnan(unit.alpha) and unit.multiplier == 1.0 for unit in late)

    def test_a_group_added_later_keeps_its_learning_rate_with_one_warning(self, net, recipe, caplog):
        optimizer = torch.optim.SGD(net.blocks.parameters(), lr=1.0)
        tb.Balancer(optimizer, net, recipe)
        optimizer.add_param_group({"params": list(net.head.parameters()), "lr": 0.25})
        rates = []
        optimizer.register_step_pre_hook(lambda o, *_: rates.append(o.param_groups[-1]["lr"]))
        with caplog.at_level(logging.WARNING, "tempbalance"):
            optimizer.step()
            optimizer.step()
        assert rates == [0.25, 0.25]
        assert len([r for r in caplog.records if "added after the balancer" in r.message]) == 1

    def test_an_optimizer_without_step_hooks_is_refused(self, net, recipe):
        class Homemade:
            def __init__(self):
                self.param_groups = [{"params": list(net.parameters()), "lr": 1.0}]

        with pytest.raises(BalanceError, match="Homemade has no step hooks"):
            tb.Balancer(Homemade(), net, recipe)

    def test_an_optimizer_with_a_single_group_is_refused(self, net, recipe):
        with pytest.raises(BalanceError, match="one group"):
            tb.Balancer(torch.optim.LBFGS(net.parameters()), net, recipe)

    def test_an_optimizer_divided_among_processes_needs_param_groups(self, net, recipe, divided):
        with pytest.raises(BalanceError, match="param_groups"):
            tb.Balancer(divided(net.parameters(), torch.optim.SGD, lr=0.1), net, recipe)
        optimizer = divided(tb.balance.param_groups(net, recipe), torch.optim.SGD, lr=0.1)  # as the message says
        balancer = tb.Balancer(optimizer, net, recipe)
        before = copy.deepcopy(net.state_dict())
        train(net, optimizer, steps=1)
        twin = make_net()
        train(twin, torch.optim.SGD(twin.parameters(), lr=0.1), steps=1)
        for unit in balancer.units:
            name = f"{unit.name}.weight"
            moved = (net.state_dict()[name] - before[name]).norm() / (twin.state_dict()[name] - before[name]).norm()
            assert float(moved) == pytest.approx(unit.multiplier, rel=1e-3)

    def test_an_optimizer_without_a_learning_rate_is_refused(self, net, recipe):
        optimizer = transformers.optimization.Adafactor(net.parameters(), lr=None)
        with pytest.raises(BalanceError, match="relative_step=False"):
            tb.Balancer(optimizer, net, recipe)

    def test_an_optimizer_without_weight_decay_is_refused(self, net, recipe):
        optimizer = torch.optim.Rprop(net.parameters())
        with pytest.raises(BalanceError, match="has no weight_decay"):
            tb.Balancer(optimizer, net, dataclasses.replace(recipe, target="weight_decay"))

    def test_a_state_dict_instead_of_a_model_is_refused(self, net, recipe):
        with pytest.raises(BalanceError, match=r"expected the model.*got a OrderedDict"):
            tb.Balancer(torch.optim.SGD(net.parameters(), lr=1.0), net.state_dict(), recipe)

    def test_a_state_saved_without_a_balancer_is_refused(self, net, recipe):
        plain = torch.optim.AdamW(net.parameters(), lr=1.0)
        train(net, plain, steps=1)
        state = plain.state_dict()
        optimizer = torch.optim.AdamW(net.parameters(), lr=1.0)
        balancer = tb.Balancer(optimizer, net, recipe)
        with pytest.raises(BalanceError, match="load it before the Balancer is built"):
            optimizer.load_state_dict(state)
        balancer.remove()
        resumed = torch.optim.AdamW(net.parameters(), lr=1.0)
        resumed.load_state_dict(state)
        tb.Balancer(resumed, net, recipe)  # as the message says
        assert len(resumed.state) == len(list(net.parameters()))

    def test_a_state_saved_with_other_units_is_refused(self, net, recipe):
        optimizer = torch.optim.AdamW(net.parameters(), lr=1.0)
        balancer = tb.Balancer(optimizer, net, recipe)
        state = optimizer.state_dict()
        balancer.remove()
        optimizer = torch.optim.AdamW(net.parameters(), lr=1.0)
        tb.Balancer(optimizer, net, dataclasses.replace(recipe, unit="block"))
        with pytest.raises(BalanceError, match="saved with other parameter groups"):
            optimizer.load_state_dict(state)

    @pytest.mark.parametrize(
        "bad", [{"target": "momentum"}, {"unit": "neuron"}, {"norms": "all"}, {"start": -1}, {"tolerance": -0.1}]
    )
    def test_recipe_options_out_of_range_are_refused(self, recipe, bad):
        with pytest.raises(ValueError, match=r"must be one of|negative"):
            dataclasses.replace(recipe, **bad)

    @pytest.mark.parametrize("kinds", ["linear", ("linear", "spectral")])
    def test_unknown_kinds_of_weights_are_refused(self, recipe, kinds):
        with pytest.raises(ValueError, match=r"kinds must be None or a tuple of linear, .*spectral_conv.*; got"):
            dataclasses.replace(recipe, kinds=kinds)
