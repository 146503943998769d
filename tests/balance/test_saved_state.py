"""State dicts with and without a balancer's state load into each other; damaged ones are refused."""

from __future__ import annotations

import collections
import copy
import dataclasses
import json
import logging
import math
import random
from typing import Any

import pytest
import torch
from torch import nn

import tempbalance as tb
from tempbalance.balance.state import BalanceState
from tempbalance.errors import BalanceError

from .conftest import assert_same_bits, make_net, train
from .optimizers import OPTIMIZERS

RECIPE = tb.Recipe(name="test", assignment=tb.assign.Linear(0.5, 1.5), every=tb.Every(steps=2), ramp=2)
KEY = "tempbalance"


def balanced(net: nn.Module, recipe: tb.Recipe = RECIPE) -> tuple[torch.optim.Optimizer, tb.Balancer]:
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    return optimizer, tb.Balancer(optimizer, net, recipe)


@pytest.mark.parametrize("recipe", [RECIPE, dataclasses.replace(RECIPE, tolerance=0.2, spectrum_of="update")])
@pytest.mark.parametrize("kind", OPTIMIZERS)
class TestInterchange:
    def test_a_balanced_state_continues_in_a_plain_run(self, kind, recipe):
        net = make_net()
        optimizer = OPTIMIZERS[kind](net.parameters())
        balancer = tb.Balancer(optimizer, net, recipe)
        train(net, optimizer, steps=3)
        state, weights = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(net.state_dict())
        balancer.remove()  # the same run goes on without a balancer
        train(net, optimizer, steps=6, start=3)
        plain_net = make_net(1)
        plain = OPTIMIZERS[kind](plain_net.parameters())
        plain.load_state_dict(state)
        plain_net.load_state_dict(weights)
        train(plain_net, plain, steps=6, start=3)
        assert_same_bits(net.state_dict(), plain_net.state_dict())

    def test_a_plain_state_continues_in_a_balanced_run(self, kind, recipe, caplog):
        net = make_net()
        plain = OPTIMIZERS[kind](net.parameters())
        train(net, plain, steps=3)
        state, weights = copy.deepcopy(plain.state_dict()), copy.deepcopy(net.state_dict())
        tb.Balancer(plain, net, recipe)  # the same run goes on with a balancer
        train(net, plain, steps=6, start=3)
        other = make_net(1)
        optimizer = OPTIMIZERS[kind](other.parameters())
        balancer = tb.Balancer(optimizer, other, recipe)
        train(other, optimizer, steps=1)
        with caplog.at_level(logging.INFO, "tempbalance"):
            optimizer.load_state_dict(state)
        assert [record.message for record in caplog.records] == [
            "this optimizer state was saved without tempbalance: it is loaded, and balancing starts afresh"
        ]
        assert balancer.state.steps == 0
        other.load_state_dict(weights)
        train(other, optimizer, steps=6, start=3)
        assert_same_bits(net.state_dict(), other.state_dict())


def test_a_balanced_state_may_be_loaded_before_the_balancer_is_built(net):
    optimizer, balancer = balanced(net)
    train(net, optimizer, steps=3)
    other = copy.deepcopy(net)
    fresh = torch.optim.AdamW(other.parameters(), lr=1e-3)
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    second = tb.Balancer(fresh, other, RECIPE)
    assert KEY not in fresh.param_groups[0]
    assert second.units == balancer.units
    for each, opt in ((net, optimizer), (other, fresh)):
        train(each, opt, steps=7, start=3)
    assert_same_bits(net.state_dict(), other.state_dict())


def test_steps_without_the_balancer_are_counted_and_the_weights_are_measured_anew(net, caplog):
    optimizer, _ = balanced(net)
    train(net, optimizer, steps=3)
    plain = torch.optim.AdamW(net.parameters(), lr=1e-3)
    plain.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(net, plain, steps=8, start=3)
    again = torch.optim.AdamW(net.parameters(), lr=1e-3)
    balancer = tb.Balancer(again, net, dataclasses.replace(RECIPE, every=tb.Every(steps=100)))
    again.load_state_dict(copy.deepcopy(plain.state_dict()))
    train(net, again, steps=10, start=8)
    assert balancer.state.steps == 10
    assert [refresh.step for refresh in balancer.history] == [8]
    assert "taken 5 steps without tempbalance" in caplog.text


@pytest.mark.parametrize(("smaller", "measured"), [(0.1, 8), (1000.0, 0)])
def test_alphas_of_a_larger_tolerance_are_not_kept(net, smaller, measured):
    large = dataclasses.replace(RECIPE, tolerance=1000.0)
    optimizer, _ = balanced(net, large)
    train(net, optimizer, steps=2)
    other = torch.optim.AdamW(net.parameters(), lr=0.0)
    balancer = tb.Balancer(other, net, dataclasses.replace(large, tolerance=smaller))
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(net, other, steps=3, start=2)
    assert [refresh.measured for refresh in balancer.history] == [measured]


