"""The methods that change which weights are trained, or where they end: WiSE-FT, LoRA, SVFit."""

import copy
import importlib.util

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import tempbalance as tb
from tempbalance.errors import MissingExtraError
from tempbalance.layers import parameter_names
from tempbalance.study import Batch, Method, Training, read_candidates
from tempbalance.study.methods import TRAINING_METHODS


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(70, 60), nn.Tanh(), nn.Linear(60, 80), nn.Tanh(), nn.Linear(80, 3))


X = torch.randn(9, 70, generator=torch.Generator().manual_seed(2))


def tuned(names, net, steps=3):
    """What the prepared model says and how much of it is trained; a copy after training, what it says, its end."""
    joined = Method(names)
    model = joined.prepare(copy.deepcopy(net), Training(0, 1, steps))
    first = model.eval()(X).detach(), trained_count(model)
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(16, 70, generator=generator), torch.randint(3, (16,), generator=generator)
    for _ in range(steps):
        outputs = model(x)
        joined.loss(model, Batch(x, y), outputs, cross_entropy(outputs, y)).backward()
        optimizer.step()
        optimizer.zero_grad()
    last, outputs = copy.deepcopy(model).eval(), model.eval()(X).detach()
    return *first, last, outputs, joined.finish(model, []).eval()


