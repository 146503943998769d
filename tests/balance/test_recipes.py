"""Recipes: the released variants give the multipliers of the authors' code, on seeded models."""

import json
from pathlib import Path

import pytest
import torch

import tempbalance as tb
from golden_models import bert_model, chain_model, fno2d_model, llama_model, vision_model
from tempbalance.balance import recipes

from .conftest import by_parameter, in_steps

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "assignments.json").read_text())
MAPS = {
    "tb_linear_map": tb.assign.Linear(0.5, 1.5),
    "tb_sqrt": tb.assign.Sqrt(),
    "tb_log2": tb.assign.Log2(),
    "tb_step": tb.released.RankAsReleased(0.5, 1.5),
}
MODELS = {"vision": vision_model, "vision32": lambda: vision_model(32)}
PUBLISHED = [
    *(
        (f"tempbalance {model} {name}", MODELS[model], tb.released.tempbalance_as_released(assignment=assignment))
        for model in MODELS
        for name, assignment in MAPS.items()
    ),
    *(
        (
            f"modelbalancing bert block sigmoid {below} {above}",
            bert_model,
            tb.released.model_balancing_as_released(strength=(float(below), float(above))),
        )
        for below, above in [("1", "1"), ("2", "1"), ("0.25", "0.25")]
    ),
    (
        "modelbalancing fno2d of scale 1 sigmoid 1",
        lambda: fno2d_model(scale=1.0),
        tb.released.model_balancing_sciml_as_released(),
    ),
    ("alphadecay llama linear float64", llama_model, tb.released.alphadecay_as_released()),
    ("llr llama linear float64", llama_model, tb.released.llr_as_released()),
]


def balanced(model: torch.nn.Module, recipe: tb.Recipe) -> tuple[torch.optim.Optimizer, tb.Balancer]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    balancer = tb.Balancer(optimizer, model, recipe, steps_per_epoch=10)
    balancer.refresh()
    return optimizer, balancer


def all_multipliers(model: torch.nn.Module, balancer: tb.Balancer) -> dict[str, float]:
    """Return the multiplier of every parameter; 1 for those in no unit."""
    return {**{name: 1.0 for name, _ in model.named_parameters()}, **by_parameter(balancer)}


@pytest.mark.parametrize(("case", "build", "recipe"), PUBLISHED, ids=[case for case, *_ in PUBLISHED])
def test_every_parameter_gets_the_multiplier_of_the_released_code(case, build, recipe):
    model = build()
    assert all_multipliers(model, balanced(model, recipe)[1]) == pytest.approx(
        GOLDEN["cases"][case]["parameters"], rel=1e-5
    )


@pytest.mark.parametrize("case", [f"modelbalancing bert block sigmoid {s}" for s in ("1 1", "2 1", "0.25 0.25")])
def test_blocks_have_the_mean_alpha_of_the_released_code(case):
    _, balancer = balanced(bert_model(), tb.released.model_balancing_as_released())
    expected = {f"bert.encoder.layer.{i}": b["alpha_mean"] for i, b in GOLDEN["cases"][case]["blocks"].items()}
    assert {unit.name: unit.alpha for unit in balancer.units} == pytest.approx(expected, rel=1e-6)


TWINS = {
    "tempbalance tb_linear_map": tb.released.tempbalance_as_released(),
    "alphadecay linear": tb.released.alphadecay_as_released(),
    "llr linear": tb.released.llr_as_released(),
    "modelbalancing block sigmoid 1 1": tb.released.model_balancing_as_released(strength=1.0),
}


@pytest.mark.parametrize("twin", TWINS)
def test_equal_alphas_are_neutral_where_the_released_code_takes_the_maximum(twin):
    _, balancer = balanced(chain_model("equal"), TWINS[twin])
    assert set(by_parameter(balancer).values()) == {1.0}


@pytest.mark.parametrize("twin", TWINS)
def test_a_layer_of_zeros_keeps_the_base_rate_and_does_not_affect_the_others(twin):
    _, balancer = balanced(chain_model("zeros"), TWINS[twin])
    multipliers = by_parameter(balancer)
    assert multipliers["layers.2.fc.weight"] == multipliers["layers.2.fc.bias"] == 1.0
    others = [unit.multiplier for unit in balancer.units if not unit.name.startswith("layers.2")]
    assert all(torch.isfinite(torch.tensor(others)))
    assert len(set(others)) > 1


AS_RELEASED = [getattr(tb.released, name) for name in tb.released.__all__ if name.endswith("_as_released")]
# Without those by hand, which have no published settings, and those of another optimizer.
ALL = [
    *(getattr(recipes, name) for name in recipes.__all__ if name not in {"by_role", "fixed", "muon_factors"}),
    *AS_RELEASED,
]


