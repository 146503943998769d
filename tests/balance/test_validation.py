"""Optimizers, models and recipes that do not fit together are refused, and the message says what to do."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
import transformers
from torch import nn

import tempbalance as tb
from tempbalance.errors import BalanceError

from .conftest import in_steps, make_net, train


class TestBadInput:
    def test_an_optimizer_of_another_model_is_refused(self, net, recipe):
        optimizer = torch.optim.SGD(make_net(1).parameters(), lr=1.0)
        with pytest.raises(BalanceError, match="no parameter of this model"):
            tb.Balancer(optimizer, net, recipe)

    def test_parameters_of_no_model_keep_their_learning_rate(self, net, recipe):
        extra = nn.Parameter(torch.ones(3))
        optimizer = torch.optim.SGD([*net.parameters(), extra], lr=1.0)
        tb.Balancer(optimizer, net, recipe)
        rates = in_steps(optimizer, net)
        optimizer.step()
        assert rates[0]["of no model"] == 1.0
        assert len(set(rates[0].values())) > 2

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

    def test_layers_frozen_after_the_start_are_skipped_and_join_again(self, net, recipe):
        optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
        balancer = tb.Balancer(optimizer, net, recipe)
        names = [unit.name for unit in balancer.units]
        net.blocks[2].requires_grad_(False)
        balancer.refresh()
        assert not any(unit.name.startswith("blocks.2") for unit in balancer.units)
        assert "frozen" in dict(balancer.skipped)["blocks.2.fc1.weight"]
        net.blocks[2].requires_grad_(True)
        balancer.refresh()
        assert [unit.name for unit in balancer.units] == names

    def test_a_group_added_later_joins_at_the_next_refresh(self, net, recipe):
        late = net.blocks[2]["fc2"]
        optimizer = torch.optim.SGD([p for p in net.parameters() if all(p is not q for q in late.parameters())], lr=1.0)
        balancer = tb.Balancer(optimizer, net, recipe)
        train(net, optimizer, steps=1)
        optimizer.add_param_group({"params": list(late.parameters()), "lr": 0.25})
        rates = in_steps(optimizer, net)
        train(net, optimizer, steps=6, start=1)
        (unit,) = [unit for unit in balancer.units if unit.name == "blocks.2.fc2"]
        assert [rate["blocks.2.fc2.weight"] for rate in rates] == [0.25] * 4 + [0.25 * unit.multiplier]
        assert unit.multiplier != 1.0
        assert [group["lr"] for group in optimizer.param_groups] == [1.0, 0.25]

    def test_an_optimizer_without_step_hooks_is_refused(self, net, recipe):
        class Homemade:
            def __init__(self):
                self.param_groups = [{"params": list(net.parameters()), "lr": 1.0}]

        with pytest.raises(BalanceError, match="Homemade has no step hooks"):
            tb.Balancer(Homemade(), net, recipe)

    def test_an_optimizer_with_a_single_group_is_refused(self, net, recipe):
        with pytest.raises(BalanceError, match="one group"):
            tb.Balancer(torch.optim.LBFGS(net.parameters()), net, recipe)

    def test_an_optimizer_divided_among_processes_is_balanced(self, net, recipe, divided):
        optimizer = divided(net.parameters(), torch.optim.SGD, lr=0.1)
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

    def test_a_state_saved_with_other_units_is_refused(self, net, recipe):
        optimizer = torch.optim.AdamW(net.parameters(), lr=1.0)
        balancer = tb.Balancer(optimizer, net, recipe)
        state = optimizer.state_dict()
        balancer.remove()
        optimizer = torch.optim.AdamW(net.parameters(), lr=1.0)
        tb.Balancer(optimizer, net, dataclasses.replace(recipe, unit="block"))
        with pytest.raises(BalanceError, match="saved with other units, such as 'stem'"):
            optimizer.load_state_dict(state)

    @pytest.mark.parametrize(
        "bad", [{"target": "momentum"}, {"unit": "neuron"}, {"norms": "all"}, {"start": -1}, {"tolerance": -0.1}]
    )
    def test_recipe_options_out_of_range_are_refused(self, recipe, bad):
        with pytest.raises(ValueError, match=r"must be one of|at least 0|0 or more"):
            dataclasses.replace(recipe, **bad)

    @pytest.mark.parametrize("kinds", ["linear", ("linear", "spectral")])
    def test_unknown_kinds_of_weights_are_refused(self, recipe, kinds):
        with pytest.raises(ValueError, match=r"kinds must be None or a tuple of linear, .*spectral_conv.*; got"):
            dataclasses.replace(recipe, kinds=kinds)
