"""Bits as a tensor type file for llama-quantize of llama.cpp."""

from __future__ import annotations

import os
import re

from tempbalance._files import write_atomically
from tempbalance.compress.allocation import Allocation
from tempbalance.errors import AllocationError, check_type, require_extra

__all__ = ["export_llama_quantize"]

# Types of ggml by format or plain width, and the block of columns that ggml quantizes at a time.
_TYPES: dict[str | float, tuple[str, int]] = {
    **{"bf16": ("bf16", 1), "fp16": ("f16", 1), "mxfp4": ("mxfp4", 32)},
    **{name: (name, 32) for name in ("q4_0", "q5_0", "q8_0")},
    **{width: (f"q{width}_K", 256) for width in (2, 3, 4, 5, 6)},
    **{8: ("q8_0", 32), 16: ("bf16", 1)},
}


def export_llama_quantize(
    allocation: Allocation, path: str | os.PathLike[str], architecture: str = "llama"
) -> dict[str, str]:
    r"""Write an allocation of bits as a file for ``llama-quantize --tensor-type-file``.

    ``llama-quantize --tensor-type-file types.txt model-f32.gguf out.gguf Q4_K`` applies it; the last type, which must
    be quantized, is for all other tensors. Do not use ``--pure``, which ignores the file. A plain width stands for the
    K-quant of that name, which has more bits with its scales: 2.625 (q2_K), 3.4375, 4.5, 5.5, 6.5625 (q6_K), 8.5
    (q8_0). Formats must be ``q4_0``, ``q5_0``, ``q8_0``, ``mxfp4``, ``bf16`` or ``fp16``.

    Args:
        allocation: An allocation of bits for a Hugging Face model.
        path: The file, one ``pattern=type`` a line; patterns match one tensor each.
        architecture: Name of the architecture in GGUF, such as ``"llama"`` (also Mistral) or ``"qwen3"``.

    Returns:
        The type of each GGUF tensor.

    Raises:
        AllocationError: It is not of bits, GGUF has no such type, architecture or tensor, or a block of the type does
            not divide the columns of a layer (llama-quantize would take another type).
        AnalysisError: The file cannot be written.
        MissingExtraError: The package gguf, which has the names, is not installed.

    Example:
        >>> import pathlib, tempfile
        >>> from tempbalance.compress import LayerAllocation
        >>> layer = LayerAllocation(name="model.layers.1.mlp.down_proj", unit="", shape=(256, 512), bits=4)
        >>> head = {"source": "model", "quantity": "bits", "budget": 4, "method": "by hand", "unit": "layer"}
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "types.txt"
        >>> export_llama_quantize(Allocation(**head, layers=(layer,)), path)
        {'blk.1.ffn_down.weight': 'q4_K'}
        >>> print(path.read_text(), end="")
        ^blk\.1\.ffn_down\.weight$=q4_K
    """
    allocation.check_quantity("bits")
    check_type("architecture", architecture, str)
    with require_extra("gguf", "the names of GGUF need the package gguf"):
        import gguf
    found = next((number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture), None)
    if found is None:
        raise AllocationError(f"GGUF has no architecture {architecture!r}: use one of gguf.MODEL_ARCH_NAMES")
    blocks = 1 + max((int(number) for name in allocation for number in re.findall(r"\.(\d{1,4})\.", name)), default=0)
    names, types = gguf.get_tensor_name_map(found, blocks), {}
    for layer in allocation.layers:
        name = names.get_name(layer.name)
        if name is None:
            raise AllocationError(
                f"{layer.name} is not a tensor of {architecture} in GGUF (experts, for example, are stacked there): "
                "choose its architecture, or exclude it from the analysis"
            )
        kind, block = _TYPES.get(layer.format or layer.bits, ("", 1))
        if not kind or layer.shape[-1] % block:
            wanted = layer.format or f"{layer.bits:g} bits"
            reason = f"its {layer.shape[-1]} columns are no multiple of {block}" if kind else "GGUF has no such type"
            reason += ": allocate with formats of GGUF (--formats q4_0,q5_0,q8_0), whose blocks are 32 columns"
            raise AllocationError(f"{layer.name} cannot have {wanted} in llama-quantize: {reason}")
        types[f"{name}.weight"] = kind
    lines = [f"^{re.escape(name)}$={kind}\n" for name, kind in types.items()]
    write_atomically(path, "".join(lines).encode())
    return types
