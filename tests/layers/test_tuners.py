"""Layers of PEFT in a live model: every row against numpy's SVD of the matrix that PEFT merges."""

import copy

import numpy as np
import peft
import pytest
import torch
import transformers
from torch import nn
from torch.nn.utils import parametrizations, weight_norm

import tempbalance as tb
from adapted_models import LINEAR, MERGED, SIZES, adapted, config_of, largest, llama, merged

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning"),  # PEFT uses it
    pytest.mark.filterwarnings("ignore::UserWarning"),  # PEFT's advice on settings
    pytest.mark.filterwarnings("ignore::FutureWarning:torch.*"),  # the older weight norm
]
Q = "model.layers.0.self_attn.q_proj.weight"


def rows(model, **options):
    return {row.name: row for row in tb.analyze(model, select=tb.Select(**options)).layers}


class Net(nn.Module):
    """A layer of each type that PEFT adapts."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv2d = nn.Conv2d(8, 12, 3)
        self.conv1d = nn.Conv1d(12, 6, 3)
        self.attention = nn.MultiheadAttention(12, 2)
        self.linear = nn.Linear(12, 12)
        self.embedding = nn.Embedding(20, 12)


@pytest.mark.parametrize("method", MERGED)
def test_every_method_is_measured_as_merged(method):
    model = adapted(llama(), config_of(method))
    before, random_state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    found, expected = rows(model, embeddings=True), merged(model)
    names = [name for name, weight in expected.items() if weight.ndim > 1]
    assert sorted(found) == sorted(names)
    for name, row in found.items():
        assert row.lambda_max == pytest.approx(largest(expected[name]), rel=1e-5)
    after = model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert torch.equal(random_state, torch.get_rng_state())


@pytest.mark.parametrize("method", MERGED)
def test_the_update_of_every_method_is_what_it_adds(method):
    model = adapted(llama(), config_of(method))
    expected, base = merged(model), {name: p.detach().double().numpy() for name, p in llama().named_parameters()}
    found = rows(model, embeddings=True, lora="update")
    assert all(row.kind == "lora" for row in found.values())
    for name in expected:
        update = expected[name] - base[name]
        assert (name in found) == bool(update.any())
        if name in found:
            assert found[name].lambda_max == pytest.approx(largest(update), rel=1e-4)


@pytest.mark.parametrize("method", ["LILY", "POLY"])
def test_a_method_that_depends_on_the_input_is_skipped_with_the_reason(method):
    analysis = tb.analyze(adapted(llama(), config_of(method)))
    reason = {skipped.name: skipped.reason for skipped in analysis.skipped}[Q]
    assert "unload" in reason
    assert not [row.name for row in analysis.layers if row.name == Q or method.lower() in row.name]


@pytest.mark.parametrize("config", [peft.LoraConfig, peft.LoHaConfig, peft.LoKrConfig])
def test_convolutions_are_measured_as_merged(config):
    model = adapted(Net(), config(r=4, target_modules=["conv2d", "conv1d", "linear"]))
    expected = merged(model)
    for name, row in rows(model, split=False).items():
        assert row.lambda_max == pytest.approx(largest(expected[name]), rel=1e-5)


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"use_rslora": True}, {"rank_pattern": {"linear": 2}}])
def test_variants_of_lora_are_measured_as_merged(options):
    model = adapted(Net(), peft.LoraConfig(r=4, target_modules=["conv2d", "linear", "embedding"], **options))
    expected = merged(model)
    for name, row in rows(model, embeddings=True, split=False).items():
        assert row.lambda_max == pytest.approx(largest(expected[name]), rel=1e-5)


def test_both_projections_of_multihead_attention_are_measured_as_merged():
    model = adapted(Net(), peft.LoraConfig(r=4, target_modules=["attention"]))
    found, expected = rows(model, split=False), merged(model)
    for name in ("attention.in_proj_weight", "attention.out_proj.weight"):
        assert found[name].lambda_max == pytest.approx(largest(expected[name]), rel=1e-5)


@pytest.mark.parametrize("options", [{}, {"use_dora": True}])
def test_a_transposed_fused_layer_keeps_its_parts(options):
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_embd=48, n_inner=48, n_layer=1, n_head=4, vocab_size=60, n_positions=32, bos_token_id=1, eos_token_id=2
    )
    targets = ["c_attn", "c_proj", "c_fc"]
    model = adapted(
        transformers.GPT2LMHeadModel(config),
        peft.LoraConfig(r=4, target_modules=targets, fan_in_fan_out=True, **options),
    )
    expected, found = merged(model), rows(model)
    fused = expected["transformer.h.0.attn.c_attn.weight"]
    for part, matrix in zip("qkv", np.split(fused, 3, axis=1), strict=True):
        row = found[f"transformer.h.0.attn.c_attn.weight:{part}"]
        assert row.lambda_max == pytest.approx(largest(matrix), rel=1e-5)
    square = "transformer.h.0.attn.c_proj.weight"
    assert found[square].lambda_max == pytest.approx(largest(expected[square]), rel=1e-5)


class TestExperts:
    @pytest.fixture
    def model(self):
        if "target_parameters" not in peft.LoraConfig.__dataclass_fields__:
            pytest.skip("needs PEFT 0.17")
        torch.manual_seed(0)
        config = transformers.MixtralConfig(**SIZES, num_key_value_heads=2, num_local_experts=3)
        targets = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
        return adapted(
            transformers.MixtralForCausalLM(config),
            peft.LoraConfig(r=4, target_modules=[], target_parameters=targets),
        )

    @pytest.mark.parametrize("mode", ["merged", "update"])
    def test_each_expert_has_the_rows_and_numbers_of_the_merged_model(self, model, mode):
        base = {name: p.detach().double().numpy() for name, p in copy.deepcopy(model).unload().named_parameters()}
        found, expected = rows(model, lora=mode), merged(model)
        experts = "model.layers.0.mlp.experts"
        seen = 0
        for name in ("gate_up_proj", "down_proj"):
            full = f"{experts}.{name}"
            stack = expected[full] - (base[full] if mode == "update" else 0)
            for expert, matrix in enumerate(stack):
                halves = np.split(matrix, 2) if name == "gate_up_proj" else [matrix]
                parts = (":gate", ":up") if name == "gate_up_proj" else ("",)
                for part, half in zip(parts, halves, strict=True):
                    assert found[f"{full}:{expert}{part}"].lambda_max == pytest.approx(largest(half), rel=1e-4)
                    seen += 1
        assert seen == 9 == sum(experts in name for name in found)


class TestState:
    """Which weight is applied: merged or not, disabled or not, with which adapters."""

    @pytest.fixture
    def model(self):
        model = adapted(Net(), peft.LoraConfig(r=4, target_modules=["linear"]))
        model.add_adapter("second", peft.LoraConfig(r=2, target_modules=["linear"]))
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                nn.init.normal_(parameter, std=0.3)
        return model

    def applied(self, model):
        """The matrix of the layer, from what it returns for unit vectors."""
        layer, eye = model.base_model.model.linear, torch.eye(12)
        with torch.no_grad():
            return (layer(eye) - layer(torch.zeros(12))).T.double().numpy()

    def test_several_active_adapters_are_added(self, model):
        model.base_model.set_adapter(["default", "second"])
        assert rows(model)["linear.weight"].lambda_max == pytest.approx(largest(self.applied(model)), rel=1e-5)

    def test_the_second_adapter_alone(self, model):
        model.set_adapter("second")
        assert rows(model)["linear.weight"].lambda_max == pytest.approx(largest(self.applied(model)), rel=1e-5)

    @pytest.mark.parametrize("mode", ["merged", "update"])
    def test_a_merged_adapter_changes_no_number(self, model, mode):
        before = rows(model, lora=mode)["linear.weight"].lambda_max
        model.merge_adapter()
        assert rows(model, lora=mode)["linear.weight"].lambda_max == pytest.approx(before, rel=1e-5)

    @pytest.mark.parametrize("merge", [False, True])
    def test_a_disabled_adapter_leaves_the_base_weight(self, model, merge):
        base = model.base_model.model.linear.base_layer.weight.detach().clone().double().numpy()
        if merge:
            model.merge_adapter()
        with model.disable_adapter():
            assert rows(model)["linear.weight"].lambda_max == pytest.approx(largest(base), rel=1e-5)
            assert "linear.weight" not in {row.name for row in tb.analyze(model, select=tb.Select()).skipped}

    def test_factors_on_the_meta_device_are_skipped(self, model):
        model.base_model.model.linear.lora_A.to("meta")
        assert "meta device" in {s.name: s.reason for s in tb.analyze(model).skipped}["linear.weight"]


@pytest.mark.parametrize(
    "computed", [weight_norm, parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal]
)
def test_an_adapter_on_a_computed_weight_is_added_to_what_is_computed(computed):
    net = Net()
    net.linear = computed(net.linear)
    model = adapted(net, peft.LoraConfig(r=4, target_modules=["linear"]))
    before = set(dict(model.named_parameters()))
    first = rows(model)["linear.weight"].lambda_max
    eye, layer = torch.eye(12), model.base_model.model.linear
    with torch.no_grad():
        applied = (layer(eye) - layer(torch.zeros(12))).T.double().numpy()
    assert first == pytest.approx(largest(applied), rel=1e-5)
    assert before == set(dict(model.named_parameters()))


@pytest.mark.parametrize("cast", [True, False], ids=["factors in float32", "all in bfloat16"])
def test_a_half_precision_layer_is_merged_in_its_widest_dtype(cast):
    config = peft.LoraConfig(r=4, target_modules=["linear"])
    model = peft.get_peft_model(Net().bfloat16(), config, autocast_adapter_dtype=cast)
    layer = model.base_model.model.linear
    for factor in (layer.lora_A, layer.lora_B):
        nn.init.normal_(factor["default"].weight, std=0.3)
    b, a = (getattr(layer, factor)["default"].weight.double() for factor in ("lora_B", "lora_A"))
    update = (layer.scaling["default"] * b @ a).detach()
    exact = layer.base_layer.weight.detach().double() + update
    expected = exact.numpy() if cast else merged(model)["linear.weight"]
    assert rows(model)["linear.weight"].lambda_max == pytest.approx(largest(expected), rel=1e-6)
    assert rows(model, lora="update")["linear.weight"].lambda_max == pytest.approx(largest(update.numpy()), rel=1e-6)


def test_the_update_of_lora_has_the_rank_of_its_factors():
    model = adapted(Net(), peft.LoraConfig(r=4, target_modules=["linear"]))
    (row,) = tb.analyze(model, select=tb.Select(lora="update"), estimator=tb.Hill(min_eigenvalues=2)).layers
    assert row.num_tail == 2  # half of four


def test_copies_that_are_trained_in_full_take_the_place_of_the_original():
    model = adapted(llama(), peft.LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"]))
    expected = merged(model)
    analysis = tb.analyze(model)
    head = next(row for row in analysis.layers if row.name == "lm_head.weight")
    assert head.lambda_max == pytest.approx(largest(expected["lm_head.weight"]), rel=1e-5)
    assert any("not in use" in skipped.reason for skipped in analysis.skipped)


def test_trainable_tokens_beside_lora_are_merged_into_the_embedding():
    model = adapted(llama(), peft.LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=[1, 2]))
    found, expected = rows(model, embeddings=True), merged(model)
    assert set(found) == {name for name, weight in expected.items() if weight.ndim > 1}
    name = "model.embed_tokens.weight"
    assert found[name].lambda_max == pytest.approx(largest(expected[name]), rel=1e-5)


def test_a_shared_bank_of_vectors_is_no_row():
    analysis = tb.analyze(adapted(llama(), config_of("VBLORA")))
    assert not any("vblora" in row.name for row in analysis.layers)
    assert any("vblora" in skipped.name and "adapter" in skipped.reason for skipped in analysis.skipped)


def test_rows_have_the_names_kinds_and_blocks_of_the_base_model():
    described = [(row.name, row.kind, row.block) for row in tb.analyze(llama()).layers]
    assert [
        (row.name, row.kind, row.block) for row in tb.analyze(adapted(llama(), config_of("LOHA"))).layers
    ] == described


def test_weights_without_an_adapter_are_skipped_with_lora_update():
    skipped = tb.analyze(adapted(llama(), peft.LoraConfig(**LINEAR)), select=tb.Select(lora="update")).skipped
    assert "no LoRA update" in {s.name: s.reason for s in skipped}["model.layers.0.mlp.down_proj.weight"]
