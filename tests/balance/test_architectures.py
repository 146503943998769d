"""Recipes on real architectures: neural operators, experts, fused attention."""

import dataclasses
import math

import pytest
import torch
import transformers
from torch import nn

import tempbalance as tb
from tempbalance.balance import recipes


def balanced(model: nn.Module, recipe: tb.Recipe) -> tb.Balancer:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    balancer = tb.Balancer(optimizer, model, recipe, steps_per_epoch=10)
    balancer.refresh()
    return balancer


@pytest.mark.parametrize("factorization", [None, "tucker"])
def test_fno_spectral_weights_are_units_with_their_bias(factorization):
    neuralop = pytest.importorskip("neuralop.models")
    torch.manual_seed(0)
    model = neuralop.FNO(
        n_modes=(6, 6), hidden_channels=24, in_channels=1, out_channels=1, n_layers=3, factorization=factorization,
        rank=0.5, implementation="factorized" if factorization else "reconstructed",
    )  # fmt: skip
    balancer = balanced(model, recipes.model_balancing_sciml())
    units = {unit.name: unit for unit in balancer.units}
    spectral = [units[f"fno_blocks.convs.{i}"] for i in range(3)]
    assert all(math.isfinite(unit.alpha) for unit in spectral)
    assert len({unit.multiplier for unit in spectral}) == 3
    names = {unit.name: unit.parameters for unit in balancer.units}
    assert "fno_blocks.convs.1.bias" in names["fno_blocks.convs.1"]
    assert all(name.startswith("fno_blocks.convs.1.") for name in names["fno_blocks.convs.1"])


class UNet(nn.Module):
    """One level down and up again, with batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder1 = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16))
        self.encoder2 = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32))
        self.up = nn.ConvTranspose2d(32, 16, 2, stride=2)
        self.decoder = nn.Sequential(nn.Conv2d(32, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16))
        self.head = nn.Conv2d(16, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        high = self.encoder1(x).relu()
        low = self.encoder2(nn.functional.max_pool2d(high, 2)).relu()
        return self.head(self.decoder(torch.cat([self.up(low), high], 1)).relu())


def test_unet_trains_with_transposed_convolutions_and_norms_in_their_units():
    torch.manual_seed(0)
    model = UNet()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    balancer = tb.Balancer(optimizer, model, recipes.model_balancing_sciml())
    for _ in range(26):
        model(torch.randn(4, 1, 8, 8)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    units = {unit.name: unit for unit in balancer.units}
    assert math.isfinite(units["up"].alpha)
    names = {unit.name: unit.parameters for unit in balancer.units}
    assert names["encoder2.0"] == ("encoder2.0.weight", "encoder2.1.weight", "encoder2.1.bias")
    assert [refresh.step for refresh in balancer.history] == [0, 25]


def test_a_unit_of_fused_attention_has_the_mean_alpha_of_its_parts():
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=50))
    balancer = balanced(model, dataclasses.replace(recipes.tempbalance(), estimator=tb.Hill(), first=True))
    units = {unit.name: unit.alpha for unit in balancer.units}
    weight = model.transformer.h[1].attn.c_attn.weight.detach()
    parts = [tb.Hill().fit(tb.weight_spectrum(part)).alpha for part in weight.split(32, dim=1)]
    assert units["transformer.h.1.attn.c_attn"] == pytest.approx(sum(parts) / 3)


def test_experts_of_one_parameter_are_one_unit_with_their_mean_alpha():
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        num_local_experts=3, vocab_size=50,
    )  # fmt: skip
    model = transformers.MixtralForCausalLM(config)
    balancer = balanced(model, dataclasses.replace(recipes.llr(), estimator=tb.Hill()))
    (experts,) = [unit for unit in balancer.units if unit.name.endswith("layers.1.mlp.experts")]
    rows = [row for row in tb.layers.find_weights(model)[0] if row.name.startswith(f"{experts.name}.")]
    alphas = [tb.Hill().fit(tb.weight_spectrum(row.load())).alpha for row in rows]
    assert len(rows) == 9  # gate, up and down of three experts
    assert experts.alpha == pytest.approx(sum(alphas) / 9)
