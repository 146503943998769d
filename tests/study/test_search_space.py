"""The units of a search, and the multipliers that are known to help."""

import pytest
import torch
from torch import nn

from tempbalance.study.search_space import find_space
from tempbalance.study.task import load_task


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj, self.v_proj, self.o_proj = (nn.Linear(4, 4) for _ in range(3))
        self.fc1, self.fc2 = nn.Linear(4, 16), nn.Linear(16, 4)
        self.norm = nn.LayerNorm(4)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(4))
        self.embedding = nn.Embedding(8, 4)
        self.layers = nn.ModuleList(Block() for _ in range(12))
        self.head = nn.Linear(4, 8)


def space(units, build=Net, optimizer=torch.optim.AdamW, frozen=()):
    def train(seed, method, lr):
        model = build()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.startswith(frozen))
        try:
            method.balance(optimizer([p for p in model.parameters() if p.requires_grad], lr=lr), model)
        except Exception:
            raise AssertionError("the function of a user may catch all exceptions") from None
        raise AssertionError("the function goes on after balance")

    return find_space(load_task(train), units, 0.1, 0)


def test_every_trained_parameter_is_in_one_unit():
    names = [name for name, _ in Net().named_parameters()]
    for units in ("role", "block", "layer"):
        found = space(units)
        assert sorted(name for own in found.units.values() for name in own) == sorted(names)


def test_units_of_each_kind():
    roles = space("role").units
    assert roles.keys() >= {"role:embedding", "role:q", "role:v", "role:o", "role:up", "role:down", "role:norm"}
    assert len(roles["role:q"]) == 24  # weights and biases
    blocks = space("block").units
    assert len(blocks) == 12 + 3
    assert len(blocks["layers.1.*"]) == len(list(Block().parameters()))  # and none of layers.10
    assert blocks["token"] == ("token",)
    layers = space("layer").units
    assert layers["layers.11.fc1.*"] == ("layers.11.fc1.weight", "layers.11.fc1.bias")


def test_a_module_with_parameters_of_its_own_around_others_is_a_unit_of_its_own():
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(4))
            self.inner = nn.Linear(4, 4)

    found = space("layer", lambda: nn.ModuleDict({"a": Around()}))
    assert found.units == {"a.inner.*": ("a.inner.weight", "a.inner.bias"), "a.*": ("a.scale",)}


def test_frozen_parameters_are_in_no_unit():
    found = space("role", frozen=("embedding", "layers.0."))
    assert "role:embedding" not in found.units
    assert len(found.units["role:q"]) == 22


def test_patterns_are_units_and_the_first_that_matches_counts():
    found = space(["layers.0.*", "role:q", "*.fc?.weight"])
    assert [*found.units] == ["layers.0.*", "role:q", "*.fc?.weight"]
    assert len(found.units["role:q"]) == 22
    assert len(found.units["*.fc?.weight"]) == 22


def test_multipliers_that_are_known_depend_on_the_optimizer_and_the_roles():
    known = space("role").known_multipliers(0.125, 8.0)
    assert known.keys() == {"value and output 0.25", "blockwise_lr", "mup"}
    assert known["value and output 0.25"]["role:o"] == 0.25
    assert known["blockwise_lr"]["role:norm"] == pytest.approx(1 / 6)
    assert known["mup"]["role:down"] == pytest.approx(0.5)  # its weights have a quarter, and its biases 1
    assert space("role").known_multipliers(0.5, 8.0)["value and output 0.25"]["role:v"] == 0.5
    sgd = space("role", optimizer=torch.optim.SGD).known_multipliers(0.125, 8.0)
    assert sgd["mup"]["role:up"] > 1  # its biases
    plain = space("role", lambda: nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)))
    assert plain.known_multipliers(0.125, 8.0) == {}


def test_multipliers_that_are_the_same_for_all_parameters_are_left_out():
    assert space(["*"]).known_multipliers(0.125, 8.0) == {}
    assert space(["role:v", "role:o"]).known_multipliers(0.125, 8.0)["value and output 0.25"]["role:v"] == 0.25
