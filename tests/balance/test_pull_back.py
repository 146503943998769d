"""PullBack: selective projection decay."""

import copy

import pytest
import torch

import tempbalance as tb
from tempbalance.balance import PullBack
from tempbalance.errors import ArgumentError

from .conftest import assert_same_bits, batches, make_net, train


def oracle(strength, steps, lr=0.05, initial="start"):
    """SGD with selective projection decay, tensor by tensor in float64 (arXiv 2411.01713, algorithm 1)."""
    net = make_net().double()
    start = {name: p.detach().clone() if initial == "start" else 0 * p.detach() for name, p in net.named_parameters()}
    pulled = 0
    for x, y in batches(steps):
        net.zero_grad()
        torch.nn.functional.cross_entropy(net(x.double()), y).backward()
        with torch.no_grad():
            for name, p in net.named_parameters():
                w, w0 = p.clone(), start[name]
                p.sub_(lr * p.grad)
                if float((p.grad * (w - w0)).sum()) > 0:
                    far, near = float((p - w0).norm()), float((w - w0).norm())
                    r = min(max((far - near) / far, 0.0), 1.0)
                    pulled += r > 0
                    p.sub_(strength * r * (p - w0))
    assert pulled or not strength
    return net.state_dict()


def run(strength, steps, optimizer=torch.optim.SGD, **options):
    net = make_net().double()
    used = optimizer(net.parameters(), lr=0.05)
    PullBack(used, strength, **options)
    for x, y in batches(steps):
        used.zero_grad()
        torch.nn.functional.cross_entropy(net(x.double()), y).backward()
        used.step()
    return net.state_dict()


@pytest.mark.parametrize("initial", ["start", "zero"])
@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_it_follows_the_algorithm(strength, initial):
    expected, found = oracle(strength, 30, initial=initial), run(strength, 30, initial=initial)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-12, atol=1e-14)


def test_strength_zero_changes_no_bit():
    results = []
    for pulled in (False, True):
        net = make_net()
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
        if pulled:
            PullBack(optimizer, 0.0)
        train(net, optimizer, steps=5)
        results.append(net.state_dict())
    assert_same_bits(*results)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad])
def test_a_resumed_run_beside_a_balancer_is_bit_identical(kind):
    results = []
    for stop in (None, 3):
        net = make_net()
        optimizer = kind(net.parameters(), lr=0.05)
        attach(optimizer, net)
        for step in range(8):
            if step == stop:
                saved = copy.deepcopy((net.state_dict(), optimizer.state_dict()))
                net = make_net(1)
                optimizer = kind(net.parameters(), lr=0.05)
                attach(optimizer, net)
                net.load_state_dict(saved[0])
                optimizer.load_state_dict(saved[1])
            train(net, optimizer, steps=step + 1, start=step)
        results.append(net.state_dict())
    assert_same_bits(*results)


def attach(optimizer, net):
    tb.Balancer(optimizer, net, tb.Recipe(name="x", assignment=tb.assign.Linear(0.5, 1.5), every=tb.Every(steps=2)))
    PullBack(optimizer, 1.0)


def test_removed_it_leaves_nothing_behind():
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    pull_back = PullBack(optimizer)
    train(net, optimizer, steps=2)
    assert all("tempbalance_pull_back" in state for state in optimizer.state.values())
    pull_back.remove()
    train(net, optimizer, steps=4, start=2)
    assert not any("tempbalance_pull_back" in state for state in optimizer.state.values())


@pytest.mark.parametrize(
    ("options", "match"),
    [({"strength": -1.0}, "strength must be 0 or more"), ({"initial": "mean"}, "initial must be 'start' or 'zero'")],
)
def test_bad_arguments_are_refused(options, match):
    with pytest.raises(ArgumentError, match=match):
        PullBack(torch.optim.SGD(make_net().parameters(), lr=0.1), **options)
