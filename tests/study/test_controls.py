import math
import random
from statistics import fmean

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tempbalance.balance.assign import LayerwiseDecay, Linear, Sigmoid, UnitFacts
from tempbalance.study import Method
from tempbalance.study.controls import Inverted, Shuffled, Uniform, random_weights
from tempbalance.testing import matrix_with_spectrum, pareto_quantiles

ALPHAS = st.lists(st.floats(1.1, 9) | st.just(math.nan), min_size=2, max_size=9)
INNER = st.sampled_from([Linear(0.5, 1.5), Sigmoid(1.0), Sigmoid((2.0, 1.0), normalize=True)])


def assign(assignment, alphas):
    return assignment.assign([UnitFacts(alpha=alpha) for alpha in alphas])


def test_controls_rearrange_multipliers_by_depth():
    units = [UnitFacts(depth=depth) for depth in (2, 1, 0)]
    assert Inverted(LayerwiseDecay(0.5)).assign(units) == [1.0, 0.5, 0.25]
    assert Uniform(LayerwiseDecay(0.5)).assign(units) == [pytest.approx(1.75 / 3)] * 3


@given(ALPHAS, INNER, st.integers(0, 9))
def test_every_control_keeps_the_mean_and_units_without_alpha(alphas, inner, seed):
    original = assign(inner, alphas)
    for control in (Inverted(inner), Shuffled(inner, seed), Uniform(inner)):
        found = assign(control, alphas)
        assert fmean(found) == pytest.approx(fmean(original))
        assert all(m == 1 for m, alpha in zip(found, alphas, strict=True) if math.isnan(alpha))


@given(ALPHAS, INNER, st.integers(0, 9))
def test_inverted_and_shuffled_permute_the_multipliers(alphas, inner, seed):
    for control in (Inverted(inner), Shuffled(inner, seed)):
        assert sorted(assign(control, alphas)) == sorted(assign(inner, alphas))


@given(st.lists(st.integers(2, 9), min_size=2, max_size=8, unique=True))
def test_inverted_decreases_where_the_assignment_increases(alphas):
    found = assign(Inverted(Linear(0.5, 1.5)), alphas)
    order = sorted(range(len(alphas)), key=alphas.__getitem__)
    assert [found[i] for i in order] == sorted(found, reverse=True)


def test_shuffled_depends_on_the_seed_and_not_on_the_refresh():
    alphas = [2.0, 2.5, 3.0, 4.0, 5.0, 6.0]
    orders = {tuple(assign(Shuffled(Linear(), seed), alphas)) for seed in range(10)}
    assert len(orders) == 10
    assert assign(Shuffled(Linear(), 3), alphas) == assign(Shuffled(Linear(), 3), alphas)


def model_and_optimizer(alphas=(2.2, 3.0, 4.0)):
    model = torch.nn.Sequential(*(torch.nn.Linear(80, 80) for _ in range(3)))
    with torch.no_grad():
        for layer, alpha in zip(model, alphas, strict=True):
            layer.weight.copy_(matrix_with_spectrum(pareto_quantiles(80, alpha), (80, 80)))
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def multipliers(name, seed=0, steps=1, alphas=(2.2, 3.0, 4.0)):
    model, optimizer = model_and_optimizer(alphas)
    balancer = Method(name, seed).balance(optimizer, model, steps_per_epoch=1)
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    return [unit.multiplier for unit in balancer.units]


class TestOnAnOptimizer:
    def test_controls_of_a_recipe_invert_average_or_permute_its_multipliers(self):
        plain = multipliers("model_balancing_sciml:strength=0.5")
        assert plain == sorted(plain)
        assert multipliers("model_balancing_sciml:strength=0.5,control=inverted") == plain[::-1]
        assert multipliers("model_balancing_sciml:strength=0.5,control=uniform") == [fmean(plain)] * 3
        assert sorted(multipliers("model_balancing_sciml:strength=0.5,control=shuffled")) == plain

    def test_untrained_depends_on_the_seed_and_not_on_the_weights(self):
        found = multipliers("model_balancing_sciml:control=untrained", steps=3)
        assert found != [1, 1, 1]
        assert multipliers("model_balancing_sciml:control=untrained", alphas=(5.0, 3.0, 2.0)) == found
        assert multipliers("model_balancing_sciml:control=untrained", seed=1) != found


class TestRandomWeights:
    def test_random_weights_are_restored_exactly_even_after_an_error(self):
        model, _ = model_and_optimizer()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(RuntimeError, match="boom"), random_weights(model, seed=0):
            assert not torch.equal(model[0].weight, before["0.weight"])
            assert torch.equal(model[0].bias, before["0.bias"])
            raise RuntimeError("boom")
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    def test_random_weights_do_not_use_the_global_generators(self):
        model, _ = model_and_optimizer()
        before = torch.get_rng_state(), random.getstate()
        with random_weights(model, seed=0):
            pass
        assert torch.equal(torch.get_rng_state(), before[0])
        assert random.getstate() == before[1]

    def test_random_weights_replace_complex_and_half_but_not_integer_weights(self):
        model = torch.nn.ParameterList(
            [torch.zeros(4, 4, dtype=torch.complex64), torch.zeros(4, 4, dtype=torch.bfloat16)]
        )
        model.append(torch.nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False))
        with random_weights(model, seed=0):
            assert [bool(p.any()) for p in model] == [True, True, False]
