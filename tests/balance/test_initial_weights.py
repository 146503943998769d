"""Spectra of updates; the change of alpha; damping by its standard error."""

import copy
import dataclasses
import math
from statistics import fmean

import peft
import pytest
import torch
import transformers
from torch import nn

import tempbalance as tb
from golden_models import bert_model
from tempbalance.errors import BalanceError

from .conftest import make_net, train


@pytest.fixture
def update(recipe: tb.Recipe) -> tb.Recipe:
    return dataclasses.replace(recipe, spectrum_of="update", every=tb.Every(steps=4))


def alpha_of(weight: torch.Tensor) -> float:
    return tb.Hill().fit(tb.weight_spectrum(weight)).alpha


def nudge(model: nn.Module, seed: int = 0) -> None:
    """Set random gradients."""
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        if p.requires_grad:
            p.grad = torch.randn(p.shape, generator=generator) * torch.rand(
                p.shape[:1] + (1,) * (p.ndim - 1), generator=generator
            )


def alphas(balancer: tb.Balancer) -> dict[str, float]:
    return {unit.name: unit.alpha for unit in balancer.units}


class TestUpdate:
    def test_alpha_of_an_update_is_that_of_the_change_since_the_first_step(self, net, update):
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
        balancer = tb.Balancer(optimizer, net, update)
        net.load_state_dict(make_net(3).state_dict())  # a pre-trained model that comes late
        before = copy.deepcopy(net.state_dict())
        train(net, optimizer, steps=6)
        balancer.refresh()
        for unit in balancer.units:
            name = f"{unit.name}.weight"
            expected = alpha_of(net.state_dict()[name] - before[name])
            assert unit.alpha == pytest.approx(expected, rel=1e-5, nan_ok=True)
        assert sum(math.isfinite(unit.alpha) for unit in balancer.units) > 5

    def test_before_the_first_update_all_multipliers_are_one(self, net, update):
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
        balancer = tb.Balancer(optimizer, net, update)
        balancer.refresh()
        assert {unit.multiplier for unit in balancer.units} == {1.0}
        train(net, optimizer, steps=5)
        first, second = balancer.history[1:]
        assert {unit.multiplier for unit in first.units} == {1.0}
        assert len({unit.multiplier for unit in second.units}) > 3

    def test_a_parameter_with_a_late_first_gradient_is_compared_with_the_first_step(self, net, update):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        balancer = tb.Balancer(optimizer, net, dataclasses.replace(update, unfreeze=tb.Every(steps=3)))
        before = net.blocks[0]["fc1"].weight.detach().clone()
        train(net, optimizer, steps=11)
        balancer.refresh()
        found = alphas(balancer)["blocks.0.fc1"]
        assert found == pytest.approx(alpha_of(net.blocks[0]["fc1"].weight.detach() - before), rel=1e-5)

    def test_updates_of_parts_of_a_parameter_are_read_in_threads(self, update):
        torch.manual_seed(0)
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=32, n_layer=4, n_head=2, vocab_size=50))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        balancer = tb.Balancer(optimizer, model, update)
        before = copy.deepcopy(model.state_dict())
        nudge(model)
        optimizer.step()
        threads = torch.get_num_threads()
        torch.set_num_threads(4)
        try:
            balancer.refresh()
        finally:
            torch.set_num_threads(threads)
        for i in range(4):
            name = f"transformer.h.{i}.attn.c_attn"
            change = model.get_parameter(f"{name}.weight").detach() - before[f"{name}.weight"]
            expected = fmean(alpha_of(part) for part in change.split(32, dim=1))
            assert alphas(balancer)[name] == pytest.approx(expected, rel=1e-5)

    @pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # PEFT asks Transformers for it
    def test_the_update_of_lora_is_the_change_of_the_merged_weight(self, update):
        config = peft.LoraConfig(task_type="SEQ_CLS", r=16, target_modules=["query"], init_lora_weights=False)
        model = peft.get_peft_model(bert_model(), config)
        layer = model.get_submodule("base_model.model.bert.encoder.layer.2.attention.self.query")
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        balancer = tb.Balancer(optimizer, model, update)
        before = layer.get_delta_weight("default").detach()
        nudge(model)
        optimizer.step()
        balancer.refresh()
        expected = alpha_of(layer.get_delta_weight("default").detach() - before)
        assert alphas(balancer)["bert.encoder.layer.2.attention.self.query"] == pytest.approx(expected, rel=1e-3)

    def test_measuring_updates_does_not_change_the_weights(self, net, update):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        balancer = tb.Balancer(optimizer, net, update)
        train(net, optimizer, steps=2)
        before, places = copy.deepcopy(net.state_dict()), [p.data_ptr() for p in net.parameters()]
        balancer.refresh()
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
        assert [p.data_ptr() for p in net.parameters()] == places

    def test_one_copy_of_the_measured_weights_is_kept_and_removed(self, net, update):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        balancer = tb.Balancer(optimizer, net, update)
        train(net, optimizer, steps=2)
        weights = [p for name, p in net.named_parameters() if name.endswith("weight") and "norm" not in name]
        assert {p for p, state in optimizer.state.items() if "tempbalance_start" in state} == set(weights)
        balancer.remove()
        assert not any(optimizer.state.values())

    def test_only_weights_that_moved_are_measured_again(self, net, update):
        lazy = dataclasses.replace(update, tolerance=0.5, every=tb.Every(steps=1))
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
        balancer = tb.Balancer(optimizer, net, lazy)
        nudge(net)
        optimizer.step()
        for p in net.parameters():
            p.grad.mul_(1e-4)
        for _ in range(3):
            optimizer.step()
        assert [refresh.measured for refresh in balancer.history] == [
            8,
            6,
            0,
            0,
        ]  # the others have too few eigenvalues, for ever

    def test_an_optimizer_divided_among_processes_is_refused(self, net, update, divided):
        optimizer = divided(net.parameters(), torch.optim.SGD, lr=0.1)
        with pytest.raises(BalanceError, match="FSDP2"):
            tb.Balancer(optimizer, net, update)


