"""How much rounding moves alpha: MiniLM in each quantised format, against its float32 weights.

    python benchmarks/rounding.py [rounding.json]

Each weight is rounded to the nearest value of the format (by the packages gguf and compressed-tensors, or by torch) and
fitted by Hill. Formats that choose values by calibration data (GPTQ, AWQ) have the same grids as INT4 here.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median

import gguf
import torch
from compressed_tensors.compressors.nvfp4.helpers import kE2M1ToFloat
from models import minilm_folder
from safetensors.torch import load_file
from torch import Tensor

import tempbalance as tb

NF4 = (-1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0, 0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626,
       0.7230, 1.0)  # fmt: skip
FP4 = torch.cat([kE2M1ToFloat, -kE2M1ToFloat])


def nearest(values: Tensor, table: Tensor) -> Tensor:
    """Round to the nearest entry of a table."""
    table = table.sort().values
    return table[torch.bucketize(values, (table[1:] + table[:-1]) / 2)]


def in_groups(weight: Tensor, size: int, round_: Callable[[Tensor], Tensor]) -> Tensor:
    """Round groups of entries of a row."""
    return round_(weight.reshape(-1, size)).view(weight.shape)


def fp8(values: Tensor) -> Tensor:
    """Round rows to FP8."""
    scale = values.abs().amax(-1, keepdim=True) / 448
    return (values / scale).to(torch.float8_e4m3fn).float() * scale


def fp8_block(weight: Tensor) -> Tensor:
    """Round blocks of 128 x 128 to FP8."""
    blocks = weight.unflatten(1, (-1, 128)).unflatten(0, (-1, 128)).movedim(1, 2)
    return fp8(blocks.flatten(2)).view(blocks.shape).movedim(2, 1).reshape(weight.shape)


def integers(bits: int) -> Callable[[Tensor], Tensor]:
    """Return the function that rounds rows to integers."""

    def round_(values: Tensor) -> Tensor:
        """Round rows to integers."""
        scale = values.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 0.5)
        return (values / scale).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * scale

    return round_


def nf4(values: Tensor) -> Tensor:
    """Round rows to NF4."""
    scale = values.abs().amax(-1, keepdim=True)
    return nearest(values / scale, torch.tensor(NF4)) * scale


def mxfp4(values: Tensor) -> Tensor:
    """Round rows to 4-bit floats, with a power of two as scale."""
    scale = torch.exp2(values.abs().amax(-1, keepdim=True).log2().floor() - 2)
    return nearest(values / scale, FP4) * scale


def nvfp4(values: Tensor) -> Tensor:
    """Round rows to 4-bit floats, with a scale in FP8."""
    whole = values.abs().amax() / (448 * 6)
    scale = (values.abs().amax(-1, keepdim=True) / 6 / whole).to(torch.float8_e4m3fn).float() * whole
    return nearest(values / scale, FP4) * scale


def of_gguf(name: str) -> Callable[[Tensor], Tensor]:
    """Return the function that rounds a weight to a type of GGUF."""
    kind = gguf.GGMLQuantizationType[name]
    return lambda weight: torch.from_numpy(gguf.dequantize(gguf.quantize(weight.numpy(), kind), kind))


FORMATS: dict[str, tuple[float, Callable[[Tensor], Tensor]]] = {
    "bfloat16": (16, lambda weight: weight.bfloat16().float()),
    "FP8 e4m3, a scale for each weight": (8, lambda weight: fp8(weight.reshape(1, -1)).view(weight.shape)),
    "FP8 e4m3, a scale for each row": (8, fp8),
    "FP8 e4m3, a scale for each 128 x 128": (8, fp8_block),
    "INT8, a scale for each row": (8, integers(8)),
    "GGUF Q8_0": (8.5, of_gguf("Q8_0")),
    "GGUF Q5_0": (5.5, of_gguf("Q5_0")),
    "GGUF Q4_0": (4.5, of_gguf("Q4_0")),
    "INT4 in groups of 128": (4, lambda weight: in_groups(weight, 128, integers(4))),
    "INT4 in groups of 32": (4, lambda weight: in_groups(weight, 32, integers(4))),
    "INT3 in groups of 32": (3, lambda weight: in_groups(weight, 32, integers(3))),
    "NF4 in blocks of 64": (4, lambda weight: in_groups(weight, 64, nf4)),
    "NVFP4": (4.5, lambda weight: in_groups(weight, 16, nvfp4)),
    "MXFP4": (4.25, lambda weight: in_groups(weight, 32, mxfp4)),
    "GGUF TQ1_0 (ternary)": (1.7, of_gguf("TQ1_0")),
}


def main() -> None:
    """Print the table, and write it to a file."""
    weights = load_file(Path(minilm_folder()) / "model.safetensors")
    plain = {row.name: row for row in tb.analyze(weights).layers if row.status is tb.types.Status.OK}
    found = {}
    for name, (bits, round_) in FORMATS.items():
        fitting = {k: weights[k].float() for k in plain if "TQ" not in name or weights[k].shape[1] % 256 == 0}
        rounded = tb.analyze({key: round_(weight) for key, weight in fitting.items()}, progress=False)
        changes = [abs(row.alpha / plain[row.name].alpha - 1) for row in rounded.layers]
        finite = sorted(change for change in changes if not math.isnan(change))
        stderr = median(plain[row.name].stderr / plain[row.name].alpha for row in rounded.layers)
        found[name] = {
            "bits": bits,
            "layers": len(changes),
            "median": median(finite),
            "max": finite[-1],
            "stderr": stderr,
        }
        print(f"| {name} | {median(finite):.2%} | {finite[-1]:.2%} |", len(changes), flush=True)
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