@pytest.mark.parametrize("make", ALL, ids=lambda make: make.__name__)
class TestEveryRecipe:
    def test_every_recipe_has_a_source_and_deviations(self, make):
        recipe = make()
        assert recipe.name == make.__name__
        assert recipe.source
        assert recipe.deviations

    def test_every_recipe_balances_a_transformer(self, make):
        _, balancer = balanced(llama_model(), make())
        multipliers = [unit.multiplier for unit in balancer.units]
        assert len(set(multipliers)) > 1

    def test_recipes_of_equal_settings_are_equal_and_hashable(self, make):
        assert make() == make()
        assert len({make(), make()}) == 1


@pytest.mark.parametrize(
    "make",
    [recipes.tempbalance, recipes.model_balancing, recipes.model_balancing_sciml, recipes.alphadecay, recipes.llr],
)
def test_every_recipe_takes_farms_windows(make):
    """Windows change the alphas of layers of different shapes, and so the multipliers."""
    plain = balanced(llama_model(), make())[1]
    farms = balanced(llama_model(), make(windows=tb.FARMS()))[1]
    assert [unit.name for unit in plain.units] == [unit.name for unit in farms.units]
    assert [unit.multiplier for unit in plain.units] != [unit.multiplier for unit in farms.units]


class TestPublishedSettings:
    def test_tempbalance_gives_norms_the_multiplier_of_their_layer_also_in_shortcuts(self):
        _, balancer = balanced(vision_model(32), recipes.tempbalance())
        multipliers = by_parameter(balancer)
        for unit in balancer.units:
            norm = unit.name.replace("conv", "bn") if "conv" in unit.name else unit.name.replace("t.0", "t.1")
            assert multipliers[f"{norm}.weight"] == multipliers[f"{unit.name}.weight"] == unit.multiplier
        assert multipliers["layer3.0.shortcut.1.weight"] != 1.0

    def test_tempbalance_keeps_the_base_rate_of_the_first_and_last_layer(self):
        model = vision_model()
        _, balancer = balanced(model, recipes.tempbalance())
        multipliers = all_multipliers(model, balancer)
        assert {multipliers[name] for name in ("conv1.weight", "bn1.weight", "linear.weight", "linear.bias")} == {1.0}
        reasons = dict(balancer.skipped)
        assert "first layer" in reasons["conv1.weight"]
        assert "last layer" in reasons["linear.weight"]

    def test_model_balancing_keeps_the_base_rate_of_embeddings_pooler_and_head(self):
        model = bert_model()
        _, balancer = balanced(model, recipes.model_balancing())
        multipliers = all_multipliers(model, balancer)
        at_base = {name for name, multiplier in multipliers.items() if multiplier == 1.0}
        outside = {name for name in multipliers if ".encoder.layer." not in name}
        assert at_base == outside
        assert [unit.name for unit in balancer.units] == [f"bert.encoder.layer.{i}" for i in range(4)]

    def test_model_balancing_sciml_measures_complex_weights_and_as_released_does_not(self):
        ours = balanced(fno2d_model(), recipes.model_balancing_sciml())[1]
        theirs = balanced(fno2d_model(), tb.released.model_balancing_sciml_as_released())[1]
        assert {f"conv{i}" for i in range(4)} <= {unit.name for unit in ours.units}
        assert not {f"conv{i}" for i in range(4)} & {unit.name for unit in theirs.units}

    def test_alphadecay_changes_the_weight_decay_only(self):
        model = llama_model()
        optimizer, _ = balanced(model, recipes.alphadecay())
        rates, decays = in_steps(optimizer, model), in_steps(optimizer, model, "weight_decay")
        model(torch.arange(8)[None]).logits.sum().backward()
        optimizer.step()
        assert set(rates[0].values()) == {0.1}
        assert len(set(decays[0].values())) > 10

    def test_llr_gives_embeddings_and_head_the_largest_multiplier(self):
        model = llama_model()
        multipliers = all_multipliers(model, balanced(model, recipes.llr())[1])
        assert multipliers["model.embed_tokens.weight"] == multipliers["lm_head.weight"] == 5.0
        assert multipliers["model.norm.weight"] == 1.0

    def test_model_balancing_with_normalize_keeps_the_mean_rate(self):
        _, balancer = balanced(bert_model(), recipes.model_balancing(normalize=True))
        assert sum(unit.multiplier for unit in balancer.units) / 4 == pytest.approx(1.0)
