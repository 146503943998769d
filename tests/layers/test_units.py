"""Units: which parameters go together, in plain models, blocks, LoRA, parametrizations and wrapped models."""

import dataclasses

import peft
import pytest
import torch
import transformers
from torch import nn

import tempbalance as tb
from tempbalance.layers import find_units, find_weights, parameter_names


def units(model: nn.Module, **options) -> dict[str, tuple[str, ...]]:
    return {unit.name: unit.parameters for unit in find_units(model, find_weights(model)[0], **options)}


def small_bert() -> transformers.BertModel:
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=50
    )
    return transformers.BertForSequenceClassification(config)


def test_a_bias_is_in_the_unit_of_its_layer():
    assert units(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))) == {
        "0": ("0.weight", "0.bias"),
        "1": ("1.weight", "1.bias"),
    }


def test_a_model_of_one_layer_is_one_unit():
    assert units(nn.Linear(4, 4)) == {"": ("weight", "bias")}


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(6), nn.GroupNorm(2, 6), nn.InstanceNorm2d(6, affine=True)])
def test_a_norm_follows_the_layer_before_it(norm):
    model = nn.Sequential(nn.Conv2d(3, 6, 3), norm, nn.Conv2d(6, 6, 3))
    assert units(model)["0"] == ("0.weight", "0.bias", "1.weight", "1.bias")
    assert units(model, norms="base")["0"] == ("0.weight", "0.bias")


def test_a_norm_of_another_width_is_in_no_unit():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(7), nn.Linear(4, 4))
    assert not any("1." in name for names in units(model).values() for name in names)


def test_a_norm_after_a_layer_without_a_unit_is_in_no_unit():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.LayerNorm(4))
    (found,) = find_units(model, find_weights(model, tb.Select(include=("0.*",)))[0])
    assert found.parameters == ("0.weight", "0.bias")


def test_a_norm_before_all_layers_is_in_no_unit():
    model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4))
    assert units(model) == {"1": ("1.weight", "1.bias")}


def test_a_block_has_all_its_parameters():
    found = units(small_bert(), unit="block")
    assert list(found) == ["bert.encoder.layer.0", "bert.encoder.layer.1"]
    inside = [name for name in parameter_names(small_bert()) if name.startswith("bert.encoder.layer.1.")]
    assert found["bert.encoder.layer.1"] == tuple(inside)


def test_blocks_with_norms_at_the_base_value_have_no_norms():
    found = units(small_bert(), unit="block", norms="base")
    assert not any("LayerNorm" in name for name in found["bert.encoder.layer.0"])


def test_every_parameter_is_in_one_unit_at_most():
    for options in ({}, {"unit": "block"}, {"norms": "by_name"}, {"norms": "base"}):
        names = [name for parameters in units(small_bert(), **options).values() for name in parameters]
        assert len(names) == len(set(names))


def test_attention_and_recurrent_layers_are_one_unit_each():
    model = nn.ModuleDict({"attn": nn.MultiheadAttention(8, 2), "lstm": nn.LSTM(8, 8, num_layers=2)})
    found = units(model)
    assert found["attn"] == ("attn.in_proj_weight", "attn.in_proj_bias")
    assert found["attn.out_proj"] == ("attn.out_proj.weight", "attn.out_proj.bias")
    assert set(found["lstm"]) == {f"lstm.{name}" for name, _ in model["lstm"].named_parameters()}


def test_a_parameter_of_the_root_module_is_its_own_unit():
    class Loose(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.projection = nn.Parameter(torch.randn(6, 6))
            self.scale = nn.Parameter(torch.ones(()))
            self.fc = nn.Linear(6, 6)

    assert units(Loose()) == {"projection": ("projection",), "fc": ("fc.weight", "fc.bias")}


def test_parameters_that_a_weight_is_computed_from_are_in_its_unit():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 4))
    assert set(units(model)["0"]) == {
        "0.bias",
        "0.parametrizations.weight.original0",
        "0.parametrizations.weight.original1",
    }


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")])
def test_names_have_no_prefix_of_wrappers(wrap):
    model = small_bert()
    assert units(wrap(model)) == units(model)
    assert list(parameter_names(wrap(model))) == list(parameter_names(model))


