"""Recipes by depth: the published factors on every parameter, and no spectra."""

import dataclasses
import math
import re

import peft
import pytest
import torch
import transformers
from torch import nn

import tempbalance as tb
from golden_models import bert_model, llama_model, vision_model
from tempbalance.balance import recipes
from tempbalance.errors import BalanceError

from .conftest import in_steps, train

NO_DECAY = ("bias", "norm")


def factors(model: nn.Module, recipe: tb.Recipe) -> dict[str, float]:
    """Return the learning rate of a step by parameter; weights and others have different options, as in fine-tuning."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    plain = [name for name in named if any(word in name.lower() for word in NO_DECAY)]
    groups = [
        {"params": [p for name, p in named.items() if name not in plain], "weight_decay": 0.1},
        {"params": [named[name] for name in plain], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1.0)
    tb.Balancer(optimizer, model, recipe, steps_per_epoch=10)
    applied = in_steps(optimizer, model)
    optimizer.step()
    return applied[0]


def published(names: list[str], blocks: str, below: tuple[str, ...], layers: int, decay: float) -> dict[str, float]:
    """BEiT, optim_factory.py: ids 0 (embeddings), 1 .. layers (blocks), layers + 1; decay^(layers + 1 - id)."""
    found = {}
    for name in names:
        block = re.match(rf"{re.escape(blocks)}\.(\d+)\.", name)
        number = int(block[1]) + 1 if block else 0 if name.startswith(below) else layers + 1
        found[name] = decay ** (layers + 1 - number)
    return found


def vit() -> nn.Module:
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8
    )
    return transformers.ViTForImageClassification(config)


@pytest.mark.parametrize("decay", [0.65, 0.9])
@pytest.mark.parametrize(
    ("build", "blocks", "below", "layers"),
    [
        (bert_model, "bert.encoder.layer", ("bert.embeddings",), 4),
        (llama_model, "model.layers", ("model.embed_tokens",), 4),
        (vit, "vit.layers", ("vit.embeddings",), 3),
    ],
)
def test_layerwise_decay_is_the_published_formula_on_every_parameter(build, blocks, below, layers, decay):
    model = build()
    names = [name for name, _ in model.named_parameters()]
    expected = published(names, blocks, below, layers, decay)
    assert len(set(expected.values())) == layers + 2
    assert factors(model, recipes.layerwise_decay(decay=decay)) == pytest.approx(expected, rel=1e-12)


class TestDepth:
    def test_depth_counts_the_blocks_of_all_stages(self):
        found = factors(vision_model(), recipes.layerwise_decay(decay=0.5))
        assert found["linear.weight"] == 1
        assert [found[f"layer{stage}.{block}.bn1.weight"] for stage in (3, 2, 1) for block in (1, 0)] == [
            0.5**depth for depth in range(1, 7)
        ]
        assert found["conv1.weight"] == found["bn1.weight"] == 0.5**7

    def test_encoder_and_decoder_have_depths_of_their_own(self):
        config = transformers.T5Config(
            d_model=32, d_kv=16, d_ff=64, num_layers=3, num_decoder_layers=1, num_heads=2, vocab_size=50
        )
        found = factors(transformers.T5ForConditionalGeneration(config), recipes.layerwise_decay(decay=0.5))
        assert [found[f"encoder.block.{i}.layer.0.layer_norm.weight"] for i in range(3)] == [0.5**3, 0.5**2, 0.5]
        assert found["decoder.block.0.layer.0.layer_norm.weight"] == 0.5
        assert found["shared.weight"] == 0.5**4
        assert found["encoder.final_layer_norm.weight"] == found["decoder.final_layer_norm.weight"] == 1

    def test_the_last_blocks_of_both_towers_of_clip_are_unfrozen_together(self):
        shared = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
        config = transformers.CLIPConfig(
            text_config=shared | {"num_hidden_layers": 2, "vocab_size": 50},
            vision_config=shared | {"num_hidden_layers": 3, "image_size": 32, "patch_size": 16},
        )
        model = transformers.CLIPModel(config)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        recipe = dataclasses.replace(recipes.gradual_unfreezing(), unfreeze=tb.Every(steps=1), every=tb.Every(steps=1))
        balancer = tb.Balancer(optimizer, model, recipe)
        batch = {"input_ids": torch.ones(2, 4, dtype=torch.long), "pixel_values": torch.zeros(2, 3, 32, 32)}
        trained = []
        for _ in range(3):
            model(**batch, return_loss=True).loss.backward()
            names = (name for name, p in model.named_parameters() if p.requires_grad)
            trained.append({name.partition(".encoder.layers.")[2][:1] for name in names if ".layers." in name})
            optimizer.step()
        balancer.remove()
        assert trained == [set(), {"1", "2"}, {"0", "1", "2"}]

    def test_a_tied_head_has_the_depth_of_the_embedding(self):
        config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=50)
        found = factors(transformers.GPT2LMHeadModel(config), recipes.layerwise_decay(decay=0.5))
        assert found["transformer.wte.weight"] == 0.5**3
        assert found["transformer.ln_f.weight"] == 1

    def test_without_blocks_depth_is_counted_in_layers(self):
        net = nn.Sequential(nn.Embedding(9, 4), nn.LayerNorm(4), nn.Linear(4, 4), nn.LayerNorm(7), nn.Linear(4, 2))
        found = factors(net, recipes.layerwise_decay(decay=0.5))
        assert [found[f"{i}.weight"] for i in range(5)] == [0.25, 0.25, 0.5, 0.5, 1]

    def test_a_model_of_norms_has_depth_zero(self):
        assert factors(nn.LayerNorm(8), recipes.slow_learner()) == {"weight": 1, "bias": 1}

    @pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # PEFT asks Transformers for it
    def test_adapters_have_the_depth_of_their_layers(self):
        config = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query"])
        found = factors(peft.get_peft_model(bert_model(), config), recipes.layerwise_decay(decay=0.5))
        assert found["bert.encoder.layer.0.attention.self.query.lora_A.default.weight"] == 0.5**4
        assert found["classifier.weight"] == 1

    def test_slow_learner_gives_all_but_the_head_its_fraction(self):
        found = factors(bert_model(), recipes.slow_learner(fraction=0.125))
        at_head = {name for name, factor in found.items() if factor == 1}
        assert at_head == {name for name in found if name.startswith(("bert.pooler", "classifier"))}
        assert {factor for name, factor in found.items() if name not in at_head} == {0.125}

    def test_depth_units_are_named_after_blocks_from_the_embeddings_to_the_head(self):
        model = bert_model()
        found = tb.Balancer(torch.optim.SGD(model.parameters(), lr=1.0), model, recipes.layerwise_decay())
        layers = [f"bert.encoder.layer.{i}" for i in range(4)]
        assert [unit.name for unit in found.units] == ["below the blocks", *layers, "above the blocks"]
        assert found.skipped == ()


class TestNoSpectra:
    def test_a_recipe_by_depth_fits_no_spectrum(self, net):
        class Unused(tb.Hill):
            def fit_batch(self, eigenvalues):
                raise AssertionError("a spectrum was fitted")

        recipe = dataclasses.replace(recipes.layerwise_decay(), estimator=Unused(), every=tb.Every(steps=1))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        balancer = tb.Balancer(optimizer, net, recipe)
        train(net, optimizer, steps=2)
        assert [refresh.measured for refresh in balancer.history] == [0, 0]
        assert all(math.isnan(unit.alpha) for unit in balancer.units)


class TestTimes:
    """A prior by depth times balancing by alpha."""

    def test_times_gives_every_parameter_the_product(self):
        by_alpha = dataclasses.replace(recipes.model_balancing(), tolerance=0.0)
        both = dataclasses.replace(
            by_alpha, assignment=tb.assign.Times(tb.assign.LayerwiseDecay(0.5), by_alpha.assignment)
        )
        depth, alpha = factors(bert_model(), recipes.layerwise_decay(decay=0.5)), factors(bert_model(), by_alpha)
        assert len(set(alpha.values())) == 5
        assert factors(bert_model(), both) == pytest.approx({name: depth[name] * alpha[name] for name in depth})

    def test_depth_is_counted_in_blocks_also_with_unit_layer(self):
        recipe = tb.Recipe(
            name="mine", assignment=tb.assign.Times(tb.assign.LayerwiseDecay(0.5), tb.assign.Linear(0.8, 1.2))
        )
        alpha = factors(bert_model(), dataclasses.replace(recipe, assignment=tb.assign.Linear(0.8, 1.2)))
        depth = factors(bert_model(), recipes.layerwise_decay(decay=0.5))
        assert factors(bert_model(), recipe) == pytest.approx({name: depth[name] * alpha[name] for name in depth})

    def test_unmeasured_parameters_of_a_block_have_their_own_unit(self):
        model = llama_model()
        recipe = tb.Recipe(
            name="mine", assignment=tb.assign.Times(tb.assign.LayerwiseDecay(), tb.assign.Linear()), norms="base"
        )
        balancer = tb.Balancer(torch.optim.SGD(model.parameters(), lr=1.0), model, recipe)
        names = [unit.name for unit in balancer.units]
        assert len(set(names)) == len(names)
        assert names[0] == "below the blocks"
        assert "rest of model.layers.0" in names

    def test_times_by_block_refuses_a_model_without_blocks(self):
        model = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20))
        recipe = tb.Recipe(
            name="mine", assignment=tb.assign.Times(tb.assign.LayerwiseDecay(), tb.assign.Sigmoid()), unit="block"
        )
        with pytest.raises(BalanceError, match="unit='layer'"):
            tb.Balancer(torch.optim.SGD(model.parameters(), lr=1.0), model, recipe)


@pytest.mark.parametrize(
    "make",
    [
        lambda: tb.assign.LayerwiseDecay(0.0),
        lambda: tb.assign.LayerwiseDecay(1.1),
        lambda: tb.assign.LayerwiseDecay(math.nan),
        lambda: tb.assign.SlowLearner(-0.1),
        lambda: tb.assign.SlowLearner(2.0),
        lambda: recipes.gradual_unfreezing(decay=2.6),
        lambda: recipes.gradual_unfreezing(epochs=0.0),
    ],
)
def test_parameters_out_of_range_are_refused(make):
    with pytest.raises(ValueError, match="must be"):
        make()
