"""Files of ComfyUI: block scales in tiles, and descriptions of layers in tensors or in the metadata of a file."""

import json

import pytest
import torch
from safetensors.torch import save_file

import tempbalance as tb
from tempbalance.layers import find_weights

FC = "layers.0.fc"
GENERATOR = torch.Generator().manual_seed(0)


def reason(tensors):
    """The reason for the weight, which is skipped."""
    rows, skipped = find_weights(tensors)
    assert rows == []
    return {s.name: s.reason for s in skipped}[f"{FC}.weight"]


def tiles(scales):
    """Scales in the order of cuBLAS, one at a time; sizes and places are those of its documentation."""
    rows, columns = scales.shape
    across = -(-columns // 4)
    flat = torch.zeros(-(-rows // 128) * across * 512, dtype=scales.dtype)
    for row in range(rows):
        for column in range(columns):
            tile = row // 128 * across + column // 4
            flat[tile * 512 + row % 32 * 16 + row % 128 // 32 * 4 + column % 4] = scales[row, column]
    return flat.view(-1, 4 * across)


def comfy(**description):
    return torch.tensor(list(json.dumps(description).encode()), dtype=torch.uint8)


def comfy_weights(rows=144, columns=160):
    """NVFP4 and MXFP8 as ComfyUI stores them, and their matrices."""
    digits = torch.randint(0, 16, (rows, columns), generator=GENERATOR, dtype=torch.uint8)
    values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])[(digits % 8).long()] * (1 - 2.0 * (digits // 8))
    scales = (torch.rand(rows, columns // 16, generator=GENERATOR) + 0.5).to(torch.float8_e4m3fn)
    powers = torch.randint(120, 130, (rows, columns // 32), generator=GENERATOR, dtype=torch.uint8)
    small = torch.randn(rows, columns, generator=GENERATOR).to(torch.float8_e4m3fn)
    nvfp4 = {"weight": digits[:, ::2] * 16 + digits[:, 1::2], "weight_scale": tiles(scales)}
    nvfp4["weight_scale_2"] = torch.tensor(0.25)
    mxfp8 = {"weight": small, "weight_scale": tiles(powers)}
    return {
        "nvfp4": (nvfp4, values * scales.float().repeat_interleave(16, 1) * 0.25),
        "mxfp8": (mxfp8, small.float() * torch.exp2(powers.float() - 127).repeat_interleave(32, 1)),
    }


@pytest.mark.parametrize("name", ["nvfp4", "mxfp8"])
@pytest.mark.parametrize("place", ["tensor", "metadata"])
def test_the_scales_of_comfyui_are_in_tiles(name, place, tmp_path):
    parts, matrix = comfy_weights()[name]
    tensors, metadata = {f"{FC}.{part}": tensor.contiguous() for part, tensor in parts.items()}, {}
    if place == "tensor":
        tensors[f"{FC}.comfy_quant"] = comfy(format=name)
    else:
        layers = {FC: {"format": name}, "in.another.shard": {"format": name}}
        metadata = {"_quantization_metadata": json.dumps({"layers": layers})}
    save_file(tensors, tmp_path / "model.safetensors", metadata)
    checkpoint = tb.open_checkpoint(tmp_path / "model.safetensors")
    assert list(checkpoint.tensors)[-1] == f"{FC}.comfy_quant" or place == "tensor"
    (row,) = find_weights(checkpoint)[0]
    assert row.quantisation.startswith(name.upper())
    torch.testing.assert_close(row.load(), matrix, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"format": "convrot_w4a4"}, "convrot_w4a4 is not read"),
        ({"format": "hybrid_mxfp8"}, "hybrid_mxfp8 is not read"),
        ({"format": "int8_tensorwise", "convrot": True}, "int8_tensorwise (rotated) is not read"),
    ],
)
def test_other_formats_of_comfyui_are_named(description, message):
    tensors = {f"{FC}.weight": torch.ones(64, 64, dtype=torch.int8), f"{FC}.weight_scale": torch.ones(64, 1)}
    assert message in reason(tensors | {f"{FC}.comfy_quant": comfy(**description)})
    assert len(find_weights(tensors | {f"{FC}.comfy_quant": comfy(format="int8_tensorwise")})[0]) == 1


def test_scales_of_comfyui_without_tiles_are_refused():
    parts, _ = comfy_weights()["nvfp4"]
    tensors = {f"{FC}.{part}": tensor for part, tensor in parts.items()} | {f"{FC}.comfy_quant": comfy(format="nvfp4")}
    tensors[f"{FC}.weight_scale"] = tensors[f"{FC}.weight_scale"][:144, :10]
    assert "expected (256, 12)" in reason(tensors)
