"""Parts of fused weights against the outputs that the modules of Transformers split, on a unit matrix as input."""

import pytest
import torch

pytest.importorskip("transformers")

import transformers

from tempbalance.layers import find_weights
from tiny_transformers import tiny_model


def linear(model, name):
    """The module with this end of its name, and its output features as columns: the transposed weight."""
    owner, _, child = name.rpartition(".")
    path, module = next((p, m) for p, m in model.named_modules() if p.endswith(owner) and hasattr(m, child))
    weight = getattr(module, child).weight.detach()
    return f"{path}.{child}.weight", module, weight.T


def per_head(columns, heads, *sizes):
    parts = columns.view(len(columns), heads, -1).split(sizes, dim=-1)
    return [part.flatten(1) for part in parts]


def mamba2(mixer, columns):
    gate, states, dt = columns.split([mixer.intermediate_size, mixer.conv_dim, mixer.num_heads], dim=-1)
    size = mixer.n_groups * mixer.ssm_state_size
    x, b, c = states.split([mixer.intermediate_size, size, size], dim=-1)
    return {"z": gate, "x": x, "B": b, "C": c, "dt": dt}


def qkvz(mixer, columns):
    query, key, value, z, _, _ = mixer.fix_query_key_value_ordering(
        columns[None], mixer.in_proj_ba.weight.detach().T[None]
    )
    return {name: part[0].flatten(1) for name, part in zip("qkvz", (query, key, value, z), strict=True)}


def ba(mixer, columns):
    *_, b, a = mixer.fix_query_key_value_ordering(mixer.in_proj_qkvz.weight.detach().T[None], columns[None])
    return {"b": b[0], "a": a[0]}


def latent(attention, columns):
    parts = per_head(columns, attention.num_heads, attention.qk_nope_head_dim, attention.v_head_dim)
    return dict(zip("kv", parts, strict=True))


def chunks(*names):
    return lambda _, columns: dict(zip(names, columns.chunk(len(names), dim=-1), strict=True))


CASES = {
    ("mamba", "mixer.in_proj"): chunks("x", "z"),
    ("falcon_mamba", "mixer.in_proj"): chunks("x", "z"),
    ("jamba", "mamba.in_proj"): chunks("x", "z"),
    ("mamba2", "mixer.in_proj"): mamba2,
    ("bamba", "mamba.in_proj"): mamba2,
    ("zamba2", "mamba.in_proj"): mamba2,
    ("falcon_h1", "mamba.in_proj"): mamba2,
    ("nemotron_h", "mixer.in_proj"): mamba2,
    ("granitemoehybrid", "mamba.in_proj"): mamba2,
    ("granitemoehybrid", "shared_mlp.input_linear"): chunks("gate", "up"),
    ("qwen3_next", "linear_attn.in_proj_qkvz"): qkvz,
    ("qwen3_next", "linear_attn.in_proj_ba"): ba,
    ("qwen3_5_text", "linear_attn.in_proj_qkv"): chunks("q", "k", "v"),  # key_dim = value_dim here
    ("deepseek_v3", "self_attn.kv_b_proj"): latent,
    ("jetmoe", "self_attention.kv_proj"): chunks("k", "v"),
    ("moshi", "mlp.fc1"): chunks("gate", "up"),
    ("moonshine", "decoder.layers.0.mlp.fc1"): chunks("up", "gate"),
    ("clvp", "fc1.proj"): chunks("up", "gate"),
    ("cohere2_vision", "multi_modal_projector.linear_1"): chunks("up", "gate"),
    ("granite_speech", "attn.to_kv"): chunks("k", "v"),
}


@pytest.mark.parametrize(("model_type", "name"), CASES, ids=lambda value: value)
def test_the_parts_are_those_that_the_module_splits(model_type, name):
    model = tiny_model(model_type)
    parameter, module, columns = linear(model, name)
    expected = CASES[model_type, name](module, columns)
    rows = {row.name: row for row in find_weights(model)[0] if row.parameter == parameter}
    assert set(rows) == {f"{parameter}:{part}" for part in expected}
    for part, features in expected.items():
        assert torch.equal(rows[f"{parameter}:{part}"].load(), features.T)


class GEGLU(torch.nn.Module):
    """That of diffusers."""

    def __init__(self):
        super().__init__()
        self.proj = torch.nn.Linear(8, 64)

    def forward(self, x):
        hidden, gate = self.proj(x).chunk(2, dim=-1)
        return hidden * torch.nn.functional.gelu(gate)