def test_a_state_of_other_units_in_the_groups_is_refused_when_the_balancer_is_built(net):
    optimizer, _ = balanced(net)
    fresh = torch.optim.AdamW(net.parameters(), lr=1e-3)
    fresh.load_state_dict(optimizer.state_dict())
    before = dict(vars(fresh))
    with pytest.raises(BalanceError, match="saved with other units, such as 'stem'"):
        tb.Balancer(fresh, net, dataclasses.replace(RECIPE, unit="block"))
    assert vars(fresh) == before


def test_a_failed_load_changes_nothing(net):
    optimizer, balancer = balanced(net)
    train(net, optimizer, steps=3)
    state = copy.deepcopy(optimizer.state_dict())
    units, steps = balancer.units, balancer.state.steps
    state["param_groups"][0]["params"] = [0]
    with pytest.raises(ValueError, match="size of optimizer's group"):
        optimizer.load_state_dict(state)
    assert (balancer.units, balancer.state.steps) == (units, steps)
    assert KEY not in optimizer.param_groups[0]
    train(net, optimizer, steps=4, start=3)
    assert balancer.state.steps == 4


def test_an_optimizer_that_loads_without_hooks_is_resumed(net):
    class WithoutHooks(torch.optim.AdamW):
        """Loads as bitsandbytes does."""

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            saved = copy.deepcopy(state_dict)
            pairs = zip(self.param_groups, saved["param_groups"], strict=True)
            groups = [{**new, "params": old["params"]} for old, new in pairs]
            parameters = [p for group in groups for p in group["params"]]
            state = {parameters[i]: value for i, value in saved["state"].items()}
            self.__setstate__({"state": collections.defaultdict(dict, state), "param_groups": groups})

    runs = []
    for stop in (None, 3):
        net = make_net()
        optimizer = WithoutHooks(net.parameters(), lr=1e-3)
        balancer = tb.Balancer(optimizer, net, RECIPE)
        train(net, optimizer, steps=stop or 8)
        if stop is not None:
            state, weights = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(net.state_dict())
            net = make_net(1)
            optimizer = WithoutHooks(net.parameters(), lr=1e-3)
            balancer = tb.Balancer(optimizer, net, RECIPE)
            net.load_state_dict(weights)
            optimizer.load_state_dict(state)
            train(net, optimizer, steps=8, start=stop)
        assert KEY not in optimizer.param_groups[0]
        runs.append((net.state_dict(), balancer.units))
    assert_same_bits(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]


class TestOptionsOfTheOptimizer:
    """Some optimizers keep counters in their groups."""

    class Counting(torch.optim.SGD):
        """Counts steps, and sums the rates of each group, as schedule-free optimizers do."""

        @torch.no_grad()
        def step(self, closure: Any = None) -> None:
            for group in self.param_groups:
                group["k"] = group.get("k", 0) + 1
                group["weight_sum"] = group.get("weight_sum", 0.0) + group["lr"] ** 2
                for p in group["params"]:
                    if p.grad is not None:
                        p.sub_(p.grad, alpha=group["lr"] * group["k"] * group["lr"] ** 2 / group["weight_sum"])

    def test_every_part_keeps_its_own_counters(self, net):
        optimizer = self.Counting(net.parameters(), lr=0.1)
        balancer = tb.Balancer(optimizer, net, dataclasses.replace(RECIPE, ramp=0, every=tb.Every(steps=100)))
        sums = []
        optimizer.register_step_post_hook(lambda *_: None)
        optimizer.register_step_pre_hook(
            lambda o, *_: sums.append({id(g["params"][0]): g.get("weight_sum", 0.0) for g in o.param_groups})
        )
        train(net, optimizer, steps=4)
        for unit in balancer.units:
            first = net.get_parameter(unit.parameters[0])
            assert sums[3][id(first)] == pytest.approx(3 * (0.1 * unit.multiplier) ** 2)
        assert optimizer.param_groups[0]["k"] == 4

    def test_counters_of_parts_are_saved_and_resumed(self, net):
        runs = []
        for stop in (None, 3):
            net = make_net()
            optimizer = self.Counting(net.parameters(), lr=0.1)
            tb.Balancer(optimizer, net, RECIPE)
            train(net, optimizer, steps=stop or 7)
            if stop is not None:
                state, weights = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(net.state_dict())
                net = make_net(1)
                optimizer = self.Counting(net.parameters(), lr=0.1)
                tb.Balancer(optimizer, net, RECIPE)
                net.load_state_dict(weights)
                optimizer.load_state_dict(json_round_trip(state))
                train(net, optimizer, steps=7, start=stop)
            runs.append((net.state_dict(), optimizer.param_groups[0]["weight_sum"]))
        assert_same_bits(runs[0][0], runs[1][0])
        assert runs[0][1] == runs[1][1]

    def test_neutral_multipliers_change_no_counter(self):
        runs = []
        for recipe in (None, dataclasses.replace(RECIPE, assignment=tb.assign.Linear(1.0, 1.0))):
            net = make_net()
            optimizer = self.Counting(net.parameters(), lr=0.1)
            if recipe is not None:
                tb.Balancer(optimizer, net, recipe)
            train(net, optimizer, steps=5)
            runs.append((net.state_dict(), {k: v for k, v in optimizer.param_groups[0].items() if k != "params"}))
        assert_same_bits(runs[0][0], runs[1][0])
        assert runs[0][1] == runs[1][1]


