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


def test_a_missing_alpha_is_nan_in_memory_and_null_in_the_saved_state(net, recipe):
    optimizer, balancer = balanced(net, recipe)
    balancer.refresh()
    head = next(group for group in optimizer.param_groups if group["name"] == "head")["tempbalance"]
    assert math.isnan(head["alpha"])
    saved = next(group for group in optimizer.state_dict()["param_groups"] if group["name"] == "head")["tempbalance"]
    assert "NaN" not in saved
    assert json.loads(saved)["alpha"] is None
    assert json.loads(saved)["weights"]["head.weight"][:2] == [None, None]


@pytest.mark.parametrize("seen", [False, True], ids=["before the first refresh", "after it"])
def test_a_state_of_a_version_without_a_status_loads(net, recipe, seen):
    optimizer, balancer = balanced(net, recipe)
    if seen:
        train(net, optimizer, steps=3)
    state = copy.deepcopy(optimizer.state_dict())
    for group in state["param_groups"]:
        text = json.loads(group["tempbalance"])
        del text["status"], text["next"]
        text["weights"] = {name: fit[:3] for name, fit in text["weights"].items()}
        group["tempbalance"] = json.dumps(text)
    other = make_net()
    fresh, loaded = balanced(other, recipe)
    other.load_state_dict(net.state_dict())
    fresh.load_state_dict(state)
    assert [(u.name, repr(u.alpha), u.multiplier) for u in loaded.units] == [
        (u.name, repr(u.alpha), u.multiplier) for u in balancer.units
    ]
    train(net, optimizer, steps=7, start=3 * seen)
    train(other, fresh, steps=7, start=3 * seen)
    assert loaded.units == balancer.units


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