class TestChange:
    def test_alpha_change_follows_the_change_since_the_first_refresh(self, net, recipe):
        recipe = dataclasses.replace(recipe, assignment=tb.assign.AlphaChange(tb.assign.Linear(0.5, 1.5)))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.3)
        balancer = tb.Balancer(optimizer, net, recipe)
        train(net, optimizer, steps=11)
        start, _, end = balancer.history
        assert {unit.multiplier for unit in start.units} == {1.0}
        changes = [after.alpha - before.alpha for before, after in zip(start.units, end.units, strict=True)]
        expected = tb.assign.Linear(0.5, 1.5)([5 + change for change in changes])
        assert [unit.multiplier for unit in end.units] == pytest.approx(expected)
        assert len(set(expected)) > 3


class TestDamped:
    """In training the standard errors are those of the fits, and for a block those of its layers."""

    def balanced(self, model: nn.Module, assignment: tb.assign.Assignment) -> list[tb.balance.UnitState]:
        recipe = tb.Recipe(name="test", assignment=assignment, unit="block")
        balancer = tb.Balancer(torch.optim.SGD(model.parameters(), lr=1.0), model, recipe)
        return balancer.refresh().units

    def model(self, exponents: list[float]) -> nn.Module:
        """A block of two layers per exponent, whose eigenvalues are samples of such a law."""
        model = nn.ModuleDict({"blocks": nn.ModuleList()})
        for i, alpha in enumerate(exponents):
            block = nn.ModuleDict()
            for j in range(2):
                seed = 2 * i + j
                values = tb.testing.pareto_sample(64, alpha, seed=seed)
                block[f"fc{j}"] = nn.Linear(64, 64)
                with torch.no_grad():
                    block[f"fc{j}"].weight.copy_(tb.testing.matrix_with_spectrum(values, (64, 64), seed=seed))
            model["blocks"].append(block)
        return model

    def test_damping_in_training_hardly_changes_different_alphas(self):
        model = self.model([2.0, 3.0, 4.5, 7.0])
        plain, damped = self.balanced(model, tb.assign.Sqrt()), self.balanced(model, tb.assign.Damped(tb.assign.Sqrt()))
        assert [unit.multiplier for unit in damped] == pytest.approx([unit.multiplier for unit in plain], rel=0.06)
        assert [unit.alpha for unit in damped] == [unit.alpha for unit in plain]  # as measured

    def test_the_standard_error_of_a_block_is_that_of_the_mean_over_its_layers(self):
        model = self.model([2.0, 3.0, 4.5, 7.0])
        units = []
        for block in model["blocks"]:
            fits = [tb.Hill().fit(tb.weight_spectrum(layer.weight)) for layer in block.values()]
            stderr = math.sqrt(sum(fit.stderr**2 for fit in fits)) / 2
            units.append(tb.assign.UnitFacts(alpha=fmean(fit.alpha for fit in fits), stderr=stderr))
        found = self.balanced(model, tb.assign.Damped(tb.assign.Sqrt()))
        assert [unit.multiplier for unit in found] == pytest.approx(tb.assign.Damped(tb.assign.Sqrt()).assign(units))

    def test_embeddings_at_the_maximum_are_damped_with_it(self):
        recipe = dataclasses.replace(
            tb.recipes.llr(), assignment=tb.assign.Damped(tb.assign.Sqrt()), estimator=tb.Hill()
        )
        model = bert_model()
        balancer = tb.Balancer(torch.optim.SGD(model.parameters(), lr=1.0), model, recipe)
        multipliers = {unit.name: unit.multiplier for unit in balancer.refresh().units}
        assert multipliers["bert.embeddings.word_embeddings"] == max(multipliers.values())


def test_an_unknown_spectrum_is_refused(recipe):
    with pytest.raises(ValueError, match="spectrum_of must be one of weights, update"):
        dataclasses.replace(recipe, spectrum_of="gradient")
