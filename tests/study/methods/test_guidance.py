import copy

import pytest
import torch
from torch import nn

from tempbalance.study import Method, Training
from tempbalance.study.methods.guidance import linear_cka


def test_cka_is_that_of_the_centred_gram_matrices():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(7, 4, generator=generator), torch.randn(7, 5, generator=generator)
    centre = torch.eye(7) - 1 / 7
    k, m = (centre @ each @ each.T @ centre for each in (x, y))
    torch.testing.assert_close(linear_cka(x, y), (k * m).sum() / (k.norm() * m.norm()))
    turned = torch.linalg.qr(torch.randn(4, 4, generator=generator)).Q
    assert linear_cka(x, 3 * x @ turned + 1).item() == pytest.approx(1, abs=1e-5)
    assert torch.equal(linear_cka(x[None], y[None]), linear_cka(x, y))


@pytest.mark.parametrize("guide", ["start", "random"])
def test_the_loss_has_the_distance_of_the_layers_from_the_guide(batches, guide):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 9), nn.Linear(9, 3))
    other = copy.deepcopy(net)
    method = Method(f"guidance:strength=0.5,guide={guide}")
    model = method.prepare(net, Training(2, 1, 2))
    if guide == "random":
        torch.manual_seed(2 + 2**40)  # another than that of the model, which has seed 2
        for layer in (other[0], other[2], other[3]):
            layer.reset_parameters()
    with torch.no_grad():
        net[0].weight.add_(torch.randn(10, 6))
    x = batches[0].inputs
    outputs = model(x)
    copy.deepcopy(model)(2 * x)  # such as a teacher: must not be taken for the model
    found = method.loss(model, batches[0], outputs, torch.tensor(1.0))
    layers = [(net[:end](x), other[:end](x)) for end in (1, 3)]
    expected = sum(1 - linear_cka(*pair) for pair in layers) / 2
    torch.testing.assert_close(found, 1 + 0.5 * expected)
    assert expected > 0.01
    found.backward()
    assert net[0].weight.grad.abs().sum() > 0
    assert not method.finish(model, batches)[0]._forward_hooks


def test_a_guide_as_at_the_start_needs_a_pretrained_model():
    assert "pretrained" in Method("guidance:guide=start").requirements()
    assert "pretrained" not in Method("guidance").requirements()
