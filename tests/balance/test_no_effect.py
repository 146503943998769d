"""What has no effect, or follows noise only, is said once; every weight without an alpha is listed with its reason."""

from __future__ import annotations

import dataclasses
import itertools
import math
import warnings

import pytest
import torch
from torch import nn

import tempbalance as tb
from tempbalance.errors import BalanceWarning, NumericsWarning
from tempbalance.types import Status

from .conftest import train

RECIPE = tb.Recipe(name="mine", assignment=tb.assign.Linear(0.5, 1.5), every=tb.Every(steps=2))


def layers(*exponents: float, size: int = 96) -> nn.Sequential:
    """Layers whose eigenvalues are exact quantiles of power laws."""
    net = nn.Sequential(*(nn.Linear(size, size) for _ in exponents))
    for i, (layer, alpha) in enumerate(zip(net, exponents, strict=True)):
        values = tb.testing.pareto_quantiles(size, alpha)
        layer.weight = nn.Parameter(tb.testing.matrix_with_spectrum(values, (size, size), seed=i).float())
    return net


def untrained(number: int, size: int = 96) -> list[nn.Linear]:
    torch.manual_seed(0)
    return [nn.Linear(size, size) for _ in range(number)]


def texts(net: nn.Module, recipe: tb.Recipe, refreshes: int = 3) -> list[str]:
    """Return the warnings of some refreshes."""
    balancer = tb.Balancer(torch.optim.SGD(net.parameters(), lr=1e-3), net, recipe)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(refreshes):
            balancer.refresh()
    return [str(each.message) for each in caught if each.category is BalanceWarning]


DIFFERENT = (2.0, 2.8, 4.0, 6.0)


def test_alphas_that_differ_by_more_than_their_errors_give_no_warning():
    assert texts(layers(*DIFFERENT), RECIPE) == []


def test_equal_alphas_are_noise():
    (text,) = texts(layers(3.0, 3.02, 2.99, 3.01), RECIPE)
    assert text.startswith("mine: the alphas of 4 layers differ by no more than their standard errors")
    assert "multipliers that are not 1 follow noise" in text
    for way in ("leave the balancer off", "assign.Damped", "windows=FARMS()", "unit='block'"):
        assert way in text


class TestFindings:
    def balancer(self, net, recipe=RECIPE):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            balancer = tb.Balancer(torch.optim.SGD(net.parameters(), lr=1e-3), net, recipe)
            assert balancer.findings == ()
            balancer.refresh()
        return balancer

    def test_there_are_none_if_the_multipliers_have_an_effect(self):
        assert self.balancer(layers(*DIFFERENT)).findings == ()

    def test_noise_is_one_in_the_history_and_of_the_balancer(self):
        balancer = self.balancer(layers(3.0, 3.02, 2.99, 3.01))
        assert [finding.kind for finding in balancer.findings] == ["noise"]
        assert balancer.history[-1].findings == balancer.findings
        assert "leave the balancer off" in balancer.findings[0].next_step

    def test_untrained_layers_are_named(self):
        balancer = self.balancer(nn.Sequential(*layers(2.0, 5.0), *untrained(3)))
        assert [(finding.kind, finding.layers) for finding in balancer.findings] == [("untrained", ("2", "3", "4"))]

    def test_alphas_that_did_not_come_closer_are_one(self):
        net = layers(*DIFFERENT)
        balancer = self.balancer(net)
        with torch.no_grad():
            net[3].weight.copy_(layers(9.0)[0].weight)
        balancer.refresh()
        (finding,) = balancer.findings
        assert (finding.kind, finding.severity.value) == ("no_convergence", "note")
        assert finding.evidence["now"] > finding.evidence["before"]
        with torch.no_grad():
            net[3].weight.copy_(layers(4.0)[0].weight)
        balancer.refresh()
        assert balancer.findings == ()

    def test_weights_that_are_not_finite_are_an_error(self):
        net = layers(*DIFFERENT)
        balancer = self.balancer(net)
        with torch.no_grad():
            net[1].weight[0, 0] = math.nan
        with pytest.warns(NumericsWarning):
            balancer.refresh()
        assert (balancer.findings[0].kind, balancer.findings[0].severity.value) == ("nan", "error")


def test_multipliers_of_one_have_no_effect():
    recipe = dataclasses.replace(RECIPE, assignment=tb.assign.Damped(tb.assign.Sigmoid()))
    (text,) = texts(layers(3.0, 3.02, 2.99, 3.01), recipe)
    assert text.startswith("mine: all 4 multipliers are 1; the alphas of 4 layers differ")


