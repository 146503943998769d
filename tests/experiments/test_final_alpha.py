import math

import pytest
import torch
from torch import nn

import tempbalance as tb


def test_final_alpha_agrees_with_a_balancer(trained):
    from final_alpha import final_alpha

    found = final_alpha(trained)  # alphas 2.2, 3 and 4, and a random layer
    assert (found["layers"], found["random"]) == (4, 1)
    balancer = tb.Balancer(torch.optim.AdamW(trained.parameters()), trained, tb.recipes.alphadecay())
    refresh = balancer.refresh()
    assert found["imbalance"] == refresh.imbalance > 0.5
    assert found["mean_alpha"] == pytest.approx(sum(unit.alpha for unit in refresh.units) / 4)


def test_final_alpha_counts_random_layers():
    from final_alpha import final_alpha

    torch.manual_seed(0)
    found = final_alpha(nn.Sequential(nn.Linear(80, 80), nn.Linear(80, 80)))
    assert (found["layers"], found["random"]) == (2, 2)


def test_final_alpha_of_small_layers_is_nan():
    from final_alpha import final_alpha

    found = final_alpha(nn.Linear(8, 8))
    assert (found["layers"], found["random"]) == (0, 0)
    assert math.isnan(found["imbalance"])
    assert math.isnan(found["mean_alpha"])


def test_final_alpha_does_not_change_the_model(trained):
    from final_alpha import final_alpha

    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    final_alpha(trained)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.state_dict().items())


def test_final_alpha_of_a_diverged_network_is_nan(trained):
    from final_alpha import final_alpha

    for parameter in trained.parameters():
        torch.nn.init.constant_(parameter, math.nan)
    with pytest.warns(tb.errors.NumericsWarning, match="NaN or Inf"):
        found = final_alpha(trained)
    assert (found["layers"], found["random"]) == (0, 0)
    assert math.isnan(found["imbalance"])
