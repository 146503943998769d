"""Rates by depth: the published factors on every parameter, frozen parts that nothing touches, and no spectra."""

import copy
import dataclasses
import math
import re

import peft
import pytest
import torch
import transformers
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

import tempbalance as tb
from golden_models import bert_model, llama_model, vision_model
from tempbalance.balance import recipes
from tempbalance.errors import BalanceError

from .conftest import batches, make_net, train

NO_DECAY = ("bias", "norm")


def factors(model: nn.Module, recipe: tb.Recipe) -> dict[str, float]:
    """What applies in a step, by parameter; two groups of options, as fine-tuning has them."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    plain = [name for name in named if any(word in name.lower() for word in NO_DECAY)]
    groups = [
        {"params": [p for name, p in named.items() if name not in plain], "weight_decay": 0.1},
        {"params": [named[name] for name in plain], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1.0)
    tb.Balancer(optimizer, model, recipe, steps_per_epoch=10)
    applied = {}
    optimizer.register_step_pre_hook(
        lambda o, *_: applied.update({name: g["lr"] for g in o.param_groups for name in g["tempbalance"]["names"]})
    )
    optimizer.step()
    return applied


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
    def test_a_network_of_stages(self):
        found = factors(vision_model(), recipes.layerwise_decay(decay=0.5))
        assert found["linear.weight"] == 1
        assert [found[f"layer{stage}.{block}.bn1.weight"] for stage in (3, 2, 1) for block in (1, 0)] == [
            0.5**depth for depth in range(1, 7)
        ]
        assert found["conv1.weight"] == found["bn1.weight"] == 0.5**7

    def test_what_lies_between_two_stacks_goes_with_the_block_before(self):
        config = transformers.T5Config(d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, vocab_size=50)
        found = factors(transformers.T5ForConditionalGeneration(config), recipes.layerwise_decay(decay=0.5))
        assert found["shared.weight"] == 0.5**5
        assert found["encoder.final_layer_norm.weight"] == 0.5**3
        assert found["decoder.block.1.layer.0.layer_norm.weight"] == 0.5

    def test_a_tied_head_counts_as_embedding(self):
        config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=50)
        found = factors(transformers.GPT2LMHeadModel(config), recipes.layerwise_decay(decay=0.5))
        assert found["transformer.wte.weight"] == 0.5**3
        assert found["transformer.ln_f.weight"] == 1

    def test_without_blocks_layers_count(self):
        net = nn.Sequential(nn.Embedding(9, 4), nn.LayerNorm(4), nn.Linear(4, 4), nn.LayerNorm(7), nn.Linear(4, 2))
        found = factors(net, recipes.layerwise_decay(decay=0.5))
        assert [found[f"{i}.weight"] for i in range(5)] == [0.25, 0.25, 0.5, 0.5, 1]

    def test_a_model_of_norms_is_a_head(self):
        assert factors(nn.LayerNorm(8), recipes.slow_learner()) == {"weight": 1, "bias": 1}

    @pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # PEFT asks Transformers for it
    def test_adapters_lie_where_their_layers_do(self):
        config = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query"])
        found = factors(peft.get_peft_model(bert_model(), config), recipes.layerwise_decay(decay=0.5))
        assert found["bert.encoder.layer.0.attention.self.query.lora_A.default.weight"] == 0.5**4
        assert found["classifier.weight"] == 1

    def test_a_slow_learner(self):
        found = factors(bert_model(), recipes.slow_learner(fraction=0.125))
        at_head = {name for name, factor in found.items() if factor == 1}
        assert at_head == {name for name in found if name.startswith(("bert.pooler", "classifier"))}
        assert {factor for name, factor in found.items() if name not in at_head} == {0.125}

    def test_units_are_named_from_the_embeddings_up_and_share_names_with_no_module(self):
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

    def test_every_parameter_gets_the_product(self):
        by_alpha = dataclasses.replace(recipes.model_balancing(), tolerance=0.0)
        both = dataclasses.replace(
            by_alpha, assignment=tb.assign.Times(tb.assign.LayerwiseDecay(0.5), by_alpha.assignment)
        )
        depth, alpha = factors(bert_model(), recipes.layerwise_decay(decay=0.5)), factors(bert_model(), by_alpha)
        assert len(set(alpha.values())) == 5
        assert factors(bert_model(), both) == pytest.approx({name: depth[name] * alpha[name] for name in depth})

    def test_by_layer_depth_still_counts_blocks(self):
        recipe = tb.Recipe(
            name="mine", assignment=tb.assign.Times(tb.assign.LayerwiseDecay(0.5), tb.assign.Linear(0.8, 1.2))
        )
        alpha = factors(bert_model(), dataclasses.replace(recipe, assignment=tb.assign.Linear(0.8, 1.2)))
        depth = factors(bert_model(), recipes.layerwise_decay(decay=0.5))
        assert factors(bert_model(), recipe) == pytest.approx({name: depth[name] * alpha[name] for name in depth})

    def test_the_rest_of_a_block_has_a_unit_of_its_own(self):
        model = llama_model()
        recipe = tb.Recipe(
            name="mine", assignment=tb.assign.Times(tb.assign.LayerwiseDecay(), tb.assign.Linear()), norms="base"
        )
        balancer = tb.Balancer(torch.optim.SGD(model.parameters(), lr=1.0), model, recipe)
        names = [unit.name for unit in balancer.units]
        assert len(set(names)) == len(names)
        assert names[0] == "below the blocks"
        assert "rest of model.layers.0" in names

    def test_blocks_are_needed_where_alpha_wants_them(self):
        model = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20))
        recipe = tb.Recipe(
            name="mine", assignment=tb.assign.Times(tb.assign.LayerwiseDecay(), tb.assign.Sigmoid()), unit="block"
        )
        with pytest.raises(BalanceError, match="unit='layer'"):
            tb.Balancer(torch.optim.SGD(model.parameters(), lr=1.0), model, recipe)


def parts(net: nn.Module) -> list[list[nn.Parameter]]:
    """From the head down."""
    return [list(part.parameters()) for part in (net.head, *reversed(net.blocks), net.stem)]


def trainable(net: nn.Module) -> list[bool]:
    found = [{p.requires_grad for p in part} for part in parts(net)]
    assert all(len(each) == 1 for each in found)
    return [each.pop() for each in found]


class TestUnfreezing:
    STEPS = 14

    def test_one_part_more_per_epoch_from_the_top(self, net):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        tb.Balancer(optimizer, net, recipes.gradual_unfreezing(), steps_per_epoch=3)
        net(torch.zeros(1, 8))
        free = [sum(trainable(net))]
        train(net, optimizer, steps=self.STEPS, at_step=lambda _: free.append(sum(trainable(net))))
        assert free == [min(5, 1 + step // 3) for step in range(self.STEPS + 1)]
        assert trainable(net) == sorted(trainable(net), reverse=True)

    def test_rates_are_discriminative(self, net):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        balancer = tb.Balancer(optimizer, net, recipes.gradual_unfreezing(), steps_per_epoch=3)
        balancer.refresh()
        assert [unit.multiplier for unit in balancer.units] == pytest.approx([2.6**-depth for depth in (4, 3, 2, 1, 0)])

    @pytest.mark.parametrize("to_none", [True, False])
    def test_what_is_frozen_gets_no_gradient_no_state_no_decay_and_no_momentum(self, net, to_none):
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.5)
        ((x, y),) = batches(1)
        nn.functional.cross_entropy(net(x), y).backward()  # gradients from before, that must not be applied
        tb.Balancer(optimizer, net, recipes.gradual_unfreezing(), steps_per_epoch=2)
        before = copy.deepcopy(net.state_dict())
        for x, y in batches(2):
            loss = nn.functional.cross_entropy(net(x), y)
            loss.backward()
            assert all(p.grad is None for part in parts(net)[1:] for p in part)
            optimizer.step()
            optimizer.zero_grad(set_to_none=to_none)
        moved = {
            name.partition(".")[0] for name, value in net.state_dict().items() if not torch.equal(value, before[name])
        }
        assert moved == {"head"}
        assert set(optimizer.state) == set(net.head.parameters())

    def test_what_the_user_froze_stays_so(self, net):
        net.blocks[2].requires_grad_(False)
        optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.01)
        balancer = tb.Balancer(optimizer, net, recipes.gradual_unfreezing(), steps_per_epoch=1)
        train(net, optimizer, steps=2)
        assert trainable(net) == [True, False, True, True, False]
        net.head.requires_grad_(False)  # what is free is the user's again
        train(net, optimizer, steps=1)
        balancer.remove()
        assert trainable(net) == [False, False, True, True, True]

    def test_the_topmost_part_that_is_trained_begins(self, net):
        net.head.requires_grad_(False)
        optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.01)
        tb.Balancer(optimizer, net, recipes.gradual_unfreezing(), steps_per_epoch=2)
        net(torch.zeros(1, 8))
        assert trainable(net) == [False, True, False, False, False]

    def test_removed_it_puts_back(self, net):
        balancer = tb.Balancer(
            torch.optim.SGD(net.parameters(), lr=0.01), net, recipes.gradual_unfreezing(), steps_per_epoch=2
        )
        net(torch.zeros(1, 8))
        assert trainable(net) == [True, False, False, False, False]
        balancer.remove()
        assert trainable(net) == [True] * 5

    def test_removed_before_the_first_forward_pass_it_leaves_no_hook(self, net):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        tb.Balancer(optimizer, net, recipes.gradual_unfreezing(), steps_per_epoch=2).remove()
        net(torch.zeros(1, 8))
        assert trainable(net) == [True] * 5

    def test_it_begins_with_whatever_part_of_the_model_is_called_first(self, net):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        balancer = tb.Balancer(optimizer, net, recipes.gradual_unfreezing(), steps_per_epoch=2)
        assert trainable(net) == [True] * 5
        net.stem(torch.zeros(1, 8))
        assert trainable(net) == [True, False, False, False, False]
        assert balancer.history == []

    def test_a_state_of_distributed_checkpoints_is_loaded_whole(self, net):
        nets = [net, make_net()]
        optimizers = [torch.optim.AdamW(each.parameters(), lr=3e-3) for each in nets]
        for each, optimizer in zip(nets, optimizers, strict=True):
            tb.Balancer(optimizer, each, recipes.gradual_unfreezing(), steps_per_epoch=3)
        train(net, optimizers[0], steps=8)
        model_state, state = copy.deepcopy(get_state_dict(net, optimizers[0]))
        options = StateDictOptions(strict=False)  # what is frozen has no state
        set_state_dict(nets[1], optimizers[1], model_state_dict=model_state, optim_state_dict=state, options=options)
        for each, optimizer in zip(nets, optimizers, strict=True):
            train(each, optimizer, steps=self.STEPS, start=8)
        assert all(torch.equal(value, nets[1].state_dict()[name]) for name, value in net.state_dict().items())

    def test_alphas_of_frozen_blocks_have_no_say_until_their_turn(self, net, recipe):
        recipe = dataclasses.replace(recipe, unit="block", every=tb.Every(steps=2), unfreeze=tb.Every(steps=2))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        balancer = tb.Balancer(optimizer, net, recipe)
        train(net, optimizer, steps=7)
        judged = [sum(math.isfinite(unit.alpha) for unit in refresh.units) for refresh in balancer.history]
        assert judged == [0, 1, 2, 3]

    def test_it_needs_to_know_the_epoch(self, net):
        with pytest.raises(BalanceError, match="steps_per_epoch"):
            tb.Balancer(torch.optim.SGD(net.parameters(), lr=0.01), net, recipes.gradual_unfreezing())

    def test_a_state_that_is_loaded_says_what_is_free(self, net):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        tb.Balancer(optimizer, net, recipes.gradual_unfreezing(), steps_per_epoch=3)
        early = copy.deepcopy(optimizer.state_dict())
        train(net, optimizer, steps=7)
        late = copy.deepcopy(optimizer.state_dict())
        for state, free in ((early, 1), (late, 3)):
            optimizer.load_state_dict(state)
            net(torch.zeros(1, 8))
            assert sum(trainable(net)) == free


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
def test_impossible_parameters(make):
    with pytest.raises(ValueError, match="must be"):
        make()
