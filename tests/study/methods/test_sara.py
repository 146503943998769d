import copy

import pytest
import torch
from torch import nn

from tempbalance.study import Training
from tempbalance.study.methods import SaRA

STEPS = 6


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 80), nn.Tanh(), nn.Linear(80, 70), nn.Tanh(), nn.Linear(70, 2))


def smallest(net, share):
    sizes = torch.cat([net[place].weight.detach().abs().flatten() for place in (0, 2)]).sort().values
    return sizes[round(share * len(sizes)) - 1]


def test_sara_trains_the_smallest_entries_and_half_way_fixes_those_that_have_grown(net):
    before, threshold = copy.deepcopy(net), smallest(net, 0.2)
    sara = SaRA(share=0.2, strength=0.0)
    model = sara.prepare(net, Training(0, 2, STEPS // 2))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02, weight_decay=0.5)
    weights, states = [], []
    for step in range(STEPS):
        model(torch.ones(3, 20) * (step + 1)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        sara.after_step(model, [optimizer])
        weights.append([model[place].weight.detach().clone() for place in (0, 2)])
        states.append(len(optimizer.state))
    assert states[STEPS // 2 - 1] == states[0] - 2  # of both layers, but not of the head
    after = sara.finish(model, [])
    for place, half, last in zip((0, 2), weights[STEPS // 2 - 1], weights[-1], strict=True):
        old = before[place].weight
        small = old.abs() <= threshold
        assert torch.equal(last[~small], old[~small])
        assert (last[small] != old[small]).any()
        grown = small & (half.abs() > threshold)
        assert grown.any() and torch.equal(last[grown], half[grown])
        assert (last[small & ~grown] != half[small & ~grown]).any()
        assert torch.equal(after[place].weight, last)
        assert torch.equal(after[place].bias, before[place].bias)
    assert not torch.equal(after[4].weight, before[4].weight)


def test_the_penalty_is_the_nuclear_norm_of_the_small_entries_of_a_large_layer(net):
    threshold = smallest(net, 0.1)
    weight = net[2].weight.detach().clone()  # the only one with more than 64 rows and columns
    sara = SaRA(share=0.1, strength=0.25)
    sara.prepare(net, Training(0, 1, 1))
    small = torch.where(weight.abs() <= threshold, weight, 0.0)
    found = sara.loss(net, None, None, torch.tensor(1.0))
    torch.testing.assert_close(found, 1 + 0.25 * torch.linalg.svdvals(small).sum())


def test_sara_needs_a_layer_besides_the_head():
    with pytest.raises(ValueError, match="sara needs a model with a linear layer besides the head"):
        SaRA().prepare(nn.Sequential(nn.Linear(4, 2)), Training(0, 1, 1))
