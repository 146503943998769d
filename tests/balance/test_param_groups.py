"""Groups are split by unit, with all options and state kept."""

from __future__ import annotations

import dataclasses

import torch
from torch.optim import lr_scheduler

import tempbalance as tb

from .conftest import train


class TestGroups:
    def test_no_group_is_empty_and_all_have_unique_names(self, net, recipe):
        optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in net.parameters() if p.ndim > 1], "weight_decay": 0.1},
                {"params": [p for p in net.parameters() if p.ndim < 2], "weight_decay": 0.0},
            ]
        )
        tb.Balancer(optimizer, net, recipe)
        names = [name for group in optimizer.param_groups for name in group["tempbalance"]["names"]]
        assert all(group["params"] for group in optimizer.param_groups)
        assert sorted(names) == sorted(name for name, _ in net.named_parameters())
        assert len({group["name"] for group in optimizer.param_groups}) == len(optimizer.param_groups)
        for group in optimizer.param_groups:
            decays = {0.1 if net.get_parameter(name).ndim > 1 else 0.0 for name in group["tempbalance"]["names"]}
            assert decays == {group["weight_decay"]}

    def test_groups_are_split_only_by_unit(self, net, recipe):
        optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
        tb.Balancer(optimizer, net, dataclasses.replace(recipe, unit="block"))
        assert [group["name"] for group in optimizer.param_groups] == ["rest", "blocks.0", "blocks.1", "blocks.2"]

    def test_param_names_of_torch_are_split_with_the_parameters(self, net, recipe):
        optimizer = torch.optim.SGD(net.named_parameters(), lr=1.0)
        tb.Balancer(optimizer, net, recipe)
        for group in optimizer.param_groups:
            assert group["param_names"] == group["tempbalance"]["names"]

    def test_the_optimizer_state_is_kept_when_groups_are_split(self, net, recipe):
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
        train(net, optimizer, steps=3)
        before = {p: s["exp_avg"].clone() for p, s in optimizer.state.items()}
        tb.Balancer(optimizer, net, recipe)
        assert all(torch.equal(optimizer.state[p]["exp_avg"], value) for p, value in before.items())

    def test_groups_built_by_param_groups_are_not_split_again(self, net, recipe):
        groups = tb.balance.param_groups(net, recipe, lambda _, p: {"weight_decay": 0.1 if p.ndim > 1 else 0.0})
        optimizer = torch.optim.AdamW(groups, lr=1e-3)
        scheduler = lr_scheduler.CosineAnnealingLR(optimizer, 10)  # before the balancer: the layout stays
        names = [group["name"] for group in optimizer.param_groups]
        tb.Balancer(optimizer, net, recipe)
        assert [group["name"] for group in optimizer.param_groups] == names
        train(net, optimizer, scheduler, steps=3)

    def test_param_groups_leaves_out_frozen_parameters(self, net, recipe):
        net.stem.requires_grad_(False)
        parameters = {id(p) for group in tb.balance.param_groups(net, recipe) for p in group["params"]}
        assert parameters == {id(p) for p in net.parameters() if p.requires_grad}
