import math

import pytest
import torch
from torch import nn

import tempbalance as tb


def test_layers_are_measured_as_a_balancer_measures_them(trained):
    from final_alpha import final_alpha

    found = final_alpha(trained)  # alphas 2.2, 3 and 4, and a random layer
    assert (found["layers"], found["random"]) == (4, 1)
    balancer = tb.Balancer(torch.optim.AdamW(trained.parameters()), trained, tb.recipes.alphadecay())
    refresh = balancer.refresh()
    assert found["imbalance"] == refresh.imbalance > 0.5
    assert found["mean_alpha"] == pytest.approx(sum(unit.alpha for unit in refresh.units) / 4)


def test_an_untrained_network_is_random():
    from final_alpha import final_alpha

    torch.manual_seed(0)
    found = final_alpha(nn.Sequential(nn.Linear(80, 80), nn.Linear(80, 80)))
    assert (found["layers"], found["random"]) == (2, 2)


def test_without_a_layer_that_is_large_enough_there_is_no_alpha():
    from final_alpha import final_alpha

    found = final_alpha(nn.Linear(8, 8))
    assert (found["layers"], found["random"]) == (0, 0)
    assert math.isnan(found["imbalance"])
    assert math.isnan(found["mean_alpha"])


def test_the_model_is_left_as_it_is(trained):
    from final_alpha import final_alpha

    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    final_alpha(trained)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.state_dict().items())
