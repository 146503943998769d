import math

import pytest
import torch


def test_imbalance_and_mean_are_those_of_the_layers_that_have_an_alpha(trained):
    from final_alpha import final_alpha

    found = final_alpha(trained)  # alphas 2.2, 3 and 4, and a random layer
    assert found["judged"] == 3
    assert found["mean_alpha"] == pytest.approx((2.2 + 3 + 4) / 3, rel=0.1)
    assert found["imbalance"] == pytest.approx(0.74, rel=0.2)


def test_an_untrained_network_has_no_alpha():
    from final_alpha import final_alpha

    torch.manual_seed(0)
    found = final_alpha(torch.nn.Sequential(torch.nn.Linear(80, 80), torch.nn.Linear(80, 80)))
    assert found["judged"] == 0
    assert math.isnan(found["imbalance"])
    assert math.isnan(found["mean_alpha"])
