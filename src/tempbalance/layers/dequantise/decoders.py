"""The quantised formats that are read."""

from __future__ import annotations

from collections.abc import Mapping

from tempbalance.layers.dequantise.bitsandbytes import decode_4bit, decode_8bit
from tempbalance.layers.dequantise.grouped import decode_hqq, decode_quanto, decode_torchao
from tempbalance.layers.dequantise.integers import decode_awq_or_gptq, decode_compressed, decode_gptq, decode_mlx
from tempbalance.layers.dequantise.module import Decoder
from tempbalance.layers.dequantise.with_scales import decode_mxfp4, decode_with_scale

__all__ = ["DECODERS"]

# Format, as ``reasons`` recognises it by the names of tensors, and the function that describes its weights.
DECODERS: Mapping[str, Decoder] = {
    "": decode_with_scale,
    "MXFP4": decode_mxfp4,
    "compressed-tensors": decode_compressed,
    "bitsandbytes 4-bit": decode_4bit,
    "bitsandbytes 8-bit": decode_8bit,
    "GPTQ": decode_gptq,
    "AWQ or GPTQ": decode_awq_or_gptq,
    "MLX": decode_mlx,
    "HQQ": decode_hqq,
    "quanto": decode_quanto,
    "torchao": decode_torchao,
}
