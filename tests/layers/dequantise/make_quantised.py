"""Make the files of files/: a known matrix, quantised by the own tool of each format.

    python tests/layers/dequantise/make_quantised.py [NAME ...]

Each tool writes `NAME/model.safetensors` (and config.json, where the format needs it), and its own dequantised matrix
goes into expected.json: lambda_max, alpha, and some entries. A tool that is not installed is left out with a message;
none is needed to run the tests. README.md there says how each file was made.
"""

import json
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import save_file

FOLDER = Path(__file__).parent / "files"
NAME = "layers.0.fc"
ROWS, COLUMNS = 64, 128
STRIDE = 61  # of the entries that are kept


def known_matrix(rows=ROWS, columns=COLUMNS):
    """A matrix with a heavy-tailed spectrum and rows of different sizes."""
    generator = torch.Generator().manual_seed(7)
    size = min(rows, columns)
    left = torch.linalg.qr(torch.randn(rows, size, generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(columns, size, generator=generator, dtype=torch.float64)).Q
    values = (1 - torch.rand(size, generator=generator, dtype=torch.float64)) ** -0.4
    sizes = torch.rand(rows, 1, generator=generator, dtype=torch.float64) + 0.5
    return (sizes * (left * values) @ right.T).float() * 0.02


def compressed_tensors(preset, compressor, **changes):
    """Quantise by compressed-tensors."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
    from compressed_tensors.quantization import preset_name_to_scheme
    from compressed_tensors.quantization.lifecycle.forward import dequantize
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    scheme = preset_name_to_scheme(preset, ["Linear"])
    scheme.weights = scheme.weights.model_copy(update=changes)
    weight = known_matrix()
    args = scheme.weights
    size, block = args.group_size, args.block_structure
    blocks = weight
    if block:
        blocks = weight.unflatten(1, (-1, block[1])).unflatten(0, (-1, block[0])).movedim(1, 2)
        low, high = blocks.amin((-1, -2)), blocks.amax((-1, -2))
    elif size and size > 0:
        blocks = weight.unflatten(1, (-1, size))
        low, high = blocks.amin(-1), blocks.amax(-1)
    elif args.strategy == "channel":
        low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    else:
        low, high = weight.amin().view(1), weight.amax().view(1)
    whole = generate_gparam(weight.amin(), weight.amax()) if args.strategy == "tensor_group" else None
    scale, zero = calculate_qparams(low, high, args, global_scale=whole)
    state = {"weight": weight, "weight_scale": scale.float() if whole is None else scale}
    state |= {} if args.symmetric else {"weight_zero_point": zero}
    state |= {} if whole is None else {"weight_global_scale": whole}
    tool = BaseCompressor.get_value_from_registry(compressor)
    stored = tool.compress(state, scheme)
    found = tool.decompress(dict(stored), scheme)["weight"].float()
    if whole is not None:  # decompress rounds to bfloat16
        packed = unpack_fp4_from_uint8(stored["weight_packed"], ROWS, COLUMNS, torch.float32)
        found = dequantize(packed, stored["weight_scale"].float(), args=args, global_scale=whole, dtype=torch.float32)
    return stored, found, {}


def fp8_blocks(scale_fmt=None):
    """Quantise as FP8 with block scales by the code of Transformers."""
    from types import SimpleNamespace

    from transformers.integrations.finegrained_fp8 import Fp8Dequantize, Fp8Quantize

    settings = {"quant_method": "fp8", "weight_block_size": [32, 64]}
    quantizer = SimpleNamespace(quantization_config=SimpleNamespace(weight_block_size=[32, 64], scale_fmt=scale_fmt))
    stored = Fp8Quantize(quantizer).convert({"weight": known_matrix()})
    found = Fp8Dequantize(quantizer)._dequantize_one(stored["weight"], stored["weight_scale_inv"], torch.float32)
    return stored, found, {"quantization_config": settings}


def bitsandbytes_4bit(quant_type, nested):
    """Quantise by bitsandbytes on the CPU."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    packed, state = quantize_4bit(known_matrix(), quant_type=quant_type, blocksize=64, compress_statistics=nested)
    stored = {"weight": packed} | {f"weight.{key}": value for key, value in state.as_dict(packed=True).items()}
    return stored, dequantize_4bit(packed, state), {}


def bitsandbytes_8bit():
    from bitsandbytes.functional import int8_vectorwise_dequant, int8_vectorwise_quant

    integers, scales, _ = int8_vectorwise_quant(known_matrix().half())
    stored = {"weight": integers, "SCB": scales, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    return stored, int8_vectorwise_dequant(integers, scales), {}


def awq():
    from awq.modules.linear.gemm import WQLinear_GEMM
    from awq.utils.packing_utils import dequantize_gemm

    groups = known_matrix().unflatten(1, (-1, 64))
    low, high = groups.amin(-1), groups.amax(-1)
    scales = ((high - low) / 15).half().float()
    zeros = (-low / scales).round().clamp(0, 15)
    rounded = (groups / scales[..., None]).round().add(zeros[..., None]).clamp(0, 15)
    linear = torch.nn.Linear(COLUMNS, ROWS, bias=False)
    linear.weight.data = ((rounded - zeros[..., None]) * scales[..., None]).flatten(1)
    made = WQLinear_GEMM.from_linear(linear, 4, 64, scales=scales.T.contiguous(), zeros=zeros.T.contiguous())
    stored = {name: tensor for name, tensor in made.state_dict().items() if tensor is not None}
    found = dequantize_gemm(made.qweight, made.qzeros, made.scales.float(), 4, 64).T.contiguous()
    return stored, found, {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 64}}


def gptq(bits, act_order):
    """Pack by the layer of auto-gptq, whose forward pass on the unit vectors gives its dequantised matrix."""
    if "auto_gptq" not in sys.modules:  # its __init__ needs an old version of Transformers
        folder = str(Path(find_spec("auto_gptq").origin).parent)
        sys.modules["auto_gptq"] = type(sys)("auto_gptq")
        sys.modules["auto_gptq"].__path__ = [folder]
    from auto_gptq.nn_modules.qlinear.qlinear_cuda import QuantLinear

    size, most = 32, 2**bits - 1
    order = torch.randperm(COLUMNS, generator=torch.Generator().manual_seed(1)) if act_order else torch.arange(COLUMNS)
    index = torch.empty(COLUMNS, dtype=torch.int32)
    index[order] = (torch.arange(COLUMNS) // size).int()
    matrix = known_matrix()
    groups = torch.stack([matrix[:, index == group] for group in range(COLUMNS // size)], 1)
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    scales = ((high - low) / most).half().float()
    zeros = (-low / scales).round().clamp(1, most)
    columns_scales, columns_zeros = scales[:, index.long()], zeros[:, index.long()]
    linear = torch.nn.Linear(COLUMNS, ROWS, bias=False)
    rounded = (matrix / columns_scales).round().add(columns_zeros).clamp(0, most)
    linear.weight.data = (rounded - columns_zeros) * columns_scales
    layer = QuantLinear(bits, size, COLUMNS, ROWS, bias=False, weight_dtype=torch.float32)
    layer.pack(linear, scales, zeros, index)
    found = layer(torch.eye(COLUMNS)).T.float()
    stored = {name: tensor for name, tensor in layer.state_dict().items() if name != "bias"}
    return stored, found, {"quantization_config": {"quant_method": "gptq", "bits": bits, "group_size": size}}


def hqq(**settings):
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    linear = torch.nn.Linear(COLUMNS, ROWS, bias=False)
    linear.weight.data = known_matrix()
    made = HQQLinear(linear, BaseQuantizeConfig(**settings), compute_dtype=torch.float32, device="cpu")
    return made.state_dict(), made.dequantize(), {}


def quanto(kind):
    import optimum.quanto

    linear = torch.nn.Linear(COLUMNS, ROWS, bias=True)
    linear.weight.data = known_matrix()
    model = torch.nn.Sequential(linear)
    optimum.quanto.quantize(model, weights=getattr(optimum.quanto, kind))
    optimum.quanto.freeze(model)
    stored = {name.removeprefix("0."): tensor for name, tensor in model.state_dict().items()}

    # The own code for this needs a compiler; the lowest bits of the bytes are the first rows.
    def unpack(self):
        return torch.cat([(self._data >> i) & (2**self._bits - 1) for i in range(0, 8, self._bits)])

    sys.modules["optimum.quanto.tensor.packed"].PackedTensor.unpack = unpack
    return stored, model[0].weight.dequantize(), {}


def torchao(config):
    import torchao.quantization
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
    from torchao.quantization import quantize_

    model = torch.nn.Sequential(torch.nn.Linear(COLUMNS, ROWS, bias=False))
    model[0].weight.data = known_matrix()
    quantize_(model, eval(config, vars(torchao.quantization)))
    weight = model[0].weight
    stored, metadata = flatten_tensor_state_dict({f"{NAME}.weight": weight.data})
    stored = {name.removeprefix(f"{NAME}."): tensor for name, tensor in stored.items()}
    return stored, weight.dequantize(), {}, metadata


def mlx(**settings):
    import mlx.core as mx
    import numpy

    weight = mx.array(known_matrix().numpy())
    found = mx.quantize(weight, **settings)
    plain = mx.dequantize(*found, **settings).astype(mx.float32)
    names = ("weight", "scales", "biases")
    stored = {name: torch.from_numpy(numpy.array(value)) for name, value in zip(names, found, strict=False)}
    return stored, torch.from_numpy(numpy.array(plain)), {"quantization": settings}


MAKERS = {
    "fp8-tensor": lambda: compressed_tensors("FP8", "float-quantized"),
    "fp8-channel": lambda: compressed_tensors("FP8_DYNAMIC", "float-quantized"),
    "fp8-block": lambda: compressed_tensors("FP8_BLOCK", "float-quantized", block_structure=[32, 64]),
    "fp8-finegrained": fp8_blocks,
    "int8-channel": lambda: compressed_tensors("W8A8", "int-quantized"),
    "int4-group": lambda: compressed_tensors("W4A16", "pack-quantized", group_size=32),
    "int4-asymmetric": lambda: compressed_tensors("W4A16_ASYM", "pack-quantized", group_size=32),
    "int8-packed": lambda: compressed_tensors("W8A16", "pack-quantized"),
    "int3-packed": lambda: compressed_tensors("W4A16", "pack-quantized", group_size=32, num_bits=3),
    "nvfp4": lambda: compressed_tensors("NVFP4A16", "nvfp4-pack-quantized"),
    "mxfp4": lambda: compressed_tensors("MXFP4A16", "mxfp4-pack-quantized"),
    "mxfp8": lambda: compressed_tensors("MXFP8A16", "mxfp8-quantized"),
    "bnb-nf4": lambda: bitsandbytes_4bit("nf4", False),
    "bnb-nf4-nested": lambda: bitsandbytes_4bit("nf4", True),
    "bnb-fp4": lambda: bitsandbytes_4bit("fp4", False),
    "bnb-int8": bitsandbytes_8bit,
    "gptq-4": lambda: gptq(4, False),
    "gptq-4-act-order": lambda: gptq(4, True),
    "gptq-3": lambda: gptq(3, False),
    "gptq-8": lambda: gptq(8, False),
    "awq": awq,
    "hqq-4": lambda: hqq(nbits=4, group_size=32),
    "hqq-3": lambda: hqq(nbits=3, group_size=32),
    "hqq-2-axis-0": lambda: hqq(nbits=2, group_size=32, axis=0),
    "hqq-8": lambda: hqq(nbits=8, group_size=None),
    "quanto-int8": lambda: quanto("qint8"),
    "quanto-int4": lambda: quanto("qint4"),
    "quanto-fp8": lambda: quanto("qfloat8"),
    "torchao-int8": lambda: torchao("Int8WeightOnlyConfig(version=2)"),
    "torchao-fp8": lambda: torchao("Float8WeightOnlyConfig()"),
    "torchao-int4": lambda: torchao("IntxWeightOnlyConfig(weight_dtype=__import__('torch').int4)"),
    "mlx-4": lambda: mlx(group_size=64, bits=4),
    "mlx-3": lambda: mlx(group_size=32, bits=3),
    "mlx-mxfp4": lambda: mlx(group_size=32, bits=4, mode="mxfp4"),
    "mlx-nvfp4": lambda: mlx(group_size=16, bits=4, mode="nvfp4"),
}  # fmt: skip
PACKAGES = {
    "bnb": "bitsandbytes", "gptq": "auto-gptq", "awq": "autoawq", "hqq": "hqq", "quanto": "optimum-quanto",
    "torchao": "torchao", "mlx": "mlx", "fp8-finegrained": "transformers",
}  # fmt: skip


def main(names):
    from tempbalance import analyze

    path = FOLDER / "expected.json"
    expected = json.loads(path.read_text()) if path.exists() else {}
    for name in names or MAKERS:
        package = next((p for prefix, p in PACKAGES.items() if name.startswith(prefix)), "compressed-tensors")
        try:
            tool = f"{package} {version(package)}"
            stored, found, config, *metadata = MAKERS[name]()
        except (ImportError, PackageNotFoundError) as error:
            print(f"{name}: {error}")
            continue
        folder = FOLDER / name
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"{NAME}.{key}": value.detach().contiguous().clone() for key, value in stored.items()}
        save_file(tensors, folder / "model.safetensors", *metadata)
        if config:
            (folder / "config.json").write_text(json.dumps(config) + "\n")
        found = found.detach().float().contiguous()
        row = analyze({"weight": found}, progress=False).layers[0]
        expected[name] = {
            "tool": tool, "lambda_max": row.lambda_max, "alpha": row.alpha, "shape": list(found.shape),
            "entries": found.flatten()[::STRIDE].tolist(),
        }  # fmt: skip
        print(name, tool, row.status.value, row.alpha, sorted(stored), sum(f.stat().st_size for f in folder.iterdir()))
    path.write_text(json.dumps(dict(sorted(expected.items())), indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