def json_round_trip(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state dict whose text has been read and written again."""
    text = state["param_groups"][0][KEY]
    state["param_groups"][0][KEY] = BalanceState.from_json(text).to_json()
    return state


def mutations(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[tuple[Any, ...], Any]]:
    """Return many wrong values for every place in a JSON value."""
    wrong = ["x", -5, 1e308 * 10, [], {}, True, [[]], -1.5]
    found = [(path, bad) for bad in wrong if path]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += mutations(inner, (*path, key))
    return found


def with_value(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    value = copy.deepcopy(value)
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = new
    return value


class TestDamaged:
    def test_a_changed_value_is_refused_or_harmless(self, net):
        optimizer, _ = balanced(net)
        train(net, optimizer, steps=3)
        state = copy.deepcopy(optimizer.state_dict())
        sound = json.loads(state["param_groups"][0][KEY])
        found = mutations(sound)
        refused = 0
        for path, bad in random.Random(0).sample(found, 250):
            text = json.dumps(with_value(sound, path, bad)).replace("Infinity", "1e400")
            state["param_groups"][0][KEY] = text
            other = make_net()
            fresh, balancer = balanced(other)
            try:
                fresh.load_state_dict(state)
            except BalanceError:
                refused += 1
                assert balancer.state.steps == 0
                continue
            train(other, fresh, steps=3)
            assert all(math.isfinite(unit.multiplier) for unit in balancer.units), path
            assert all(p.isfinite().all() for p in other.parameters()), path
        assert refused > 200

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (3, "it is a int, not a text"),
            ("", "truncated"),
            ("[" * 100_000, "object"),
            ('{"unit": "0", "names": []}', "version 1 wrote it"),
            ('{"version": 99}', "version 99 wrote it"),
            ('{"version": 2, "steps": -1}', r"`int` >= 0 - at `\$.steps`"),
            (
                '{"version": 2, "units": {"a": {"multiplier": 1e400}}}',
                r"out of range - at `\$.units\[...\].multiplier`",
            ),
            ('{"version": 2, "stepz": 1}', "unknown key 'stepz'"),
            ('{"version": 2, "fits": {"a": {"alpha": 2.0}}}', "a has alpha 2 with status None"),
            ('{"version": 2, "units": {"a": {"since": 1}}}', "since step 1 of 0"),
        ],
    )
    def test_a_damaged_text_is_refused_with_the_place(self, net, text, message):
        optimizer, _ = balanced(net)
        state = optimizer.state_dict()
        state["param_groups"][0][KEY] = text
        with pytest.raises(BalanceError, match=rf"{message}.*delete the key 'tempbalance'"):
            optimizer.load_state_dict(state)

    def test_a_state_of_other_parameter_groups_is_refused(self, net):
        optimizer, _ = balanced(net)
        state = optimizer.state_dict()
        other = make_net()
        fresh = torch.optim.AdamW(list(reversed(list(other.parameters()))), lr=1e-3)
        tb.Balancer(fresh, other, RECIPE)
        with pytest.raises(BalanceError, match=r"saved with other parameter groups: group 0 had .*stem.weight"):
            fresh.load_state_dict(state)
        net.more = nn.Linear(2, 2)  # the same names at first
        fresh = torch.optim.AdamW(net.parameters(), lr=1e-3)
        tb.Balancer(fresh, net, RECIPE)
        with pytest.raises(BalanceError, match=r"differ are none there and more.weight here; .* delete the key 'tempb"):
            fresh.load_state_dict(state)

    def test_a_state_of_another_model_is_refused(self, net):
        optimizer, _ = balanced(net)
        state = optimizer.state_dict()
        text = json.loads(state["param_groups"][0][KEY])
        text["units"]["elsewhere"] = {}
        state["param_groups"][0][KEY] = json.dumps(text)
        with pytest.raises(BalanceError, match=r"saved with other units, such as 'elsewhere'.*delete the key"):
            optimizer.load_state_dict(state)
