"""Number formats: costs, and rounding as the tools that store them round."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from tempbalance.compress.formats import FORMATS, find_format
from tempbalance.errors import AllocationError, ArgumentTypeError

NAMES = ["int2", "int3_g32", "int4", "int8_g64", *FORMATS]
E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
# OCP 8-bit floating point specification, E4M3: three bits of mantissa, exponents from -6 to 8, 448 the largest.
E4M3 = [m * 2.0**-9 for m in range(8)] + [(1 + m / 8) * 2.0**e for e in range(-6, 9) for m in range(8)][:-1]


@pytest.fixture(scope="module")
def weight() -> Tensor:
    """Rows of very different size, one of them zero, and a block of zeros."""
    made = torch.randn(12, 192, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 2, 12)[:, None]
    made[3] = 0
    made[5, 64:128] = 0
    return made


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("int4", 4 + 16 / 192),
        ("int4_g64", 4 + 16 / 64),
        ("int3_g192", 3 + 16 / 192),
        ("fp8", 8 + 16 / 192),
        ("mxfp4", 4.25),
        ("mxfp8", 8.25),
        ("nvfp4", 4.5 + 32 / (12 * 192)),
        ("bf16", 16),
        ("fp16", 16),
    ],
)
def test_a_format_costs_its_bits_and_its_scales(name, bits):
    assert find_format(name).cost((12, 192)) == pytest.approx(bits * 12 * 192)


@pytest.mark.parametrize("name", ["q4_0", "q5_0", "q8_0", "mxfp4", "bf16"])
def test_a_format_of_gguf_costs_and_rounds_as_the_package_gguf(weight, name):
    gguf = pytest.importorskip("gguf")
    kind = gguf.GGMLQuantizationType[name.upper()]
    packed = gguf.quants.quantize(weight.numpy(), kind)
    assert find_format(name).cost((12, 192)) == 8 * packed.nbytes
    torch.testing.assert_close(find_format(name).round(weight), torch.from_numpy(gguf.quants.dequantize(packed, kind)))


@pytest.mark.parametrize("name", ["int2_g64", "int3", "int4_g32", "int8", "fp8", "nvfp4"])
def test_a_format_rounds_as_compressed_tensors(weight, name):
    """Its scales of a model in bfloat16, applied in float32."""
    quantization = pytest.importorskip("compressed_tensors.quantization")
    helpers = pytest.importorskip("compressed_tensors.quantization.utils")
    one = find_format(name)
    kinds = {"fp8": "FP8_DYNAMIC", "nvfp4": "NVFP4A16"}
    if name in kinds:
        args = quantization.preset_name_to_scheme(kinds[name], []).weights
    else:
        group = {"strategy": "group", "group_size": one.block} if one.block else {"strategy": "channel"}
        args = quantization.QuantizationArgs(num_bits=one.bits, type="int", symmetric=True, **group)
    weight = weight[[0, 1, 2, 4, 6, 7]]  # without zeros, where it has a tiny scale
    blocks = weight.view(len(weight), -1, one.block or weight.shape[1])
    least, most = blocks.amin(dim=-1), blocks.amax(dim=-1)
    whole = helpers.generate_gparam(weight.min(), weight.max()) if name == "nvfp4" else None
    scale, zero = helpers.calculate_qparams(least, most, args, global_scale=whole)
    if name != "nvfp4":
        scale = scale.bfloat16().float()
    expected = quantization.fake_quantize(weight, scale, zero.float(), args, global_scale=whole)
    torch.testing.assert_close(one.round(weight), expected, rtol=1e-6, atol=0)


def nearest(value: float, grid: list[float]) -> float:
    return min((sign * each for each in grid for sign in (1, -1)), key=lambda each: abs(each - value))


@pytest.mark.parametrize(("name", "grid", "exponent"), [("mxfp4", E2M1, 2), ("mxfp8", E4M3, 8)])
def test_microscaling_rounds_to_the_nearest_value_of_the_specification(weight, name, grid, exponent):
    """OCP MX 1.0, section 6.3, in float64."""
    rounded = find_format(name).round(weight)
    for row, start in itertools.product((0, 4, 5, 11), (0, 64)):
        block = weight[row, start : start + 32].double().tolist()
        most = max(map(abs, block))
        scale = 2.0 ** (math.floor(math.log2(most)) - exponent) if most else 1.0
        expected = [scale * nearest(value / scale, grid) for value in block]
        assert rounded[row, start : start + 32].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("name", NAMES)
def test_rounding_keeps_zeros_the_dtype_and_what_is_rounded_already(weight, name):
    one = find_format(name)
    rounded = one.round(weight.bfloat16())
    assert rounded.dtype is torch.bfloat16
    assert rounded[3].count_nonzero() == 0
    assert rounded.isfinite().all()
    error = (rounded.float() - weight).norm(dim=1) / weight.norm(dim=1).clamp(min=1e-9)
    assert error.max() < {2: 0.9, 3: 0.5, 4: 0.25, 5: 0.1, 8: 0.05, 16: 0.01}[one.bits]


def test_more_bits_have_less_error(weight):
    errors = [float((find_format(f"int{bits}_g32").round(weight) - weight).norm()) for bits in range(2, 9)]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("name", ["int1", "int9", "int4_g0", "int4_g-1", "int4g128", "fp4", "", "INT4", "int4_g"])
def test_an_unknown_format_is_refused_with_those_that_are_known(name):
    with pytest.raises(AllocationError, match=r"unknown format .*int2 to int8, int4_g128.*nvfp4"):
        find_format(name)


def test_a_format_that_is_no_text_is_refused():
    with pytest.raises(ArgumentTypeError, match="a format must be of type str"):
        find_format(4)


def test_blocks_must_divide_the_columns():
    assert [find_format("nvfp4").fits(shape) for shape in [(4, 32), (32, 4), (4, 40), (32,), (2, 4, 32)]] == [
        *(True, False, False, False, False)
    ]
