import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, linear

from tempbalance.study import Method, Training


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 9), nn.Dropout(0.5), nn.Linear(9, 8), nn.Linear(8, 3)
    )


def test_levi_averages_heads_on_both_networks_and_trains_only_what_is_new(net, batches):
    before = copy.deepcopy(net)
    method = Method("levi:depths=2,width=5")
    model = method.prepare(net, Training(0, 1, 2))
    method.start(model, batches)
    x, y = batches[0]
    outputs = model.train()(x)
    hidden, logits = x, []
    for small, head, features in zip(model.small, model.heads, (before[:1].eval(), before[:5].eval()), strict=True):
        hidden = linear(hidden, small.weight, small.bias).relu()
        logits.append(linear(torch.cat([features(x), hidden], dim=1), head.weight, head.bias))
    assert [head.weight.shape for head in model.heads] == [(3, 15), (3, 13)]
    torch.testing.assert_close(outputs, sum(logits) / 2)
    loss = method.loss(model, batches[0], outputs, torch.tensor(0.0))
    torch.testing.assert_close(loss, sum(cross_entropy(each, y) for each in logits) / 2)
    trained = {name.partition(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"small", "heads"}
    copy.deepcopy(model)  # as a teacher is


def test_the_small_network_depends_on_the_seed_only(net, batches):
    found = []
    for state in (0, 1):
        torch.manual_seed(state)
        method = Method("levi")
        model = method.prepare(copy.deepcopy(net), Training(7, 1, 2))
        method.start(model, batches)
        found.append(model(batches[0].inputs))
    assert torch.equal(*found)


def test_more_depths_than_layers_are_refused(net):
    with pytest.raises(ValueError, match="levi needs 4 linear layers besides the head, this model has 3"):
        Method("levi:depths=4").prepare(net, Training(0, 1, 1))
