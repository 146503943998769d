import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from tempbalance.study import Method


def gradients(net, batch):
    return torch.autograd.grad(cross_entropy(net(batch.inputs), batch.targets), [*net.parameters()])


def closure_of(net, batch):
    def closure():
        loss = cross_entropy(net(batch.inputs), batch.targets)
        loss.backward()
        return loss

    return closure


def both(net, batch, rho):
    here = gradients(net, batch)
    norm = sum(grad.square().sum() for grad in here) ** 0.5
    moved = copy.deepcopy(net)
    with torch.no_grad():
        for parameter, grad in zip(moved.parameters(), here, strict=True):
            parameter.add_(rho / norm * grad)
    return here, gradients(moved, batch)


def test_sam_has_the_gradient_of_the_point_up_the_gradient(net, batches):
    net.eval()
    before = copy.deepcopy(net)
    _, expected = both(net, batches[0], 0.5)
    loss = Method("sam:rho=0.5").backward(net, closure_of(net, batches[0]))
    assert loss.item() == cross_entropy(before(batches[0].inputs), batches[0].targets).item()
    torch.testing.assert_close([p.grad for p in net.parameters()], [*expected])
    assert all(map(torch.equal, net.parameters(), before.parameters()))


def test_glad_projects_where_the_two_gradients_conflict():
    start = [[0.0, 1.2], [0.5, 0.5]]
    net = nn.ParameterList([torch.tensor(values) for values in start])

    def closure():
        loss = net[0].sin().sum() + net[1].square().sum()
        loss.backward()
        return loss

    Method("glad:rho=6").backward(net, closure)
    here = [torch.tensor(start[0]).cos(), torch.ones(2)]
    norm = torch.cat(here).norm()
    there = [(torch.tensor(start[0]) + 6 * here[0] / norm).cos(), 2 * (torch.tensor(start[1]) + 6 * here[1] / norm)]
    product = here[0] @ there[0]
    assert product < 0 < here[1] @ there[1]
    torch.testing.assert_close(net[0].grad, here[0] - product / (there[0] @ there[0]) * there[0])
    assert float(net[0].grad @ there[0]) == pytest.approx(0, abs=1e-6)
    assert net[0].grad.norm() > 0.01
    assert torch.equal(net[1].grad, here[1])
    assert [values.tolist() for values in net] == [pytest.approx(values) for values in start]
