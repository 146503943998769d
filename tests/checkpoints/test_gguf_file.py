"""GGUF files, written by the package gguf: values, names, memory, and files that are damaged."""

import numpy as np
import pytest
import torch

import tempbalance as tb
from tempbalance.errors import CheckpointError, CorruptFileError
from tempbalance.layers import find_weights

gguf = pytest.importorskip("gguf")

ROUNDED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4")  # types that the package writes
OTHERS = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "IQ2_XXS", "IQ3_S", "IQ1_S")  # it reads only
GENERATOR = np.random.default_rng(0)
MATRIX = (GENERATOR.standard_normal((48, 256)) * GENERATOR.pareto(3, (48, 1))).astype(np.float32)


def write(path, tensors, arch="llama", **metadata):
    """Write a GGUF file, without metadata if arch is None; a tensor is a float32 array, or (bytes, type)."""
    writer = gguf.GGUFWriter(str(path), arch)
    if arch is None:
        writer.kv_data[0].clear()
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "ß"])
    writer.add_array("tokenizer.ggml.scores", [0.5, 1.5])
    for key, value in metadata.items():
        writer.add_array(key, value) if isinstance(value, list) else writer.add_uint32(key, value)
    for name, tensor in tensors.items():
        data, kind = tensor if isinstance(tensor, tuple) else (tensor, None)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def rounded(name, matrix=MATRIX):
    """The matrix in a type of GGUF, as bytes and type."""
    kind = gguf.GGMLQuantizationType[name]
    if name in OTHERS:  # any bytes are blocks; without the highest bits, every scale is finite
        block, size = gguf.GGML_QUANT_SIZES[kind]
        return GENERATOR.integers(0, 64, (*matrix.shape[:-1], matrix.shape[-1] // block * size), dtype=np.uint8), kind
    return gguf.quantize(matrix, kind), kind


def llama(layers=2, kind="Q8_0"):
    matrices = {"attn_q": (64, 64), "attn_k": (32, 64), "attn_v": (32, 64), "attn_output": (64, 64)}
    matrices |= {"ffn_gate": (96, 64), "ffn_up": (96, 64), "ffn_down": (64, 96)}
    tensors = {"token_embd.weight": rounded(kind, MATRIX.reshape(-1, 64)), "output_norm.weight": np.ones(64, "f4")}
    for layer in range(layers):
        for name, shape in matrices.items():
            values = GENERATOR.standard_normal(shape).astype(np.float32)
            tensors[f"blk.{layer}.{name}.weight"] = rounded(kind, values)
        tensors[f"blk.{layer}.attn_norm.weight"] = np.ones(64, "f4")
    return tensors


@pytest.mark.parametrize("name", ROUNDED + OTHERS)
def test_the_matrix_is_that_of_the_package_gguf(tmp_path, name):
    data, kind = rounded(name)
    path = write(tmp_path / "model.gguf", {"blk.0.ffn_up.weight": (data, kind)})
    expected = torch.from_numpy(gguf.dequantize(data, kind))
    (row,), (other,) = tb.analyze(path).layers, tb.analyze({"weight": expected}).layers
    assert (row.lambda_max, row.alpha) == pytest.approx((other.lambda_max, other.alpha), rel=1e-6, nan_ok=True)
    assert row.shape == (48, 256)
    assert row.quantisation.startswith(f"GGUF {name}, ")
    with tb.open_checkpoint(path) as checkpoint:
        (stored,) = checkpoint.tensors
        assert torch.equal(checkpoint.load(stored), expected)
        assert torch.equal(checkpoint.load(stored, (slice(3, 9), slice(5, 70))), expected[3:9, 5:70])
        assert torch.equal(checkpoint.load(stored, (7,)), expected[7])


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_matrix_that_is_not_quantised_has_no_format(tmp_path, dtype):
    path = write(tmp_path / "model.gguf", {"blk.0.ffn_up.weight": MATRIX.astype(dtype)})
    (row,) = tb.analyze(path).layers
    assert row.quantisation == ""
    assert row.lambda_max == pytest.approx(np.linalg.norm(MATRIX.astype(dtype).astype(np.float64), 2) ** 2)


def test_names_and_blocks_are_those_of_transformers(tmp_path):
    weights, skipped = find_weights(tb.open_checkpoint(write(tmp_path / "model.gguf", llama())))
    assert [w.name for w in weights[:7]] == [
        f"model.layers.0.{name}_proj.weight"
        for name in ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down")
    ]
    assert {w.block for w in weights} == {"model.layers.0", "model.layers.1"}
    assert [s.name for s in skipped] == ["model.embed_tokens.weight"]


def test_experts_are_rows_of_their_own_and_read_one_by_one(tmp_path):
    stack = GENERATOR.standard_normal((3, 40, 64)).astype(np.float32)
    tensors = {"blk.0.ffn_down_exps.weight": rounded("Q8_0", stack)}
    weights, _ = find_weights(tb.open_checkpoint(write(tmp_path / "model.gguf", tensors, "qwen3moe")))
    assert [w.name for w in weights] == [f"model.layers.0.mlp.experts.down_proj.weight:{i}" for i in range(3)]
    torch.testing.assert_close(weights[1].load(), torch.from_numpy(stack[1]), atol=0.02, rtol=0)


@pytest.mark.parametrize("arch", ["unheard-of", "gpt2"])
def test_other_architectures_keep_the_names_of_the_file(tmp_path, arch):
    path = write(tmp_path / "model.gguf", {f"blk.{i}.attn_qkv.weight": MATRIX for i in range(2)}, arch)
    assert [(row.name, row.block) for row in tb.analyze(path).layers] == [
        (f"blk.{i}.attn_qkv.weight", f"blk.{i}") for i in range(2)
    ]


def test_a_folder_with_the_parts_of_a_model_is_one_model(tmp_path):
    for part in range(2):
        tensors = {f"blk.{part}.ffn_up.weight": rounded("Q8_0")}
        write(tmp_path / f"model-{part + 1:05d}-of-00002.gguf", tensors)
    assert len(tb.analyze(tmp_path)) == 2
    (tmp_path / "model-00001-of-00002.gguf").unlink()
    with pytest.raises(CorruptFileError, match=r"model-00001-of-00002\.gguf is missing"):
        tb.open_checkpoint(tmp_path)


def parts(folder):
    """A model in two parts as gguf-split writes them, with the metadata in the first."""
    for part in range(2):
        tensors = {f"blk.{part}.{name}.weight": MATRIX for name in ("ffn_up", "ffn_gate")}
        write(folder / f"model-{part + 1:05d}-of-00002.gguf", tensors, None if part else "llama")
    return folder


NAMES = [f"model.layers.{layer}.mlp.{name}_proj.weight" for layer in range(2) for name in ("up", "gate")]


@pytest.mark.parametrize("opened", ["", "model-00001-of-00002.gguf", "model-00002-of-00002.gguf"])
def test_all_parts_are_opened_with_the_metadata_of_the_first(tmp_path, opened):
    checkpoint = tb.open_checkpoint(parts(tmp_path) / opened)
    assert list(checkpoint.tensors) == NAMES
    assert [file.path.name for file in checkpoint.files] == [f"model-0000{part}-of-00002.gguf" for part in (1, 2)]
    assert torch.equal(checkpoint.load(NAMES[3]), torch.from_numpy(MATRIX))


def test_a_part_whose_neighbour_is_missing_is_refused(tmp_path):
    (parts(tmp_path) / "model-00001-of-00002.gguf").unlink()
    with pytest.raises(CorruptFileError, match=r"model-00001-of-00002\.gguf is missing"):
        tb.open_checkpoint(tmp_path / "model-00002-of-00002.gguf")


@pytest.mark.parametrize("kind", ["Q8_0", "F32"])
def test_a_tensor_that_comfyui_stores_in_another_shape_has_its_own(tmp_path, kind):
    name = "input_blocks.4.1.proj_in.weight"
    data, number = rounded("Q8_0") if kind == "Q8_0" else (MATRIX, None)
    shape = {f"comfy.gguf.orig_shape.{name}": [96, 128]}
    checkpoint = tb.open_checkpoint(write(tmp_path / "model.gguf", {name: (data, number)}, "sdxl", **shape))
    expected = torch.from_numpy(gguf.dequantize(data, number) if kind == "Q8_0" else MATRIX).reshape(96, 128)
    assert checkpoint.tensors[name].shape == (96, 128)
    assert torch.equal(checkpoint.load(name), expected)
    assert torch.equal(checkpoint.load(name, (slice(3, 9), 5)), expected[3:9, 5])
    assert [row.shape for row in tb.analyze(checkpoint).layers] == [(96, 128)]


def test_a_shape_of_comfyui_that_does_not_fit_is_refused(tmp_path):
    shape = {"comfy.gguf.orig_shape.a.weight": [96, 127]}
    path = write(tmp_path / "model.gguf", {"a.weight": MATRIX}, "sdxl", **shape)
    with pytest.raises(CorruptFileError, match=r"a\.weight of shape \(48, 256\) should have shape \[96, 127\]"):
        tb.open_checkpoint(path)


@pytest.mark.parametrize(
    ("arch", "shapes", "names"),
    [
        (
            "qwen3moe",
            {"ffn_gate_inp": (16, 64), "ffn_up_exps": (2, 32, 64)},
            ["mlp.gate.weight", "mlp.experts.up_proj.weight"],
        ),
        ("phi3", {"ffn_up": (256, 64), "ffn_down": (64, 128)}, ["mlp.gate_up_proj.weight", "mlp.down_proj.weight"]),
        ("glm4", {"ffn_up": (256, 64), "ffn_down": (64, 128)}, ["mlp.gate_up_proj.weight", "mlp.down_proj.weight"]),
        ("starcoder2", {"ffn_up": (128, 64), "ffn_down": (64, 128)}, ["mlp.up_proj.weight", "mlp.down_proj.weight"]),
        ("gemma3", {"ffn_up": (96, 64), "ffn_gate": (96, 64)}, ["mlp.up_proj.weight", "mlp.gate_proj.weight"]),
        ("bert", {"ffn_up": (128, 64)}, ["intermediate.dense.weight"]),
    ],
)
def test_the_parts_of_an_mlp_have_names_in_one_module(tmp_path, arch, shapes, names):
    tensors = {f"blk.0.{name}.weight": GENERATOR.standard_normal(shape, "f4") for name, shape in shapes.items()}
    checkpoint = tb.open_checkpoint(write(tmp_path / "model.gguf", tensors, arch))
    assert [name.partition("layers.0." if arch != "bert" else "layer.0.")[2] for name in checkpoint.tensors] == names


HEADS = {"llama.attention.head_count": 8, "llama.attention.head_count_kv": 2}


@pytest.mark.parametrize("heads", [HEADS, HEADS | {"llama.attention.head_count_kv": [4, 2]}])
@pytest.mark.parametrize("kind", ["Q8_0", "F32"])
def test_queries_and_keys_have_their_rows_in_the_order_of_transformers(tmp_path, kind, heads):
    before, tensors = {}, {}
    for name, count in (("q", 8), ("k", 2)):
        matrix = GENERATOR.standard_normal((count * 6, 64), "f4")
        data, number = rounded("Q8_0", matrix)
        values = gguf.dequantize(data, number) if kind == "Q8_0" else matrix
        before[f"model.layers.1.self_attn.{name}_proj.weight"] = torch.from_numpy(values)
        # llama.cpp alternates the rows of the two halves of a head
        order = [6 * head + 3 * half + row for head in range(count) for row in range(3) for half in range(2)]
        tensors[f"blk.1.attn_{name}.weight"] = (data[order], number) if kind == "Q8_0" else matrix[order]
    checkpoint = tb.open_checkpoint(write(tmp_path / "model.gguf", tensors, **heads))
    for name, matrix in before.items():
        assert torch.equal(checkpoint.load(name), matrix)
        assert torch.equal(checkpoint.load(name, (slice(3, 9), 5)), matrix[3:9, 5])
    assert [layer.relative_change for layer in tb.compare(before, checkpoint).layers] == [0, 0]


def test_queries_of_other_architectures_are_read_as_they_are(tmp_path):
    tensors = {"blk.0.attn_q.weight": MATRIX}
    checkpoint = tb.open_checkpoint(
        write(tmp_path / "model.gguf", tensors, "qwen3", **{"qwen3.attention.head_count": 8})
    )
    assert torch.equal(checkpoint.load("model.layers.0.self_attn.q_proj.weight"), torch.from_numpy(MATRIX))


def test_the_router_of_a_gguf_file_is_found(tmp_path):
    shapes = {"ffn_gate_inp": (16, 64), "ffn_up_exps": (2, 32, 64)}
    tensors = {f"blk.0.{name}.weight": GENERATOR.standard_normal(shape, "f4") for name, shape in shapes.items()}
    rows = tb.analyze(write(tmp_path / "model.gguf", tensors, "qwen3moe")).layers
    assert [row.role for row in rows] == ["router", "up", "up"]


def test_a_type_that_gguf_does_not_know_costs_its_tensor_alone(tmp_path):
    data, kind = rounded("Q8_0")
    path = write(tmp_path / "model.gguf", {"blk.0.ffn_up.weight": (data, kind), "blk.0.ffn_down.weight": MATRIX})
    content = path.read_bytes()
    name = b"blk.0.ffn_up.weight" + (2).to_bytes(4, "little")
    place = content.index(name) + len(name) + 16
    path.write_bytes(content[:place] + (99).to_bytes(4, "little") + content[place + 4 :])
    analysis = tb.analyze(path)
    assert [row.name for row in analysis.layers] == ["model.layers.0.mlp.down_proj.weight"]
    assert "type 99 is unknown to gguf: install a newer" in analysis.skipped[0].reason


def test_a_type_without_code_in_gguf_is_named(tmp_path):
    kind = gguf.GGMLQuantizationType.Q8_K
    size = gguf.GGML_QUANT_SIZES[kind][1]
    path = write(tmp_path / "model.gguf", {"blk.0.ffn_up.weight": (np.zeros((48, size), np.uint8), kind)})
    assert "Q8_K cannot be dequantised" in tb.analyze(path).skipped[0].reason


def test_a_file_that_is_cut_short_is_refused_wherever_it_is_cut(tmp_path):
    content = write(tmp_path / "model.gguf", llama(1)).read_bytes()
    for length in [4, 5, 9, 23, *range(30, len(content) - 40_000, 97), len(content) - 3000]:
        path = tmp_path / "cut.gguf"
        path.write_bytes(content[:length])
        with pytest.raises(CorruptFileError, match=r"cut\.gguf.*(truncated)"):
            tb.open_checkpoint(path)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [(4, 1, "version 1"), (4, 3 << 24, "little-endian"), (8, 1 << 60, "a count of"), (16, 1 << 40, "a count of")],
)
def test_a_damaged_header_is_refused(tmp_path, place, value, message):
    content = bytearray(write(tmp_path / "model.gguf", llama(1)).read_bytes())
    size = 4 if place == 4 else 8
    content[place : place + size] = value.to_bytes(size, "little")
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(CorruptFileError, match=message):
        tb.open_checkpoint(tmp_path / "model.gguf")


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "model.gguf", {"blk.0.ffn_up.weight": MATRIX})
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(tb.errors.MissingExtraError, match=r"tempbalance\[gguf\]"):
        tb.open_checkpoint(path)


def test_a_block_of_a_high_number_costs_no_time(tmp_path):
    path = write(tmp_path / "model.gguf", {"blk.999999999.ffn_up.weight": MATRIX})
    assert [row.name for row in tb.analyze(path).layers] == ["blk.999999999.ffn_up.weight"]


def test_scales_that_are_not_finite_are_found(tmp_path):
    data, kind = rounded("Q8_0")
    data[5, :2] = np.array([np.inf], dtype=np.float16).view(np.uint8)
    (skipped,) = tb.analyze(write(tmp_path / "model.gguf", {"blk.0.ffn_up.weight": (data, kind)})).skipped
    assert "NaN or Inf" in skipped.reason


def test_a_key_is_for_pytorch_files(tmp_path):
    path = write(tmp_path / "model.gguf", {"blk.0.ffn_up.weight": MATRIX})
    with pytest.raises(CheckpointError, match="gguf file has no key"):
        tb.open_checkpoint(path, key="model")
