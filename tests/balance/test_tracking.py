"""Tolerance: only weights whose alpha can have changed are measured again."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from torch import nn

import tempbalance as tb

from .conftest import train
from .optimizers import OPTIMIZERS


class TestTolerance:
    def lazy(self, recipe: tb.Recipe, tolerance: float = 0.3) -> tb.Recipe:
        return dataclasses.replace(recipe, every=tb.Every(steps=1), tolerance=tolerance)

    def test_only_weights_that_moved_are_measured_again(self, net, recipe):
        for block in list(net.blocks)[1:]:
            block.requires_grad_(False)
        optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-6)
        balancer = tb.Balancer(optimizer, net, self.lazy(recipe))
        train(net, optimizer, steps=4)
        assert [refresh.measured for refresh in balancer.history] == [4, 0, 0, 0]

    def test_alphas_are_within_the_tolerance_of_the_exact_ones(self, net, recipe):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        balancer = tb.Balancer(optimizer, net, self.lazy(recipe))
        worst = 0.0

        def compare(*_):
            nonlocal worst
            for unit in balancer.units:
                true = tb.Hill().fit(tb.weight_spectrum(net.get_submodule(unit.name).weight)).alpha
                if math.isfinite(unit.alpha):
                    worst = max(worst, abs(true - unit.alpha))

        optimizer.register_step_pre_hook(compare)
        train(net, optimizer, steps=60)
        measured = [refresh.measured for refresh in balancer.history]
        assert 0 < worst <= 0.3
        assert measured[0] > sum(measured[1:]) / 59 > 0

    def test_all_parts_of_a_parameter_are_measured_together(self, recipe):
        # Else the copy would move with the first of them, and the way of the others would begin anew.
        torch.manual_seed(0)
        net = nn.MultiheadAttention(32, 2)
        with torch.no_grad():
            net.in_proj_weight[64:].mul_(torch.linspace(1, 30, 32)[:, None])  # the values: a tail that little moves
        optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
        balancer = tb.Balancer(optimizer, net, self.lazy(recipe))
        x = torch.randn(5, 2, 32)
        net(x, x, x)[0].sum().backward()
        optimizer.step()
        fits = json.loads(optimizer.state_dict()["param_groups"][0]["tempbalance"])["fits"]
        radii = {name: fit["radius"] for name, fit in fits.items()}
        first, last = sorted(radius for name, radius in radii.items() if name.startswith("in_proj_weight"))[::2]
        assert 4 * first < last
        way = torch.randn(96, 32)
        for _ in range(8):
            with torch.no_grad():
                net.in_proj_weight.add_(way / way.norm() * first * 1.5)
            optimizer.step()
        assert [refresh.measured for refresh in balancer.history[1:]] == [3] * 8

    def test_with_exact_all_weights_are_measured_and_no_copies_are_kept(self, net, recipe):
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-6, momentum=0.9)
        balancer = tb.Balancer(optimizer, net, self.lazy(recipe), exact=True)
        train(net, optimizer, steps=3)
        assert {refresh.measured for refresh in balancer.history} == {balancer.history[0].measured}
        assert all(set(state) == {"momentum_buffer"} for state in optimizer.state.values())

    def test_without_a_tolerance_all_weights_are_measured(self, net, recipe):
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-6)
        balancer = tb.Balancer(optimizer, net, recipe)
        train(net, optimizer, steps=6)
        assert balancer.history[0].measured == balancer.history[1].measured

    def test_weights_are_always_measured_with_an_estimator_without_a_bound(self, net, recipe):
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-4)
        balancer = tb.Balancer(optimizer, net, dataclasses.replace(self.lazy(recipe), estimator=tb.KS()))
        train(net, optimizer, steps=3)
        large_enough = sum(math.isfinite(unit.alpha) for unit in balancer.units)
        assert [refresh.measured for refresh in balancer.history[1:]] == [large_enough] * 2

    @pytest.mark.parametrize("optimizer", OPTIMIZERS)
    def test_copies_are_in_the_state_of_any_optimizer(self, net, recipe, optimizer):
        opt = OPTIMIZERS[optimizer](net.parameters())
        balancer = tb.Balancer(opt, net, self.lazy(recipe))
        train(net, opt, steps=4)
        assert len(balancer.history) == 4
        fitted = {f"{unit.name}.weight" for unit in balancer.units if math.isfinite(unit.alpha)}
        assert all("tempbalance_reference" in opt.state[net.get_parameter(name)] for name in fitted)