def test_a_neutral_recipe_by_depth_has_no_effect():
    (text,) = texts(layers(*DIFFERENT), tb.recipes.layerwise_decay(decay=1.0))
    assert text == "layerwise_decay: all 4 multipliers are 1; leave the balancer off, or use another recipe"


def test_units_without_an_alpha_have_no_effect_and_the_reason_is_given():
    net = nn.Sequential(nn.Linear(4, 64), nn.Linear(64, 2))
    (text,) = texts(net, RECIPE)
    assert "all 2 multipliers are 1, because no layer has an alpha: too few non-zero eigenvalues" in text


@pytest.mark.parametrize(("random", "warned"), [(2, False), (3, True)])
def test_more_than_half_of_the_layers_look_random(random, warned):
    net = nn.Sequential(*layers(2.0, 5.0), *untrained(random))
    found = texts(net, RECIPE)
    assert len(found) == warned
    assert all(f"{random} of the {random + 2} layers with an alpha look random (untrained)" in text for text in found)
    assert all("start=..." in text for text in found)


@pytest.mark.parametrize(
    "changes",
    [{"assignment": tb.assign.AlphaChange(tb.assign.Linear(0.5, 1.5))}, {"spectrum_of": "update"}],
    ids=["change of alpha", "update"],
)
def test_recipes_that_start_at_one_are_not_warned_about_before_training(changes):
    assert texts(layers(*DIFFERENT), dataclasses.replace(RECIPE, **changes)) == []


def test_the_warning_comes_once_in_training(net, recipe):
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    tb.Balancer(optimizer, net, dataclasses.replace(recipe, assignment=tb.assign.Linear(1.0, 1.0)))
    with pytest.warns(BalanceWarning) as caught:
        train(net, optimizer, steps=11)
    assert len(caught) == 1


def test_every_weight_without_an_alpha_is_skipped_with_its_reason():
    net = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))
    nn.init.orthogonal_(net[2].weight)
    balancer = tb.Balancer(torch.optim.Adam(net.parameters()), net, tb.recipes.model_balancing_sciml())
    assert balancer.skipped == ()
    balancer.refresh()
    found = {unit.name: unit for unit in balancer.units}
    assert [(unit.status, unit.reason) for unit in found.values()] == [
        (status, status.message) for status in (Status.TOO_FEW, Status.CONSTANT, Status.TOO_FEW)
    ]
    assert dict(balancer.skipped) == {f"{name}.weight": unit.reason for name, unit in found.items()}


def test_units_have_the_standard_error_of_their_fit_and_no_reason():
    net = layers(*DIFFERENT)
    balancer = tb.Balancer(torch.optim.SGD(net.parameters(), lr=1e-3), net, RECIPE)
    assert all(math.isnan(unit.stderr) for unit in balancer.units)
    for layer, unit in zip(net, balancer.refresh().units, strict=True):
        fit = tb.Hill().fit(tb.weight_spectrum(layer.weight))
        assert (unit.alpha, unit.stderr) == pytest.approx((fit.alpha, fit.stderr))
        assert (unit.status, unit.reason) == (Status.OK, "")


class TestFirstAndLast:
    """They are the first and last layer of the model, not of what is measured."""

    ENDS = dataclasses.replace(RECIPE, first=False, last=False)

    def names(self, net: nn.Module, recipe: tb.Recipe = ENDS) -> list[str]:
        return [unit.name for unit in tb.Balancer(torch.optim.Adam(net.parameters()), net, recipe).units]

    def test_a_last_layer_without_a_spectrum_is_the_last(self):
        widths = [3, 64, 64, 64, 64]
        convs = [nn.Conv2d(a, b, 4) for a, b in itertools.pairwise(widths)]
        assert self.names(nn.Sequential(*convs, nn.Conv2d(64, 1, 4))) == ["1", "2", "3"]

    def test_embeddings_come_before_the_first_layer(self):
        net = nn.Sequential(nn.Embedding(9, 64), *(nn.Linear(64, 64) for _ in range(4)))
        assert self.names(net) == ["2", "3"]

    def test_a_frozen_first_layer_is_the_first(self):
        net = layers(2.0, 3.0, 4.0, 5.0)
        net[0].requires_grad_(False)
        assert self.names(net) == ["1", "2"]

    def test_a_tied_head_is_the_last(self):
        net = nn.Sequential(nn.Embedding(64, 64), *(nn.Linear(64, 64) for _ in range(3)), nn.Linear(64, 64))
        net[4].weight = net[0].weight
        assert self.names(net) == ["2", "3"]
