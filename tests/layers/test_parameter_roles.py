"""Roles of weights and parameters."""

import pytest
import torch
from torch import nn

import tempbalance as tb
from tempbalance.layers import ROLES, Select, describe_parameters, find_role_units, find_roles, find_weights
from tiny_transformers import quiet, tiny_model


def roles_of(model):
    return find_roles(find_weights(model, Select(embeddings=True))[0])


# The roles of the first block and of what is outside of the blocks, each once.
TRANSFORMERS = {
    "bert": "embedding position q k v o up down",
    "gpt2": "embedding position q k v o up down",
    "llama": "embedding q k v o gate up down head",
    "t5": "embedding position q k v o up down",
    "opt": "embedding position q k v o up down",
    "gpt_neox": "embedding q k v o up down head",
    "falcon": "embedding q k v o up down",
    "mixtral": "embedding q k v o gate up down router head",
    "deepseek_v2": "embedding q k v kv o gate up down router head",
    "vit": "embedding position stem q k v o up down pooler",
    "convnext": "stem up down conv",
    "resnet": "stem entry shortcut conv",
    "whisper": "embedding position q k v o up down",
}


@pytest.mark.parametrize("model_type", TRANSFORMERS)
def test_weights_of_transformers_have_the_roles_of_their_names(model_type):
    pytest.importorskip("transformers")
    with quiet():
        model = tiny_model(model_type)
    found = set(roles_of(model).values())
    assert found - {"head", "linear"} == set(TRANSFORMERS[model_type].split()) - {"head"}
    assert "head" in found or "head" not in TRANSFORMERS[model_type]


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("h.0.attn.c_proj.weight", "o"),
        ("h.0.mlp.c_proj.weight", "down"),
        ("encoder.layer.0.intermediate.dense.weight", "up"),
        ("encoder.layer.0.output.dense.weight", "down"),
        ("encoder.layer.0.attention.output.dense.weight", "o"),
        ("block.0.layer.0.SelfAttention.o.weight", "o"),
        ("layers.0.attention.wq.weight", "q"),
        ("layers.0.feed_forward.w2.weight", "down"),
        ("lm_head.weight", "head"),
        ("layers.0.mixer.x_proj.weight", "linear"),
    ],
)
def test_a_state_dict_has_the_roles_of_the_live_model(name, role):
    others = {f"layers.{i}.self_attn.q_proj.weight": torch.randn(8, 8) for i in range(2)}
    assert roles_of({**others, name: torch.randn(8, 8)})[name] == role


@pytest.mark.parametrize("name", ["transformer_blocks.0.ff.net.0.proj", "h.0.mlp.proj", "h.0.mlp.fc"])
def test_a_projection_of_an_mlp_to_more_features_is_up(name):
    assert roles_of({f"{name}.weight": torch.randn(32, 8), "head.weight": torch.randn(8, 8)})[f"{name}.weight"] == "up"
    assert (
        roles_of({f"{name}.weight": torch.randn(8, 32), "head.weight": torch.randn(8, 8)})[f"{name}.weight"] == "down"
    )


@pytest.mark.parametrize(("with_w3", "role"), [(True, "gate"), (False, "up")])
def test_w1_is_a_gate_if_there_is_a_w3(with_w3, role):
    tensors = {"layers.0.mlp.w1.weight": torch.randn(8, 8), "layers.0.mlp.w2.weight": torch.randn(8, 8)}
    tensors |= {"layers.0.mlp.w3.weight": torch.randn(8, 8)} if with_w3 else {}
    assert roles_of(tensors)["layers.0.mlp.w1.weight"] == role


def test_numbered_layers_of_another_mlp_have_no_role_of_a_gated_one():
    shapes = {"W1": (8, 24), "W2": (8, 8), "W3": (8, 8), "W11": (8, 24), "W12": (8, 8), "W13": (8, 8)}  # ProteinMPNN
    tensors = {f"layers.{i}.{name}.weight": torch.randn(shape) for i in range(2) for name, shape in shapes.items()}
    assert set(roles_of(tensors).values()) == {"linear"}
    gated = {"layers.0.mlp.w12.weight": torch.randn(32, 8), "layers.0.mlp.w3.weight": torch.randn(8, 16)}
    assert roles_of(gated)["layers.0.mlp.w12.weight"] == "gate_up"


