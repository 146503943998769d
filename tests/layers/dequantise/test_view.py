"""Quantised weights in a state dict or checkpoint: layouts against plain arithmetic, memory, and what is damaged."""

import json
import tracemalloc

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_decoders import EXPECTED, FILES

import tempbalance as tb
from tempbalance.errors import AllocationError
from tempbalance.layers import find_weights

FC = "layers.0.fc"
GENERATOR = torch.Generator().manual_seed(0)


def stored(name):
    return load_file(FILES / name / "model.safetensors")


def reason(tensors):
    """The reason for the only weight that is skipped."""
    rows, skipped = find_weights(tensors)
    assert rows == []
    (found,) = [s.reason for s in skipped if s.reason != "belongs to a quantised weight"]
    return found


def fp8(rows, columns):
    return torch.randn(rows, columns, generator=GENERATOR).to(torch.float8_e4m3fn)


@pytest.mark.parametrize(
    ("shape", "scale", "block"),
    [
        ((300, 200), (3, 2), (128, 128)),  # the last blocks are not full
        ((256, 384), (2, 3), (128, 128)),
        ((96, 64), (3, 2), (32, 32)),  # no multiple of 128: blocks of equal size
        ((96, 64), (96,), (1, 64)),
        ((96, 64), (1, 1), (96, 64)),
        ((96, 64), (), (96, 64)),
    ],
)
def test_fp8_is_multiplied_by_the_scale_of_its_block(shape, scale, block):
    weight, scales = fp8(*shape), torch.rand(scale, generator=GENERATOR) + 0.5
    found = find_weights({f"{FC}.weight": weight, f"{FC}.weight_scale_inv": scales})[0][0].load()
    counts = scales.reshape(-(-shape[0] // block[0]), -(-shape[1] // block[1]))
    for row, column in [(0, 0), (5, 60), (95, 63), (shape[0] - 1, shape[1] - 1)]:
        expected = weight[row, column].float() * counts[row // block[0], column // block[1]]
        assert found[row, column] == expected


def test_blocks_of_the_configuration_come_before_128(tmp_path):
    save_file(
        {f"{FC}.weight": fp8(100, 100), f"{FC}.weight_scale_inv": torch.rand(4, 4)}, tmp_path / "model.safetensors"
    )
    assert "do not fit" in reason(tb.open_checkpoint(tmp_path))
    settings = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [32, 32]}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert find_weights(tb.open_checkpoint(tmp_path))[0][0].shape == (100, 100)


@pytest.mark.parametrize(("columns", "group"), [(192, 96), (240, 120), (256, 128)])
def test_groups_of_integers_divide_a_row_into_equal_parts(columns, group):
    scales = torch.rand(8, columns // group, generator=GENERATOR) + 0.5
    words = torch.full((8, columns // 8), 0x11111111, dtype=torch.int32)  # -7 in each place
    shape = torch.tensor([8, columns])
    packed = {f"{FC}.weight_packed": words, f"{FC}.weight_scale": scales, f"{FC}.weight_shape": shape}
    plain = {f"{FC}.weight": torch.full((8, columns), -7, dtype=torch.int8), f"{FC}.weight_scale": scales}
    for tensors in (packed, plain):
        assert torch.equal(find_weights(tensors)[0][0].load(), -7 * scales.repeat_interleave(group, dim=1))


@pytest.mark.parametrize("scheme", [{"block_structure": [64, 96]}, {"block_structure": None, "group_size": 96}])
def test_fp8_has_the_blocks_of_the_configuration_of_compressed_tensors(scheme, tmp_path):
    weight, scales = fp8(100, 192), torch.rand(2 if scheme["block_structure"] else 100, 2) + 0.5
    save_file({f"{FC}.weight": weight, f"{FC}.weight_scale": scales}, tmp_path / "model.safetensors")
    groups = {"group_0": {"weights": scheme, "targets": ["Linear"]}, "group_1": {"weights": None}}
    settings = {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": groups}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    factors = scales.repeat_interleave(96, dim=1).repeat_interleave(64 if len(scales) == 2 else 1, dim=0)[:100]
    with tb.open_checkpoint(tmp_path) as checkpoint:
        assert torch.equal(find_weights(checkpoint)[0][0].load(), weight.float() * factors)


@pytest.mark.parametrize("name", ["fp8-block", "mxfp4"])
def test_the_scales_may_have_the_name_scale_as_in_deepseek_v4(name, tmp_path):
    tensors = stored(name)
    (expected,) = find_weights(tb.open_checkpoint(FILES / name))[0]
    weight = next(t for key, t in tensors.items() if "_scale" not in key)
    scale = next(t for key, t in tensors.items() if "_scale" in key)
    dtype = torch.int8 if weight.dtype == torch.uint8 else weight.dtype
    save_file({f"{FC}.weight": weight.view(dtype), f"{FC}.scale": scale}, tmp_path / "model.safetensors")
    settings = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [64, 64]}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    (found,) = find_weights(tb.open_checkpoint(tmp_path))[0]
    assert torch.equal(found.load(), expected.load())


def test_a_scale_beside_a_weight_that_is_not_quantised_is_a_parameter():
    tensors = {"norm.weight": torch.ones(8), "norm.scale": torch.ones(8), "a.weight": torch.randn(8, 8)}
    rows, skipped = find_weights(tensors | {"a.scale": torch.randn(8, 8, generator=GENERATOR)})
    assert [row.name for row in rows] == ["a.weight", "a.scale"]
    assert skipped == []


def test_integers_beside_a_scale_are_not_multiplied_by_it():
    tensors = {f"{FC}.weight": torch.ones(8, 8, dtype=torch.int8), f"{FC}.scale": torch.ones(())}
    assert "int8 with a tensor named scale is not a layout that is read" in reason(tensors)


def mxfp4(experts=3, outputs=8, groups=2):
    blocks = torch.randint(0, 256, (experts, outputs, groups, 16), generator=GENERATOR, dtype=torch.uint8)
    scales = torch.randint(120, 130, (experts, outputs, groups), generator=GENERATOR, dtype=torch.uint8)
    return {"layers.0.mlp.experts.down_proj_blocks": blocks, "layers.0.mlp.experts.down_proj_scales": scales}


def test_experts_in_mxfp4_are_those_of_transformers():
    mxfp4_of_transformers = pytest.importorskip("transformers.integrations.mxfp4")
    tensors = mxfp4()
    expected = mxfp4_of_transformers.convert_moe_packed_tensors(*tensors.values(), dtype=torch.float32)
    weights, _ = find_weights(tensors)
    assert [w.name for w in weights] == [f"layers.0.mlp.experts.down_proj:{expert}" for expert in range(3)]
    assert all(torch.equal(weight.load(), matrix) for weight, matrix in zip(weights, expected, strict=True))
    assert weights[0].quantisation == "MXFP4, 4 bits"


def test_one_expert_is_read_at_a_time(tmp_path):
    save_file(mxfp4(experts=32, outputs=256, groups=16), tmp_path / "model.safetensors")
    with tb.open_checkpoint(tmp_path) as checkpoint:
        sizes = []
        load = checkpoint.load
        checkpoint.load = lambda name, index=(): sizes.append(load(name, index).numel()) or load(name, index)
        weights, _ = find_weights(checkpoint)
        assert sizes == []
        weights[7].load()
    assert sorted(sizes) == [256 * 16, 256 * 16 * 16]


def test_the_experts_of_nvfp4_and_fp8_are_rows_of_one_stack():
    single = stored("nvfp4")
    tensors = {
        "layers.0.experts.up_packed": single[f"{FC}.weight_packed"].repeat(3, 1, 1),
        "layers.0.experts.up_scale": single[f"{FC}.weight_scale"].repeat(3, 1, 1),
        "layers.0.experts.up_global_scale": single[f"{FC}.weight_global_scale"],
        "layers.1.experts.up": fp8(96, 64).repeat(2, 1, 1),
        "layers.1.experts.up_scale": torch.tensor([1.0, 2.0]).view(2, 1, 1),
    }
    weights, _ = find_weights(tensors)
    (expected,) = find_weights(single)[0]
    assert torch.equal(weights[2].load(), expected.load())
    assert torch.equal(weights[4].load(), 2 * weights[3].load())


def test_nested_scales_of_bitsandbytes_are_looked_up():
    tensors = stored("bnb-nf4-nested")
    parts = {name.removeprefix(f"{FC}.weight."): tensor for name, tensor in tensors.items()}
    state = json.loads(bytes(parts["quant_state.bitsandbytes__nf4"].tolist()))
    found = find_weights(tensors)[0][0].load().flatten()
    for place in (0, 63, 64, 8191):
        byte = int(tensors[f"{FC}.weight"].flatten()[place // 2])
        value = parts["quant_map"][byte % 16 if place % 2 else byte // 16]
        outer = parts["nested_absmax"][place // 64 // 256]
        scale = parts["nested_quant_map"][int(parts["absmax"][place // 64])] * outer + state["nested_offset"]
        assert found[place] == pytest.approx(float(value * scale), rel=1e-6)


def test_several_formats_in_one_model_are_read_each_by_its_own():
    tensors = {}
    for layer, name in enumerate(["fp8-channel", "int4-group", "bnb-nf4", "nvfp4"]):
        tensors |= {key.replace("layers.0", f"layers.{layer}"): tensor for key, tensor in stored(name).items()}
    tensors["layers.4.fc.weight"] = torch.randn(64, 128, generator=GENERATOR)
    rows = tb.analyze(tensors).layers
    assert [row.name for row in rows] == [f"layers.{layer}.fc.weight" for layer in range(5)]
    assert [row.quantisation for row in rows] == [
        "float8_e4m3fn with scales, 8 bits", "compressed-tensors, 4 bits", "bitsandbytes NF4, 4 bits",
        "NVFP4, 4 bits", "",
    ]  # fmt: skip


def test_nvfp4_of_modelopt_is_that_of_compressed_tensors_with_the_inverse_scale():
    tensors = stored("nvfp4")
    renamed = {
        f"{FC}.weight": tensors[f"{FC}.weight_packed"],
        f"{FC}.weight_scale": tensors[f"{FC}.weight_scale"],
        f"{FC}.weight_scale_2": 1 / tensors[f"{FC}.weight_global_scale"],
        f"{FC}.input_scale": torch.ones(()),
    }
    torch.testing.assert_close(find_weights(renamed)[0][0].load(), find_weights(tensors)[0][0].load())


def test_the_second_version_of_gptq_stores_zeros_as_they_are(tmp_path):
    tensors = stored("gptq-8")
    save_file(tensors, tmp_path / "model.safetensors")
    first = find_weights(tb.open_checkpoint(tmp_path))[0][0].load()
    tensors[f"{FC}.qzeros"] = (tensors[f"{FC}.qzeros"].view(torch.uint8) + 1).view(torch.int32)
    save_file(tensors, tmp_path / "model.safetensors")
    settings = {"quantization_config": {"bits": 8, "checkpoint_format": "gptq_v2"}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert torch.equal(find_weights(tb.open_checkpoint(tmp_path))[0][0].load(), first)


def test_four_bit_floats_in_signed_bytes_have_powers_of_two_as_scales():
    tensors = stored("mxfp4")
    signed = {
        f"{FC}.weight": tensors[f"{FC}.weight_packed"].view(torch.int8),
        f"{FC}.weight_scale_inv": tensors[f"{FC}.weight_scale"],
    }
    assert torch.equal(find_weights(signed)[0][0].load(), find_weights(tensors)[0][0].load())


def test_a_layer_of_mlx_may_have_bits_of_its_own(tmp_path):
    tensors = stored("mlx-4")
    tensors |= {key.replace("layers.0", "layers.1"): tensor for key, tensor in stored("mlx-3").items()}
    save_file(tensors, tmp_path / "model.safetensors")
    settings = {"quantization": {"group_size": 64, "bits": 4, "layers.1.fc": {"group_size": 32, "bits": 3}}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    weights, _ = find_weights(tb.open_checkpoint(tmp_path))
    assert [weight.shape for weight in weights] == [(64, 128)] * 2
    assert [weight.quantisation for weight in weights] == ["MLX, 4 bits", "MLX, 3 bits"]


def test_fp8_whose_scales_are_not_there_is_no_weight_if_the_configuration_has_them(tmp_path):
    save_file({f"{FC}.weight": fp8(64, 64)}, tmp_path / "model.safetensors")
    assert len(tb.analyze(tmp_path)) == 1
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "fp8"}}))
    assert "without its scales" in reason(tb.open_checkpoint(tmp_path))


def test_a_weight_that_is_stored_twice_is_read_once():
    plain = {f"{FC}.weight": torch.randn(64, 128, generator=GENERATOR)}
    rows, skipped = find_weights(stored("int4-group") | plain)
    assert [(row.name, row.quantisation) for row in rows] == [(f"{FC}.weight", "")]
    assert "is stored without quantisation, too" in {s.name: s.reason for s in skipped}[f"{FC}.weight_packed"]


MISSING = [
    ("int4-group", "weight_shape", "weight_shape is missing"),
    ("int4-group", "weight_scale", "weight_scale is missing"),
    ("nvfp4", "weight_global_scale", "global scale is missing"),
    ("gptq-4", "scales", "scales is missing"),
    ("awq", "qzeros", "qzeros"),
    ("bnb-nf4", "weight.absmax", "absmax is missing"),
    ("bnb-nf4", "weight.quant_state.bitsandbytes__nf4", "quant_state"),
    ("hqq-4", "packing", "packing are missing"),
    ("hqq-4", "zero", "zero is missing"),
    ("mlx-4", "biases", "bits is not known"),
]


@pytest.mark.parametrize(("name", "part", "message"), MISSING)
def test_a_missing_part_is_named(name, part, message):
    tensors = stored(name)
    del tensors[f"{FC}.{part}"]
    assert message in reason(tensors)


@pytest.mark.parametrize("name", EXPECTED)
def test_scales_of_a_wrong_shape_are_refused_with_a_next_step(name, tmp_path):
    folder = FILES / name
    tensors = stored(name)
    ends = ("weight_scale", "scale_inv", "fc.scales", "fc.scale", "SCB", "weight.absmax", "weight._scale")
    scale = next(key for key in tensors if key.endswith(ends))
    tensors[scale] = torch.cat([tensors[scale].flatten(), tensors[scale].flatten()[:1]])
    if tensors[scale].numel() == 2:
        tensors[scale] = tensors[scale].repeat(3)[:5]
    save_file(tensors, tmp_path / "model.safetensors")
    if (folder / "config.json").exists():
        (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    found = reason(tb.open_checkpoint(tmp_path))
    assert "shape" in found
    assert any(step in found for step in ("again", "dequantise it"))


@pytest.mark.parametrize(
    ("name", "part", "value"),
    [
        ("int4-group", "weight_shape", torch.tensor([-64, 128])),
        ("int4-group", "weight_shape", torch.tensor([64.0, float("nan")])),
        ("hqq-4", "group_size", torch.tensor(float("nan"))),
        ("hqq-4", "packing", torch.tensor([200, 201], dtype=torch.uint8)),
        ("bnb-nf4", "weight.quant_state.bitsandbytes__nf4", torch.tensor([91, 93], dtype=torch.uint8)),
    ],
)
def test_settings_that_make_no_sense_skip_the_weight(name, part, value):
    assert reason(stored(name) | {f"{FC}.{part}": value})


@pytest.mark.parametrize("name", ["gptq-4-act-order", "int4-group"])
def test_an_index_of_a_group_that_is_not_there_skips_the_weight(name):
    tensors = stored(name)
    tensors[f"{FC}.g_idx" if name.startswith("gptq") else f"{FC}.weight_g_idx"] = torch.full((128,), 99).int()
    (skipped,) = tb.analyze(tensors).skipped
    assert "names a group that is not one of its 4" in skipped.reason


def test_columns_in_any_order_have_the_scales_of_their_groups():
    tensors = stored("int4-group")
    order = torch.randperm(128, generator=GENERATOR)
    plain = find_weights(tensors)[0][0].load()
    scales = tensors[f"{FC}.weight_scale"]
    tensors[f"{FC}.weight_g_idx"] = (torch.arange(128) // 32)[order].int()
    moved = find_weights(tensors)[0][0].load()
    factors = scales[:, (torch.arange(128) // 32)[order]] / scales[:, torch.arange(128) // 32]
    torch.testing.assert_close(moved, plain * factors)


def test_a_quantised_weight_is_not_pruned_in_its_file(tmp_path):
    save_file(stored("fp8-channel"), tmp_path / "model.safetensors")
    allocation = tb.allocate_sparsity(tb.analyze(tmp_path), sparsity=0.5)
    with pytest.raises(AllocationError, match=r"stored quantised.*prune the unquantised model"):
        tb.prune_checkpoint(tmp_path, allocation, tmp_path / "out", partial=True)


def test_rows_keep_their_format_in_files(tmp_path):
    analysis = tb.analyze(FILES / "gptq-4")
    analysis.save(tmp_path / "analysis.json")
    assert tb.Analysis.load(tmp_path / "analysis.json").layers[0].quantisation == "GPTQ, 4 bits"
    assert analysis.to_pandas()["quantisation"].tolist() == ["GPTQ, 4 bits"]
    plain = tb.analyze({"weight": torch.randn(64, 64, generator=GENERATOR)})
    assert "quantisation" not in plain.to_dict()["layers"][0]


def test_a_state_dict_is_not_changed():
    tensors = stored("fp8-channel") | {f"{FC}.bias": torch.ones(64)}
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    tb.analyze(tensors)
    assert all(torch.equal(tensors[name].view(torch.uint8), before[name].view(torch.uint8)) for name in before)


def test_memory_grows_with_one_weight_and_not_with_the_file(tmp_path):
    peaks = []
    for layers in (2, 8):
        tensors = {}
        for layer in range(layers):
            tensors[f"layers.{layer}.fc.weight"] = fp8(512, 1024)
            tensors[f"layers.{layer}.fc.weight_scale"] = torch.ones(512, 1)
        save_file(tensors, tmp_path / "model.safetensors")
        weights, _ = find_weights(tb.open_checkpoint(tmp_path))
        tracemalloc.start()
        for weight in weights:
            weight.load()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]