def test_names_have_no_prefix_of_compiled_blocks():
    model = small_bert()
    expected = units(model, unit="block")
    for i, layer in enumerate(model.bert.encoder.layer):
        model.bert.encoder.layer[i] = torch.compile(layer, backend="eager")
    assert units(model, unit="block") == expected


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # PEFT asks Transformers for it
class TestLora:
    """Only the factors are trained; a unit is an adapted layer, its alpha that of the merged weight."""

    @pytest.fixture
    def model(self) -> nn.Module:
        torch.manual_seed(0)
        config = peft.LoraConfig(
            task_type="SEQ_CLS", r=4, lora_alpha=16, target_modules=["query", "value"], init_lora_weights=False
        )
        return peft.get_peft_model(small_bert(), config)

    @pytest.fixture
    def recipe(self) -> tb.Recipe:
        return tb.Recipe(name="test", assignment=tb.assign.Linear(0.5, 1.5), every=tb.Every(steps=2))

    def step(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        model(input_ids=torch.arange(12).reshape(2, 6), labels=torch.tensor([0, 1])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    @pytest.mark.parametrize("unit", ["layer", "block"])
    def test_units_of_a_lora_model_are_the_adapted_layers(self, model, recipe, unit):
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        balancer = tb.Balancer(optimizer, model, dataclasses.replace(recipe, unit=unit))
        names = {u.name: u.parameters for u in balancer.units}
        layer = "bert.encoder.layer.0"
        if unit == "layer":
            query = f"{layer}.attention.self.query"
            assert names[query] == (f"{query}.lora_A.default.weight", f"{query}.lora_B.default.weight")
        else:
            assert len(names[layer]) == 4
        self.step(model, optimizer)
        adapted = [u for u in balancer.units if u.name.startswith("bert")]
        assert len({u.multiplier for u in adapted}) == len(adapted) == (4 if unit == "layer" else 2)

    @pytest.mark.parametrize("config", [peft.LoHaConfig, peft.OFTConfig, peft.VeraConfig, peft.IA3Config])
    def test_units_of_other_adapters_are_the_adapted_layers(self, recipe, config):
        options = {"feedforward_modules": []} if config is peft.IA3Config else {}
        model = peft.get_peft_model(small_bert(), config(target_modules=["query", "value"], **options))
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        found = units(model)
        query = "bert.encoder.layer.0.attention.self.query"
        expected = {name.removeprefix("base_model.model.") for name in trained if f"{query}." in name}
        assert expected == {name for name in found[query] if "base_layer" not in name} != set()

    def test_alpha_of_a_lora_layer_is_that_of_the_merged_weight(self, model, recipe):
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        balancer = tb.Balancer(optimizer, model, recipe)
        balancer.refresh()
        alphas = {unit.name: unit.alpha for unit in balancer.units}
        merged = model.merge_and_unload().get_submodule("bert.encoder.layer.1.attention.self.value").weight
        expected = tb.Hill().fit(tb.weight_spectrum(merged)).alpha
        assert alphas["bert.encoder.layer.1.attention.self.value"] == pytest.approx(expected, rel=1e-5)

    def test_alpha_of_a_lora_update_is_that_of_the_update_alone(self, model, recipe):
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        recipe = dataclasses.replace(recipe, select=tb.Select(lora="update"), estimator=tb.Hill(min_eigenvalues=2))
        balancer = tb.Balancer(optimizer, model, recipe)
        balancer.refresh()
        layer = model.get_submodule("base_model.model.bert.encoder.layer.1.attention.self.value")
        update = layer.get_delta_weight("default")
        alphas = {unit.name: unit.alpha for unit in balancer.units}
        expected = tb.Hill(min_eigenvalues=2).fit(tb.weight_spectrum(update)).alpha
        assert alphas["bert.encoder.layer.1.attention.self.value"] == pytest.approx(expected, rel=1e-5)

    def test_lora_weights_that_did_not_move_are_not_measured_and_only_factors_are_copied(self, model, recipe):
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-7)
        balancer = tb.Balancer(
            optimizer, model, dataclasses.replace(recipe, every=tb.Every(steps=1), tolerance=0.2, unit="block")
        )
        for _ in range(3):
            self.step(model, optimizer)
        assert [refresh.measured for refresh in balancer.history] == [4, 0, 0]
        copies = [state["tempbalance_reference"].numel() for state in optimizer.state.values() if len(state) > 3]
        assert max(copies) == 4 * 32
        with torch.no_grad():
            layer = model.get_submodule("base_model.model.bert.encoder.layer.1.attention.self.value")
            layer.lora_B["default"].weight.mul_(3)
        self.step(model, optimizer)
        assert balancer.history[-1].measured == 1


def test_of_several_copies_of_a_parameter_the_trained_one_counts():
    """PEFT keeps a copy in modules_to_save for each adapter."""
    head = nn.Module()
    head.original_module = nn.Linear(2, 2).requires_grad_(False)
    head.modules_to_save = nn.ModuleDict(
        {"default": nn.Linear(2, 2), "reference": nn.Linear(2, 2).requires_grad_(False)}
    )
    found = parameter_names(nn.ModuleDict({"classifier": head}))
    assert list(found) == ["classifier.weight", "classifier.bias"]
    assert found["classifier.weight"] is head.modules_to_save["default"].weight
