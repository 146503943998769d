"""Gradual unfreezing: frozen parts get no gradient and no state until their turn."""

import copy
import dataclasses
import math
import pickle

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

import tempbalance as tb
from tempbalance.balance import recipes
from tempbalance.errors import BalanceError, BalanceWarning

from .conftest import batches, make_net, train


def parts(net: nn.Module) -> list[list[nn.Parameter]]:
    """Return the parts of the network, the head first."""
    return [list(part.parameters()) for part in (net.head, *reversed(net.blocks), net.stem)]


def trainable(net: nn.Module) -> list[bool]:
    found = [{p.requires_grad for p in part} for part in parts(net)]
    assert all(len(each) == 1 for each in found)
    return [each.pop() for each in found]


class TestUnfreezing:
    STEPS = 14

    def test_one_more_part_is_unfrozen_per_epoch_from_the_head(self, net):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        tb.Balancer(optimizer, net, recipes.gradual_unfreezing(), steps_per_epoch=3)
        net(torch.zeros(1, 8))
        free = [sum(trainable(net))]
        train(net, optimizer, steps=self.STEPS, at_step=lambda _: free.append(sum(trainable(net))))
        assert free == [min(5, 1 + step // 3) for step in range(self.STEPS + 1)]
        assert trainable(net) == sorted(trainable(net), reverse=True)

    def test_gradual_unfreezing_has_discriminative_learning_rates(self, net):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        balancer = tb.Balancer(optimizer, net, recipes.gradual_unfreezing(), steps_per_epoch=3)
        balancer.refresh()
        assert [unit.multiplier for unit in balancer.units] == pytest.approx([2.6**-depth for depth in (4, 3, 2, 1, 0)])

    @pytest.mark.parametrize("to_none", [True, False])
    def test_frozen_parts_get_no_gradient_no_state_and_no_decay(self, net, to_none):
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.5)
        ((x, y),) = batches(1)
        nn.functional.cross_entropy(net(x), y).backward()  # gradients from before, that must not be applied
        tb.Balancer(optimizer, net, recipes.gradual_unfreezing(), steps_per_epoch=2)
        before = copy.deepcopy(net.state_dict())
        for x, y in batches(2):
            loss = nn.functional.cross_entropy(net(x), y)
            loss.backward()
            assert all(p.grad is None for part in parts(net)[1:] for p in part)
            optimizer.step()
            optimizer.zero_grad(set_to_none=to_none)
        moved = {
            name.partition(".")[0] for name, value in net.state_dict().items() if not torch.equal(value, before[name])
        }
        assert moved == {"head"}
        assert set(optimizer.state) == set(net.head.parameters())

    def test_parameters_frozen_by_the_user_stay_frozen(self, net):
        net.blocks[2].requires_grad_(False)
        optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.01)
        balancer = tb.Balancer(optimizer, net, recipes.gradual_unfreezing(), steps_per_epoch=1)
        train(net, optimizer, steps=2)
        assert trainable(net) == [True, False, True, True, False]
        net.head.requires_grad_(False)  # what is free is the user's again
        train(net, optimizer, steps=1)
        balancer.remove()
        assert trainable(net) == [False, False, True, True, True]

    def test_the_topmost_trained_part_is_never_frozen(self, net):
        net.head.requires_grad_(False)
        optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.01)
        tb.Balancer(optimizer, net, recipes.gradual_unfreezing(), steps_per_epoch=2)
        net(torch.zeros(1, 8))
        assert trainable(net) == [False, True, False, False, False]

    def test_removing_the_balancer_unfreezes_all_parts(self, net):
        balancer = tb.Balancer(
            torch.optim.SGD(net.parameters(), lr=0.01), net, recipes.gradual_unfreezing(), steps_per_epoch=2
        )
        net(torch.zeros(1, 8))
        assert trainable(net) == [True, False, False, False, False]
        balancer.remove()
        assert trainable(net) == [True] * 5

    def test_removing_the_balancer_before_the_first_forward_pass_leaves_no_hook(self, net):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        tb.Balancer(optimizer, net, recipes.gradual_unfreezing(), steps_per_epoch=2).remove()
        net(torch.zeros(1, 8))
        assert trainable(net) == [True] * 5

    def test_freezing_starts_with_the_first_call_of_any_module(self, net):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        balancer = tb.Balancer(optimizer, net, recipes.gradual_unfreezing(), steps_per_epoch=2)
        assert trainable(net) == [True] * 5
        net.stem(torch.zeros(1, 8))
        assert trainable(net) == [True, False, False, False, False]
        assert balancer.history == []

    def test_a_distributed_checkpoint_restores_an_unfreezing_run(self, net):
        nets = [net, make_net()]
        optimizers = [torch.optim.AdamW(each.parameters(), lr=3e-3) for each in nets]
        for each, optimizer in zip(nets, optimizers, strict=True):
            tb.Balancer(optimizer, each, recipes.gradual_unfreezing(), steps_per_epoch=3)
        train(net, optimizers[0], steps=8)
        model_state, state = copy.deepcopy(get_state_dict(net, optimizers[0]))
        options = StateDictOptions(strict=False)  # what is frozen has no state
        set_state_dict(nets[1], optimizers[1], model_state_dict=model_state, optim_state_dict=state, options=options)
        for each, optimizer in zip(nets, optimizers, strict=True):
            train(each, optimizer, steps=self.STEPS, start=8)
        assert all(torch.equal(value, nets[1].state_dict()[name]) for name, value in net.state_dict().items())

    def test_frozen_blocks_have_no_alpha(self, net, recipe):
        recipe = dataclasses.replace(recipe, unit="block", every=tb.Every(steps=2), unfreeze=tb.Every(steps=2))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        balancer = tb.Balancer(optimizer, net, recipe)
        train(net, optimizer, steps=7)
        fitted = [sum(math.isfinite(unit.alpha) for unit in refresh.units) for refresh in balancer.history]
        assert fitted == [0, 1, 2, 3]

    def test_gradual_unfreezing_needs_steps_per_epoch(self, net):
        with pytest.raises(BalanceError, match="steps_per_epoch"):
            tb.Balancer(torch.optim.SGD(net.parameters(), lr=0.01), net, recipes.gradual_unfreezing())

    def test_a_loaded_state_sets_the_unfrozen_parts(self, net):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        tb.Balancer(optimizer, net, recipes.gradual_unfreezing(), steps_per_epoch=3)
        early = copy.deepcopy(optimizer.state_dict())
        train(net, optimizer, steps=7)
        late = copy.deepcopy(optimizer.state_dict())
        for state, free in ((early, 1), (late, 3)):
            optimizer.load_state_dict(state)
            net(torch.zeros(1, 8))
            assert sum(trainable(net)) == free


class TestCopies:
    def test_the_forward_pass_of_a_copy_does_not_touch_the_original(self, net):
        tb.Balancer(torch.optim.SGD(net.parameters(), lr=0.01), net, recipes.gradual_unfreezing(), steps_per_epoch=2)
        for copied in (copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))):
            with pytest.warns(BalanceWarning, match="the copy of a model that is unfrozen gradually is not"):
                other = copied(net)
            other(torch.zeros(1, 8))
            assert trainable(net) == trainable(other) == [True] * 5
        net(torch.zeros(1, 8))
        assert trainable(net) == [True, False, False, False, False]
        assert trainable(other) == [True] * 5