def trained_count(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


# WiSE-FT


@pytest.mark.parametrize("coefficient", [0, 0.25, 1])
def test_wise_ft_interpolates_all_but_the_head(net, coefficient):
    *_, last, _, found = tuned(f"wise_ft:coefficient={coefficient}", net)
    for name, weight in found.named_parameters():
        before, after = net.get_parameter(name), last.get_parameter(name)
        expected = after if name.startswith("4.") else before + coefficient * (after - before)
        assert not torch.equal(before, after)
        torch.testing.assert_close(weight, expected)


def test_wise_ft_by_alpha_interpolates_layers_with_a_small_alpha_further(trained):
    before = nn.Sequential(*(nn.Linear(80, 80) for _ in range(4)))
    for parameter in before.parameters():
        nn.init.zeros_(parameter)
    wise = TRAINING_METHODS["wise_ft"](coefficient=0.5, strength=1.0)
    wise.prepare(before, Training(0, 1, 1))
    alphas = [tb.Hill().fit(tb.weight_spectrum(layer.weight)).alpha for layer in trained]
    multipliers = tb.assign.Sigmoid(1.0).assign([tb.assign.UnitFacts(alpha=alpha) for alpha in alphas])
    after = copy.deepcopy(trained)
    wise.finish(trained, [])
    found = [(layer.weight / old.weight).median().item() for layer, old in zip(trained, after, strict=True)][:3]
    assert found == pytest.approx([min(1, 0.5 * multiplier) for multiplier in multipliers[:3]], rel=1e-5)
    assert found[0] < found[2]
    assert torch.equal(trained[3].weight, after[3].weight)  # the head


def test_label_smoothing_of_wise_ft_agrees_with_pytorch(net):
    x, y = torch.randn(5, 70), torch.randint(3, (5,))
    outputs = net(x)
    wise = TRAINING_METHODS["wise_ft"](smoothing=0.2)
    found = wise.loss(net, Batch(x, y), outputs, cross_entropy(outputs, y))
    torch.testing.assert_close(found, cross_entropy(outputs, y, label_smoothing=0.2))


# LoRA


def test_lora_trains_two_factors_a_layer_and_the_head(net):
    first, count, _, last, merged = tuned("lora:rank=4", net)
    assert count == 4 * (70 + 60) + 4 * (60 + 80) + 3 * 80 + 3
    torch.testing.assert_close(first, net(X))
    torch.testing.assert_close(last, merged(X))
    assert not torch.allclose(last, first)
    assert {name: p.shape for name, p in merged.named_parameters()} == {n: p.shape for n, p in net.named_parameters()}
    assert torch.linalg.matrix_rank(merged[2].weight - net[2].weight, rtol=1e-4) == 4


def test_lora_is_balanced_by_the_alphas_of_the_merged_weights(net):
    own = TRAINING_METHODS["lora"](rank=4, scale=3.0)
    model = own.prepare(net, Training(0, 1, 1))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    factors = [id(p) for name, p in model.named_parameters() if "lora_" in name]
    method = Method("lora+model_balancing:unit=layer,every=1")
    balancer = method.balance(optimizer, model)
    for _ in range(2):  # B is 0 at first, and so is the gradient of A
        model(torch.ones(2, 70)).sum().backward()
        optimizer.step()
    refresh = balancer.refresh()
    names = parameter_names(model)
    merged = own.finish(model, [])
    expected = [tb.Hill().fit(tb.weight_spectrum(merged[place].weight)).alpha for place in (0, 2)]
    assert [unit.alpha for unit in refresh.units[:2]] == pytest.approx(expected, rel=1e-4)
    owners = {id(names[name]): unit.name for unit in refresh.units for name in unit.parameters}
    assert [owners[factor] for factor in factors] == [unit.name for unit in refresh.units[:2] for _ in "AB"]


def test_wise_ft_joined_before_lora_interpolates_the_merged_weights(net):
    *_, last, _, found = tuned("wise_ft:coefficient=0.5+lora:rank=4", net)
    merged = last.merge_and_unload()
    for place in (0, 2):
        torch.testing.assert_close(found[place].weight, (net[place].weight + merged[place].weight) / 2)
    assert torch.equal(found[4].weight, merged[4].weight)


def test_wise_ft_by_alpha_uses_the_alphas_of_the_merged_weights_of_lora(net):
    *_, even = tuned("wise_ft:coefficient=0.5+lora:rank=4", net)
    *_, last, _, found = tuned("wise_ft:coefficient=0.5,strength=1+lora:rank=4", net)
    assert not torch.equal(even[0].weight, found[0].weight)
    merged = last.merge_and_unload()
    ratio = (found[0].weight - net[0].weight) / (merged[0].weight - net[0].weight)
    assert 0.5 * 10**-0.5 <= ratio.median().item() <= 0.5 * 10**0.5


def test_without_peft_lora_is_refused_by_its_name_before_training(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'tempbalance\[peft\]'"):
        read_candidates(["lora:rank=4"])


# SVFit


@pytest.mark.parametrize(("rank", "count"), [(None, 60 + 60), (5, 5 + 5)])
def test_svfit_trains_the_largest_singular_values_and_the_head(net, rank, count):
    first, trained, _, last, found = tuned(f"svfit:rank={rank}" if rank else "svfit", net)
    assert trained == count + 3 * 80 + 3
    torch.testing.assert_close(first, net(X), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(last, found(X))
    for place in (0, 2):
        u, s, vh = torch.linalg.svd(net[place].weight.detach(), full_matrices=False)
        turned = u.T @ found[place].weight.detach() @ vh.T
        torch.testing.assert_close(turned - turned.diag().diag(), torch.zeros_like(turned), atol=1e-5, rtol=0)
        moved = (turned.diag() - s).abs() > 1e-4
        assert moved[:rank].any()
        assert not moved[rank or len(s) :].any()
        assert torch.equal(found[place].bias, net[place].bias)
    assert not torch.equal(found[4].bias, net[4].bias)


def test_svfit_can_be_balanced(net):
    own = TRAINING_METHODS["svfit"]()
    model = own.prepare(net, Training(0, 1, 1))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    balancer = tb.Balancer(optimizer, model, tb.recipes.model_balancing_sciml(), steps_per_epoch=10)
    expected = [tb.Hill().fit(tb.weight_spectrum(net[place].weight)).alpha for place in (0, 2)]
    assert [unit.alpha for unit in balancer.refresh().units[:2]] == pytest.approx(expected, rel=1e-3)
