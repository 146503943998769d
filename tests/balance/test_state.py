"""The state of a group: plain JSON in the state dict, with the verdict on each unit; states of older versions load."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import math

import pytest
import torch
from torch import nn

import tempbalance as tb
from tempbalance.types import Status

from .conftest import make_net, train


def balanced(net: nn.Module, recipe: tb.Recipe) -> tuple[torch.optim.Optimizer, tb.Balancer]:
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    return optimizer, tb.Balancer(optimizer, net, recipe)


def statuses(balancer: tb.Balancer) -> dict[str, Status | None]:
    return {unit.name: unit.status for unit in balancer.units}


def test_a_unit_of_random_weights_has_an_alpha_and_status_random(trained, recipe):
    _, balancer = balanced(trained, dataclasses.replace(recipe, estimator="hill"))
    assert set(statuses(balancer).values()) == {None}
    balancer.refresh()
    assert statuses(balancer) == {"0": Status.OK, "1": Status.OK, "2": Status.OK, "3": Status.RANDOM}
    assert all(math.isfinite(unit.alpha) for unit in balancer.units)
    analysis = tb.analyze(trained, progress=False)
    assert [layer.status for layer in analysis.layers] == list(statuses(balancer).values())


def test_a_block_is_random_only_if_all_its_fitted_weights_are(recipe):
    torch.manual_seed(0)
    blocks = nn.ModuleList(nn.ModuleDict({"a": nn.Linear(80, 80), "b": nn.Linear(80, 80)}) for _ in range(2))
    with torch.no_grad():
        values = tb.testing.pareto_quantiles(80, 2.5)
        blocks[1]["a"].weight.copy_(tb.testing.matrix_with_spectrum(values, (80, 80)))
    _, balancer = balanced(nn.ModuleDict({"blocks": blocks}), dataclasses.replace(recipe, unit="block"))
    balancer.refresh()
    assert statuses(balancer) == {"blocks.0": Status.RANDOM, "blocks.1": Status.OK}


def test_a_unit_without_an_alpha_has_the_status_of_its_first_weight(net, recipe):
    with torch.no_grad():
        net.stem.weight.zero_()
    _, balancer = balanced(net, recipe)
    balancer.refresh()
    assert (statuses(balancer)["stem"], statuses(balancer)["head"]) == (Status.ZERO, Status.TOO_FEW)


def test_a_recipe_by_depth_gives_no_status(net):
    _, balancer = balanced(net, tb.recipes.layerwise_decay())
    balancer.refresh()
    assert set(statuses(balancer).values()) == {None}


def test_a_missing_alpha_is_nan_in_memory_and_left_out_of_the_saved_state(net, recipe):
    optimizer, balancer = balanced(net, recipe)
    balancer.refresh()
    assert math.isnan(balancer.state.units["head"].alpha)
    text = optimizer.state_dict()["param_groups"][0]["tempbalance"]
    saved = json.loads(text)
    assert "NaN" not in text
    assert "alpha" not in saved["units"]["head"]
    assert "alpha" not in saved["fits"]["head.weight"]
    assert saved["fits"]["head.weight"]["status"] == "too_few"


def test_a_state_of_the_version_before_says_what_to_do(net, recipe):
    """It had one text per group, and the groups were split for good."""
    optimizer, _ = balanced(net, recipe)
    state = copy.deepcopy(optimizer.state_dict())
    state["param_groups"][0]["tempbalance"] = json.dumps({"unit": None, "names": [], "multiplier": 1.0, "steps": 3})
    with pytest.raises(tb.errors.BalanceError, match=r"version 1 wrote it.*to start balancing afresh"):
        optimizer.load_state_dict(state)


def test_state_is_plain_and_loads_with_weights_only(net, recipe):
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    balancer = tb.Balancer(optimizer, net, dataclasses.replace(recipe, tolerance=0.1))
    train(net, optimizer, steps=3)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    other = make_net()
    fresh = torch.optim.AdamW(other.parameters(), lr=1e-3)
    second = tb.Balancer(fresh, other, dataclasses.replace(recipe, tolerance=0.1))
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert second.units == balancer.units
