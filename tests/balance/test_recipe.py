"""Options of a recipe, and assignments that users write."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

import tempbalance as tb


def test_an_estimator_may_be_given_by_name(recipe):
    assert dataclasses.replace(recipe, estimator="ks").estimator == tb.KS()
    assert tb.recipes.llr() != dataclasses.replace(tb.recipes.llr(), estimator="averaged-hill")


def test_an_unknown_estimator_is_refused(recipe):
    with pytest.raises(tb.TempBalanceError, match="ks"):
        dataclasses.replace(recipe, estimator="kolmogorov")


def test_a_custom_assignment_gets_alphas_by_default(net):
    class ByStep(tb.assign.Assignment):
        def assign(self, units):
            return [2.0 if unit.alpha > 3 else 1.0 for unit in units]

    balancer = tb.Balancer(torch.optim.SGD(net.parameters(), lr=0.1), net, tb.Recipe(name="mine", assignment=ByStep()))
    balancer.refresh()
    assert [unit.multiplier for unit in balancer.units] == [2.0 if unit.alpha > 3 else 1.0 for unit in balancer.units]
    assert sum(math.isfinite(unit.alpha) for unit in balancer.units) > 5


def test_a_custom_assignment_by_depth_computes_no_spectrum(net):
    class Halves(tb.assign.ByDepth):
        def multiplier_at(self, depth):
            return 1.0 if depth < 2 else 0.5

    balancer = tb.Balancer(torch.optim.SGD(net.parameters(), lr=0.1), net, tb.Recipe(name="mine", assignment=Halves()))
    assert balancer.refresh().measured == 0
    assert [unit.multiplier for unit in balancer.units] == [0.5, 0.5, 0.5, 1.0, 1.0]


def test_none_is_the_default_estimator():
    assert tb.Recipe(name="mine", assignment=tb.assign.Linear(), estimator=None).estimator == tb.Hill()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("assignment", tb.assign.Linear),
        ("windows", "farms"),
        ("windows", tb.FARMS),
        ("select", "0.*"),
        ("every", 100),
        ("unfreeze", 1),
    ],
    ids=str,
)
def test_an_option_of_the_wrong_type_is_refused_when_the_recipe_is_built(recipe, option, value):
    with pytest.raises(TypeError, match=f"{option} must be of type .*, got "):
        dataclasses.replace(recipe, **{option: value})