def test_every_parameter_has_a_role_and_its_fan():
    net = nn.Sequential(
        nn.Embedding(9, 4), nn.LSTM(4, 8), nn.ConvTranspose2d(8, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, 5)
    )
    facts = describe_parameters(net, find_weights(net, Select(embeddings=True))[0])
    assert {each.role for each in facts.values()} <= set(ROLES)
    assert tuple(facts["0.weight"]) == ("embedding", "embedding", 1, 4)
    assert facts["1.weight_ih_l0"].role == facts["1.bias_ih_l0"].role == "rnn_input"
    assert facts["1.weight_hh_l0"].role == facts["1.bias_hh_l0"].role == "rnn_hidden"
    assert (facts["2.weight"].fan_in, facts["2.weight"].fan_out) == (72, 6)
    assert tuple(facts["3.weight"]) == ("norm", "vector", 0, 6)
    assert tuple(facts["4.bias"]) == ("head", "vector", 0, 5)


def test_a_transposed_layer_of_gpt2_has_its_inputs_first():
    pytest.importorskip("transformers")
    with quiet():
        model = tiny_model("gpt2")
    facts = describe_parameters(model, find_weights(model, Select(embeddings=True))[0])
    up = next(each for name, each in facts.items() if name.endswith("h.0.mlp.c_fc.weight"))
    width = model.config.n_embd
    assert (up.role, up.fan_in, up.fan_out) == ("up", width, model.config.n_inner or 4 * width)
    fused = next(each for name, each in facts.items() if name.endswith("h.0.attn.c_attn.weight"))
    assert tuple(fused) == ("qkv", "linear", width, width)


def test_a_unit_of_a_role_contains_all_its_layers():
    layers = nn.ModuleList(nn.TransformerEncoderLayer(64, 4, 128) for _ in range(3))
    weights, _ = find_weights(layers)
    units = {unit.name: unit for unit in find_role_units(layers, weights, weights)}
    assert set(units["up"].parameters) == {f"{i}.linear1.{kind}" for i in range(3) for kind in ("weight", "bias")}
    assert len(units["qkv"].weights) == 9
    assert not any("norm" in name for unit in units.values() for name in unit.parameters)


def test_rows_of_an_analysis_have_roles_also_if_few_are_selected(tmp_path):
    layers = nn.ModuleList(nn.TransformerEncoderLayer(64, 4, 128) for _ in range(2))
    model = nn.Sequential(layers[0], layers[1], nn.Linear(64, 10))
    whole = {row.name: row.role for row in tb.analyze(model).layers}
    assert whole["2.weight"] == "head"
    few = tb.analyze(model, select="*.linear*")
    assert [row.role for row in few.layers] == [whole[row.name] for row in few.layers] == ["up", "down"] * 2
    few.save(tmp_path / "few.json")
    assert [row.role for row in tb.Analysis.load(tmp_path / "few.json").layers] == ["up", "down"] * 2


def test_a_first_convolution_of_one_channel_is_the_stem():
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8, 4))
    for source in (net, net.state_dict()):  # it has no spectrum, and no row
        assert [row.role for row in tb.analyze(source).layers] == ["conv", "conv", "head"]
    roles = [facts.role for facts in describe_parameters(net, find_weights(net)[0]).values()]
    assert roles == ["stem", "stem", "conv", "conv", "conv", "conv", "head", "head"]


def test_a_model_with_convolutions_is_searched_once():
    class Counted(nn.Sequential):
        """Counts how often its modules are listed."""

        calls = 0

        def named_modules(self, *args, **options):
            self.calls += 1
            return super().named_modules(*args, **options)

    counted = [Counted(nn.Conv2d(3, 8, 3), nn.Linear(16, 8)), Counted(nn.Linear(27, 8), nn.Linear(16, 8))]
    for model in counted:
        tb.analyze(model, select="1.*", progress=False)
    assert counted[0].calls == counted[1].calls
    once = Counted(nn.Linear(27, 8), nn.Linear(16, 8))
    tb.analyze(once, progress=False)
    assert counted[1].calls == once.calls
