import torch
from torch import nn

from tempbalance.study import Method, Training


def test_layers_are_frozen_from_the_input_on_and_the_head_starts_from_the_probe(batches):
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(6, 6) for _ in range(4)), nn.Linear(6, 3))
    method, probe = Method("progressive_freezing:first=0.2,c=2"), Method("probe:c=2")
    method.prepare(net, Training(0, 5, 2))
    method.start(net, batches)
    weight = net[4].weight.detach().clone()
    probe.start(net, batches)
    assert torch.equal(weight, net[4].weight)
    frozen = []
    for _ in range(10):
        for parameter in net.parameters():
            parameter.grad = torch.ones_like(parameter)
        method.before_step(net)
        frozen.append([place for place in range(5) if net[place].weight.grad is None and net[place].bias.grad is None])
    assert frozen == [[], [], *([[0]] * 2), *([[0, 1]] * 2), *([[0, 1, 2]] * 2), *([[0, 1, 2, 3]] * 2)]


def test_nothing_is_frozen_if_the_first_layers_are_frozen_at_the_end(net):
    method = Method("progressive_freezing:first=1")
    method.prepare(net, Training(0, 1, 3))
    for _ in range(3):
        for parameter in net.parameters():
            parameter.grad = torch.ones_like(parameter)
        method.before_step(net)
    assert all(parameter.grad is not None for parameter in net.parameters())
