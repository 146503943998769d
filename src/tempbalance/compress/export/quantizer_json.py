"""Bits as the JSON that GPTQModel, AutoRound and torchao read."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Any

from tempbalance._files import write_atomically
from tempbalance.compress.allocation import Allocation
from tempbalance.compress.formats import WeightFormat, format_advice, format_of
from tempbalance.errors import AllocationError

__all__ = ["export_autoround", "export_gptqmodel", "export_torchao"]

_FLOATS = ("bf16", "fp16")  # stay as they are
_Path = str | os.PathLike[str]


def export_gptqmodel(allocation: Allocation, path: _Path, *, group_size: int | None = 128) -> None:
    """Write an allocation of bits as the arguments of GPTQModel's ``QuantizeConfig``, with its ``dynamic``.

    Apply it with ``QuantizeConfig(**json.load(open(path)))``. Modules that are not in the allocation, and those of 16
    bits, are not quantized.

    Args:
        allocation: An allocation of bits: plain widths of 2 to 8 or 16, or integer formats, ``bf16`` and ``fp16``.
        path: The file, usually ``.json``.
        group_size: Columns that share a scale with plain widths; None for all columns of a row.

    Raises:
        AllocationError: It is not of bits, or GPTQModel has no such format or module.
        AnalysisError: The file cannot be written.
    """
    found = _formats(allocation, "GPTQModel", group_size)
    integers = {name: one for name, one in found.items() if one.name not in _FLOATS}
    _check_known("GPTQModel", {name: one for name, one in integers.items() if not one.name.startswith("int")})
    if not integers:
        raise AllocationError("no layer is quantized: every format is bf16 or fp16")
    listed = "|".join(re.escape(name) for name in integers)
    _write(
        path,
        {
            "bits": max(one.bits for one in integers.values()),
            "group_size": -1 if group_size is None else group_size,
            "dynamic": {f"-:^(?!(?:{listed})$)": {}}  # the first pattern that matches counts
            | {f"+:^{re.escape(name)}$": _group(one) for name, one in integers.items()},
        },
    )


def export_autoround(allocation: Allocation, path: _Path, *, group_size: int | None = 128) -> None:
    """Write an allocation of bits as the ``layer_config`` of AutoRound.

    Apply it with ``AutoRound(model, scheme="W4A16", layer_config=json.load(open(path)))``; the scheme is for the other
    layers. Activations are not quantized.

    Args:
        allocation: An allocation of bits: plain widths of 2 to 8 or 16, integer formats, ``mxfp4``, ``mxfp8``,
            ``nvfp4``, ``bf16`` or ``fp16``.
        path: The file, usually ``.json``.
        group_size: Columns that share a scale with plain widths; None for all columns of a row.

    Raises:
        AllocationError: It is not of bits, or AutoRound has no such format or module.
        AnalysisError: The file cannot be written.
    """
    kinds = {"mxfp4": "mx_fp", "mxfp8": "mx_fp", "nvfp4": "nv_fp", **dict.fromkeys(_FLOATS, "float")}
    found = _formats(allocation, "AutoRound", group_size)
    _check_known("AutoRound", {name: one for name, one in found.items() if not one.name.startswith(("int", *kinds))})
    _write(
        path,
        {
            name: {**_group(one), "sym": True, "data_type": kinds.get(one.name, "int"), "act_bits": 16}
            for name, one in found.items()
        },
    )


def export_torchao(allocation: Allocation, path: _Path, *, group_size: int | None = 128) -> None:
    """Write an allocation of bits as a configuration of torchao, ``FqnToConfig``.

    Apply it with ``quantize_(model, torchao.core.config.config_from_dict(json.load(open(path))), filter_fn=None)``, or
    pass that configuration to ``TorchAoConfig`` of Transformers. Modules that are not in the allocation stay as they
    are. Integers become ``IntxWeightOnlyConfig``, ``fp8`` is ``Float8WeightOnlyConfig`` and ``nvfp4`` torchao's
    prototype ``NVFP4WeightOnlyConfig``.

    Args:
        allocation: An allocation of bits: plain widths of 2 to 8 or 16, integer formats, ``fp8``, ``nvfp4``, ``bf16``
            or ``fp16``.
        path: The file, usually ``.json``.
        group_size: Columns that share a scale with plain widths; None for all columns of a row.

    Raises:
        AllocationError: It is not of bits, or torchao has no such format or module.
        AnalysisError: The file cannot be written.
    """
    found = _formats(allocation, "torchao", group_size)
    configs = {name: _torchao(one) for name, one in found.items()}
    _check_known("torchao", {name: found[name] for name, config in configs.items() if config == {}})
    _write(path, _typed("FqnToConfig", 1, fqn_to_config=configs))


def _torchao(one: WeightFormat) -> dict[str, Any] | None:
    """Return the configuration of a format; empty if there is none."""
    if one.name.startswith("int"):
        group = _typed("PerGroup", 1, group_size=one.block) if one.block else _typed("PerAxis", 1, axis=0)
        return _typed(
            "IntxWeightOnlyConfig",
            2,
            weight_dtype={"_type": "torch.dtype", "_data": f"int{one.bits}"},
            granularity=group,
        )
    others = {"fp8": _typed("Float8WeightOnlyConfig", 2), "nvfp4": _typed("NVFP4WeightOnlyConfig", 1)}
    return None if one.name in _FLOATS else others.get(one.name, {})


def _typed(kind: str, version: int, **data: Any) -> dict[str, Any]:
    return {"_type": kind, "_version": version, "_data": data}


def _formats(allocation: Allocation, tool: str, group_size: int | None) -> dict[str, WeightFormat]:
    """Return the format of each module, if all are modules and the formats fit."""
    allocation.check_quantity("bits")
    found = {layer.name: format_of(layer, group_size) for layer in allocation.layers}
    for layer in allocation.layers:
        if ":" in layer.name:
            raise AllocationError(f"{layer.name} is not a module, which {tool} needs: exclude it from the analysis")
        if not found[layer.name].fits(layer.shape):
            raise AllocationError(
                f"{layer.name} has {layer.shape[-1]} columns, not a multiple of {found[layer.name].block}: "
                f"{format_advice(allocation.layers)}"
            )
    return found


def _check_known(tool: str, unknown: Mapping[str, WeightFormat]) -> None:
    for name, one in unknown.items():
        raise AllocationError(f"{tool} cannot quantize weights to {one.name}: {name}")


def _group(one: WeightFormat) -> dict[str, int]:
    return {"bits": one.bits, "group_size": one.block or -1}


def _write(path: _Path, data: Mapping[str, Any]) -> None:
    write_atomically(path, json.dumps(data, indent=1).encode() + b"\n")
