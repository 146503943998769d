"""Sparsities or bits as a recipe for llm-compressor."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from typing import Any, Literal

from tempbalance._files import write_atomically
from tempbalance.compress.allocation import Allocation
from tempbalance.compress.formats import WeightFormat, format_advice, format_of
from tempbalance.compress.pruning.sparsegpt import sparsity_for_modifier
from tempbalance.errors import AllocationError

__all__ = ["Modifier", "export_llmcompressor"]

Modifier = Literal["SparseGPTModifier", "WandaPruningModifier", "GPTQModifier", "QuantizationModifier"]

_MODIFIERS: dict[str, tuple[Modifier, ...]] = {  # the default first
    "sparsity": ("SparseGPTModifier", "WandaPruningModifier"),
    "bits": ("GPTQModifier", "QuantizationModifier"),
}
_MIN_BITS, _MAX_BITS = 2, 8  # of the integers that compressed-tensors packs
_EXPERT = re.compile(r"(?P<stack>.+)\.(?P<name>\w+):(?P<index>\d+)(:(?P<part>gate|up))?")


def export_llmcompressor(
    allocation: Allocation, path: str | os.PathLike[str], modifier: Modifier | None = None, *, group_size: int = 128
) -> None:
    """Write a recipe for llm-compressor, which prunes or quantizes each module as allocated.

    Sparsity: one modifier per weight, because a list of sparsities would be applied in model order, not by name. Run it
    with ``oneshot(model, recipe=path, dataset=..., pipeline="sequential")``; the default pipeline would calibrate once
    per modifier. ``WandaPruningModifier`` rounds the zeros of each row down. ``SparseGPTModifier`` rounds up in each
    block of 128 columns, so the recipe sets a slightly lower sparsity, and the result is at most one zero per 128
    columns below the allocation. Weights without zeros are left out, and so are exact counts, alphas and
    settings. llm-compressor skips the ``Conv1D`` layers of GPT-2 without a message.

    Bits: one group of modules per width or format; only weights are quantized. Plain widths are symmetric integers with
    one scale per group of columns. Formats are integers, ``fp8``, ``mxfp4``, ``mxfp8`` and ``nvfp4``; modules of
    ``bf16`` or ``fp16`` are left out. llm-compressor may round a power of two of ``mxfp4`` and ``mxfp8`` up, and wants
    ``nvfp4`` for all of q, k and v, or gate and up, or none: use ``unit="block"``. Stacked experts get the names that
    they have after ``load_quantizable_moe``.

    Args:
        allocation: An allocation of sparsity, or of bits with widths from 2 to 8 or with formats.
        path: The file, usually ``recipe.yaml``.
        modifier: For sparsity ``"SparseGPTModifier"`` (default) or ``"WandaPruningModifier"``; for bits
            ``"GPTQModifier"`` (default; needs calibration data) or ``"QuantizationModifier"`` (rounds to nearest).
        group_size: For plain widths: number of columns that share a scale; it must divide the columns of every module.

    Raises:
        AllocationError: The modifier does not apply to this quantity, or not to one of the modules or values.
        AnalysisError: The file cannot be written.

    Example:
        >>> import tempfile, pathlib
        >>> from tempbalance.compress import LayerAllocation
        >>> layer = LayerAllocation(name="h.0.fc.weight", unit="h.0", shape=(4, 5), zeros=7)
        >>> allocation = Allocation(source="model", budget=0.35, method="uniform", unit="block", layers=(layer,))
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "recipe.yaml"
        >>> export_llmcompressor(allocation, path, "WandaPruningModifier")
        >>> print(path.read_text(), end="")
        pruning_stage:
          layer0_modifiers:
            WandaPruningModifier:
              sparsity: 0.35
              targets: ["h.0.fc"]
    """
    modifiers = _MODIFIERS.get(allocation.quantity)
    if modifiers is None:
        raise AllocationError(f"llm-compressor cannot apply an allocation of {allocation.quantity}")
    chosen = modifiers[0] if modifier is None else modifier
    if chosen not in modifiers:
        raise AllocationError(
            f"modifier must be one of {', '.join(modifiers)} for an allocation of {allocation.quantity}, got {chosen!r}"
        )
    if allocation.quantity == "sparsity":
        allocation.check_whole_weights("a recipe for llm-compressor")
        text = "\n".join(["pruning_stage:", *_pruning_lines(allocation, chosen)])
    else:
        text = json.dumps(_quantization(allocation, chosen, group_size), indent=1)  # JSON is YAML
    write_atomically(path, f"{text}\n".encode())


def _pruning_lines(allocation: Allocation, modifier: Modifier) -> Iterator[str]:
    for place, layer in enumerate(allocation.layers):
        exact = modifier == "WandaPruningModifier"
        sparsity = layer.sparsity if exact else sparsity_for_modifier(layer.zeros, layer.shape)
        if layer.zeros == 0 or sparsity < 0:
            continue
        yield f"  layer{place}_modifiers:"
        yield f"    {modifier}:"
        yield f"      sparsity: {sparsity}"
        if allocation.group is not None:
            yield f'      mask_structure: "{layer.zeros * allocation.group // layer.numel}:{allocation.group}"'
        yield f"      targets: {json.dumps([layer.name.removesuffix('.weight')], ensure_ascii=False)}"


def _quantization(allocation: Allocation, modifier: Modifier, group_size: int) -> dict[str, Any]:
    widths = sorted({layer.bits for layer in allocation.layers if not layer.format})
    if widths and (widths[0] < _MIN_BITS or widths[-1] > _MAX_BITS):
        raise AllocationError(f"llm-compressor stores integers of {_MIN_BITS} to {_MAX_BITS} bits, got widths {widths}")
    groups: dict[str, dict[str, Any]] = {}
    for layer in allocation.layers:
        if layer.format in {"bf16", "fp16"}:
            continue
        one = format_of(layer, group_size)
        if not one.fits(layer.shape):
            raise AllocationError(
                f"{layer.name} has {layer.shape[1]} columns, not a multiple of "
                + (f"the block {one.block} of {one.name}" if layer.format else f"group_size={group_size}")
                + f": {format_advice(allocation.layers)}"
            )
        key = f"weights_{layer.format or f'{layer.bits}_bits'}"
        group = groups.setdefault(key, {"targets": [], "weights": _scheme(one, layer.name)})
        group["targets"].append(_module_name(layer.name))
    if not groups:
        raise AllocationError("no layer is quantized: every format is bf16 or fp16")
    ordered = dict(sorted(groups.items(), key=lambda item: int(item[1]["weights"]["num_bits"])))
    return {"quantization_stage": {"quantization_modifiers": {modifier: {"config_groups": ordered}}}}


def _scheme(one: WeightFormat, name: str) -> dict[str, Any]:
    """Return the arguments of a format, as in the presets of compressed-tensors."""
    if one.name.startswith("int"):
        group = {"strategy": "group", "group_size": one.block} if one.block else {"strategy": "channel"}
        return {"num_bits": one.bits, "type": "int", "symmetric": True, **group}
    floats: dict[str, dict[str, Any]] = {
        "fp8": {"strategy": "channel"},
        "mxfp4": {"strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8", "zp_dtype": "torch.uint8"},
        "nvfp4": {
            "strategy": "tensor_group",
            "group_size": 16,
            "scale_dtype": "torch.float8_e4m3fn",
            "zp_dtype": "torch.float8_e4m3fn",
        },
    }
    floats["mxfp8"] = floats["mxfp4"]
    if one.name not in floats:
        raise AllocationError(f"llm-compressor cannot quantize weights to {one.name}: {name}")
    return {"num_bits": one.bits, "type": "float", "symmetric": True, **floats[one.name]}


def _module_name(name: str) -> str:
    """Return the name of a module after llm-compressor has loaded the model."""
    if ":" not in name:
        return name
    match = _EXPERT.fullmatch(name)
    projection = match and (f"{match['part']}_proj" if match["part"] else match["name"])
    if match is None or projection not in {"gate_proj", "up_proj", "down_proj"}:
        raise AllocationError(f"{name} is not a separate module in llm-compressor: exclude it from the analysis")
    return f"{match['stack']}.{match['index']}.{projection}"
