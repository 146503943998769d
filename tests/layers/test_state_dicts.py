"""State dicts are classified by names, shapes and dtypes; quantised formats are skipped with their name."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import tempbalance as tb
from tempbalance.layers import Select, find_weights

BYTES = torch.zeros(8, 8, dtype=torch.uint8)
INT8 = torch.zeros(8, 8, dtype=torch.int8)
INT32 = torch.zeros(8, 8, dtype=torch.int32)
SCALE = torch.ones(1)
TABLE = torch.ones(8, 4)


def described(source):
    return [(row.name, row.kind, row.shape) for row in find_weights(source)[0]]


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(4, 6), nn.Conv2d(4, 6, 3), nn.Conv1d(20, 30, 3)),
        nn.LSTM(6, 5, num_layers=2, bidirectional=True),
        nn.LSTM(6, 5, proj_size=3),
        nn.GRU(6, 5),
        nn.RNN(6, 5),
        nn.MultiheadAttention(8, 2),
    ],
    ids=lambda model: type(model).__name__,
)
def test_a_state_dict_agrees_with_the_live_model(model):
    assert described(model.state_dict()) == described(model)


@pytest.mark.parametrize(
    ("name", "shape", "kind"),
    [
        ("fc.weight", (6, 4), "linear"),
        ("conv.weight", (6, 4, 3, 3), "conv2d"),
        ("conv.weight", (6, 4, 3, 3, 3), "conv3d"),
        ("conv.weight", (60, 40, 5), "conv1d"),
        ("mixing", (6, 4), "parameter"),
    ],
)
def test_kinds_are_inferred_from_name_and_shape(name, shape, kind):
    assert described({name: torch.zeros(shape)}) == [(name, kind, shape)]


@pytest.mark.parametrize("name", ["_flat_param", "layers.0._fsdp_wrapped_module._flat_param", "fc.flat_param_0"])
def test_a_tensor_that_fsdp_flattened_is_skipped_with_the_reason(name):
    rows, left = find_weights({name: torch.zeros(48), "norm.weight": torch.ones(8)})
    assert rows == []
    assert [s.reason.partition(":")[0] for s in left] == ["flattened by FSDP"]


def test_stacked_experts_are_recognised_by_name():
    assert len(described({"mlp.experts.w1": torch.zeros(3, 60, 40)})) == 3


@pytest.mark.parametrize("name", ["wte.weight", "embed_tokens.weight", "position_embeddings.weight", "pos_embed"])
def test_embeddings_are_recognised_by_name(name):
    rows, left = find_weights({name: torch.zeros(9, 4)})
    assert rows == []
    assert "embeddings=True" in left[0].reason
    assert len(find_weights({name: torch.zeros(9, 4)}, Select(embeddings=True))[0]) == 1


def test_an_ambiguous_stack_is_skipped_with_advice():
    assert "could be" in find_weights({"table": torch.zeros(50, 60, 70)})[1][0].reason


def test_tied_entries_of_a_state_dict_are_listed_once():
    weight = torch.zeros(4, 4)
    assert find_weights({"a.weight": weight, "b.weight": weight})[1] == [("b.weight", "tied to a.weight")]


@pytest.mark.parametrize(
    ("tensors", "label"),
    [
        (
            {"weight": BYTES, "weight.absmax": SCALE, "weight.quant_state.bitsandbytes__nf4": SCALE},
            "bitsandbytes 4-bit",
        ),
        ({"weight": INT8, "SCB": SCALE}, "bitsandbytes 8-bit"),
        ({"qweight": INT32, "qzeros": INT32, "scales": SCALE, "g_idx": INT32[0]}, "GPTQ"),
        ({"qweight": INT32, "qzeros": INT32, "scales": SCALE}, "AWQ"),
        ({"weight": torch.zeros(8, 8).to(torch.float8_e4m3fn), "weight_scale_inv": TABLE[:3]}, "fp8 with scales"),
        ({"gate_up_proj_blocks": BYTES, "gate_up_proj_scales": BYTES}, "MXFP4"),
        ({"weight": BYTES}, "uint8"),
        ({"weight": INT32.to(torch.uint32), "scales": TABLE, "biases": TABLE}, "MLX"),
        ({"_weight_qdata": BYTES, "_weight_scale": TABLE, "_weight_zero_point": TABLE}, "torchao"),
        ({"W_q": BYTES, "scale": TABLE, "zero": TABLE}, "HQQ"),
        ({"weight._data": INT8, "weight._scale": TABLE[:3]}, "quanto"),
        ({"weight._data._data": BYTES, "weight._scale": TABLE, "weight._shift": TABLE}, "quanto"),
        ({"qweight": INT8, "wscales": TABLE, "lora_down": TABLE, "lora_up": TABLE, "smooth": SCALE}, "SVDQuant"),
        ({"weight_packed": INT32, "weight_scale": TABLE, "weight_zero_point": TABLE}, "compressed-tensors"),
        ({"weight": BYTES, "weight_scale": TABLE, "weight_scale_2": SCALE}, "uint8 with scales"),
        ({"codes": INT8, "codebooks": TABLE, "scales": TABLE}, "AQLM"),
        ({"weight": INT8, "weight_scales": SCALE}, "EETQ"),
        ({"weight": BYTES, "weight_scale": SCALE[:1]}, "BitNet"),
        ({"qweight": BYTES, "scales": BYTES, "forward_hadamard_matrix": TABLE}, "FP-Quant"),
        ({"qweight": INT32, "lookup_table": TABLE}, "SqueezeLLM"),
        ({"W_q": BYTES, "meta": BYTES}, "SINQ"),
        ({"B": INT32, "s": TABLE}, "Marlin"),
        ({"B": INT32, "s_channel": TABLE, "s_group": TABLE}, "Marlin"),
        ({"weight": INT32, "scales": TABLE, "qbiases": TABLE}, "Metal"),
        ({"weight": INT8.view(torch.float4_e2m1fn_x2), "weight_scale": TABLE}, "float4"),
        ({"weight": INT8.view(torch.float4_e2m1fn_x2)}, "4-bit floats"),
    ],
)
def test_quantised_formats_are_named_and_skipped(tensors, label):
    rows, left = find_weights({f"layers.0.fc.{name}": tensor.clone() for name, tensor in tensors.items()})
    assert rows == []
    named = [reason for _, reason in left if "belongs to a quantised weight" not in reason]
    assert len(named) == 1
    assert label in named[0]


def test_a_scale_beside_a_mask_or_index_is_not_taken_for_a_quantised_weight():
    tensors = {"relative_position_index": torch.zeros(9, 9, dtype=torch.long), "value_scale": torch.zeros(4, 4)}
    assert described({f"attn.{name}": tensor for name, tensor in tensors.items()}) == [
        ("attn.value_scale", "parameter", (4, 4))
    ]


@pytest.mark.filterwarnings("ignore")  # torch announces the end of its own quantised dtypes
def test_quantised_dtypes_of_torch_are_named_and_skipped():
    weight = torch.quantize_per_tensor(torch.zeros(8, 8), 0.1, 0, torch.qint8)
    assert "qint8" in find_weights({"fc.weight": weight})[1][0].reason


def test_fp8_without_scales_is_a_weight():
    assert described({"fc.weight": torch.zeros(8, 8).to(torch.float8_e5m2)}) == [("fc.weight", "linear", (8, 8))]


def test_an_integer_buffer_is_skipped():
    assert "integer buffer" in find_weights({"position_ids": torch.zeros(1, 512, dtype=torch.long)})[1][0].reason


def test_an_empty_tensor_is_skipped():
    assert "is empty" in find_weights({"fc.weight": torch.zeros(0, 4)})[1][0].reason


def test_blocks_are_in_the_order_of_their_numbers(tmp_path):
    names = [f"{side}.layers.{i}.{part}.weight" for side in ("encoder", "decoder") for i in range(12) for part in "ba"]
    weights = {name: torch.randn(8, 8) for name in ["proj.weight", *names, "head.weight"]}
    save_file(weights, tmp_path / "model.safetensors")
    by_text = load_file(tmp_path / "model.safetensors")  # lists layers.10 before layers.2
    assert list(dict.fromkeys(row.block for row in tb.analyze(by_text).layers if row.block)) == [
        f"{side}.layers.{i}" for side in ("decoder", "encoder") for i in range(12)
    ]
    assert [row.name for row in tb.analyze(weights).layers] == list(weights)  # what is in order stays
    depth = tb.allocate_sparsity(tb.analyze({n: t for n, t in by_text.items() if "enc" in n}), 0.5, method="depth")
    assert [unit.name for unit in depth.units] == [f"encoder.layers.{i}" for i in range(12)]
    values = [unit.value for unit in depth.units]
    assert values == sorted(values)