def test_the_gated_units_of_diffusers_are_split():
    unit = GEGLU()
    rows = {row.name: row.load() for row in find_weights(unit)[0]}
    with torch.no_grad():
        unit.proj.bias.zero_()
        x = torch.randn(8)
        found = (rows["proj.weight:up"] @ x) * torch.nn.functional.gelu(rows["proj.weight:gate"] @ x)
        assert torch.allclose(unit(x), found, atol=1e-6)


def test_the_gated_mlp_of_dinov2_is_split():
    from transformers.models.dinov2 import modeling_dinov2

    mlp = modeling_dinov2.Dinov2SwiGLUFFN(transformers.Dinov2Config(hidden_size=48))
    rows = {row.name: row.load() for row in find_weights(mlp)[0]}
    with torch.no_grad():
        mlp.weights_in.bias.zero_()
        x = torch.randn(48)
        hidden = torch.nn.functional.silu(rows["weights_in.weight:gate"] @ x) * (rows["weights_in.weight:up"] @ x)
        assert torch.allclose(mlp(x), mlp.weights_out(hidden), atol=1e-6)


def test_zamba_alternates_input_and_gate():
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "n_mamba_heads": 2, "mamba_d_state": 8}
    mixer = transformers.models.zamba.modeling_zamba.ZambaMambaMixer(transformers.ZambaConfig(**sizes), 0)
    rows = {row.name: row.load() for row in find_weights(mixer)[0]}
    states, gate = mixer.in_proj.weight.detach().T.reshape(32, -1, 2).unbind(-1)
    assert torch.equal(rows["in_proj.weight:x"], states.T)
    assert torch.equal(rows["in_proj.weight:z"], gate.T)
    assert rows["x_proj_weight"].shape[0] == rows["dt_proj_weight"].shape[0] == 2  # a matrix per head


def test_xlstm_in_fused_mode_is_split():
    from transformers.models.xlstm import modeling_xlstm

    config = transformers.xLSTMConfig(hidden_size=64, num_heads=4, weight_mode="fused")
    layer, ffn = modeling_xlstm.xLSTMLayer(config), modeling_xlstm.xLSTMFeedForward(config)
    rows = {row.name: row.load() for row in find_weights(torch.nn.ModuleList([layer, ffn]))[0]}
    edges = (layer.qk_dim, 2 * layer.qk_dim, 2 * layer.qk_dim + layer.v_dim)
    expected = torch.tensor_split(layer.qkv_opreact.weight.detach(), edges, dim=0)
    for part, weight in zip("qkvo", expected, strict=True):
        assert torch.equal(rows[f"0.qkv_opreact.weight:{part}"], weight)
    gate, up = torch.tensor_split(ffn.proj_up_gate_z.weight.detach(), (ffn.up_proj_dim,), dim=0)
    assert torch.equal(rows["1.proj_up_gate_z.weight:gate"], gate)
    assert torch.equal(rows["1.proj_up_gate_z.weight:up"], up)


@pytest.mark.parametrize(("model_type", "name"), [("xlnet", "layer.0.rel_attn.q"), ("funnel", "attention.r_kernel")])
def test_a_kernel_with_an_axis_of_heads_is_one_matrix(model_type, name):
    model = tiny_model(model_type)
    for source in (model, model.state_dict()):
        row = next(row for row in find_weights(source)[0] if row.name.endswith(name))
        weight = model.state_dict()[row.name]
        assert (row.shape, row.kind) == ((weight.shape[0], weight[0].numel()), "attention")
        assert torch.equal(row.load(), weight.flatten(1))


@pytest.mark.parametrize(
    ("model_type", "name", "axis"),
    [("aria_text", "mlp.experts.fc1.weight", 1), ("jetmoe", "layers.0.mlp.input_linear.weight", 0)],
)
def test_gate_and_up_projections_of_stacked_experts_are_split(model_type, name, axis):
    model = tiny_model(model_type)
    rows = {row.name: row for row in find_weights(model)[0]}
    parameter = next(key for key in model.state_dict() if key.endswith(name))
    gate, up = model.state_dict()[parameter][1].chunk(2, dim=axis)
    assert torch.equal(rows[f"{parameter}:1:gate"].load(), gate)
    assert torch.equal(rows[f"{parameter}:1:up"].load(), up)
