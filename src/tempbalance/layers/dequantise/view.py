"""A state dict or checkpoint whose quantised weights are read as float32, one at a time."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tempbalance.layers.dequantise.bitsandbytes import decode_4bit, decode_8bit
from tempbalance.layers.dequantise.grouped import decode_hqq, decode_quanto, decode_torchao
from tempbalance.layers.dequantise.integers import decode_awq_or_gptq, decode_compressed, decode_gptq, decode_mlx
from tempbalance.layers.dequantise.module import Decoder, Module, QuantisedWeight, UnreadableError
from tempbalance.layers.dequantise.with_scales import decode_mxfp4, decode_with_scale
from tempbalance.layers.fused import Index
from tempbalance.layers.names import TensorInfo, TensorStore, join_name, stored_modules
from tempbalance.layers.reasons import BELONGS, failure_reason, find_quantised, format_label, is_broken

__all__ = ["DECODERS", "dequantised"]

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

_SCALED = ("fp8", "fbgemm_fp8", "compressed-tensors", "modelopt")  # methods whose FP8 weights always have scales
_NO_SCALES = "fp8 without its scales, although config.json says that it has them: download the checkpoint again"


def dequantised(store: TensorStore) -> TensorStore:
    """Return a store in which quantised weights have the names and shapes of the weights that they stand for.

    It is the store itself if it has no quantised weight. A weight that does not have the layout of its format keeps its
    stored name, with the reason.

    Example:
        >>> from tempbalance.layers.names import StateDict
        >>> tensors = {"weight": torch.ones(2, 4).to(torch.float8_e4m3fn), "weight_scale": torch.tensor([[2.0], [3.0]])}
        >>> store = dequantised(StateDict(tensors))
        >>> store.load("weight").tolist()
        [[2.0, 2.0, 2.0, 2.0], [3.0, 3.0, 3.0, 3.0]]
        >>> store.tensors["weight"].quantisation
        'float8_e4m3fn with scales, 8 bits'
    """
    view = _Dequantised(store)
    return view if view.changed else store


class _Dequantised:
    """The view of a store."""

    def __init__(self, store: TensorStore) -> None:
        self._store = store
        self.config: Mapping[str, Any] | None = store.config
        self.adapter_config: Mapping[str, Any] | None = store.adapter_config
        self.shards: Mapping[Any, Any] = getattr(store, "shards", {})
        self._weights: dict[str, tuple[Module, QuantisedWeight]] = {}
        infos: dict[str, tuple[str, TensorInfo] | None] = {}
        settings = _settings(store.config or {})
        for path, tensors in stored_modules(store).items():
            formats, auxiliary = find_quantised({name: info.dtype for name, info in tensors.items()})
            known = {name: label for name, label in formats.items() if label in DECODERS}
            if known:
                read = functools.partial(_read, store, path)
                module = Module(path=path, tensors=tensors, read_at=read, settings=settings)
                infos.update(self._describe(module, known, [] if known.keys() < formats.keys() else auxiliary))
            for name in _without_scales(tensors, formats, settings):
                full = join_name(path, name)
                infos[full] = full, _unread(tensors[name], _NO_SCALES)
        self.changed = bool(infos)
        entries = [infos.get(name, (name, info)) for name, info in store.tensors.items()]
        self.tensors: Mapping[str, TensorInfo] = dict(entry for entry in entries if entry is not None)

    def _describe(
        self, module: Module, formats: Mapping[str, str], auxiliary: list[str]
    ) -> dict[str, tuple[str, TensorInfo] | None]:
        """Return what stands for the stored tensors of a module: the name and description of a weight, or nothing."""
        parts: dict[str, tuple[str, TensorInfo] | None] = {}
        found: dict[str, tuple[str, TensorInfo] | None] = {}
        failed = False
        for stored, label in formats.items():
            info = module.tensors[stored]
            try:
                weight = DECODERS[label](module, stored)
                unreadable = [name for name in weight.parts if is_broken(module.tensors[name].reason or "")]
                if unreadable:
                    raise UnreadableError(f"{unreadable[0]}: {module.tensors[unreadable[0]].reason}")
                if weight.name in module.tensors and weight.name not in weight.parts:
                    raise UnreadableError(f"{weight.name} is stored without quantisation, too: keep one of them")
            except Exception as error:  # whatever values of a damaged file make it raise
                failed = True
                why = error if isinstance(error, UnreadableError) else failure_reason(error)
                reason = f"{format_label(label, info.dtype)}: {why}"
                found[join_name(module.path, stored)] = join_name(module.path, stored), _unread(info, reason)
                continue
            name = join_name(module.path, weight.name)
            self._weights[name] = module, weight
            parts.update(dict.fromkeys(join_name(module.path, part) for part in weight.parts))
            identity = None if info.identity is None else (info.identity, weight.quantisation)
            described = TensorInfo(weight.shape, torch.float32, identity, None, weight.quantisation)
            found[join_name(module.path, stored)] = name, described
        for name in auxiliary:
            full = join_name(module.path, name)
            parts.setdefault(full, (full, _unread(module.tensors[name], BELONGS)) if failed else None)
        return parts | found

    def load(self, name: str, index: Index = ()) -> Tensor:
        """Read a tensor, or the part of it at an index; a quantised weight as float32."""
        if name not in self._weights:
            return self._store.load(name, index)
        module, weight = self._weights[name]
        if not (weight.stacked and index):
            tensor = weight.decode(module.read)
            return tensor[index] if index else tensor
        first, rest = index[0], index[1:]
        if isinstance(first, int):
            return _one(module, weight, first)[rest]
        chosen = [_one(module, weight, place)[rest] for place in range(weight.shape[0])[first]]
        return torch.stack(chosen) if chosen else torch.empty(0, *weight.shape[1:])


def _one(module: Module, weight: QuantisedWeight, place: int) -> Tensor:
    """Return one matrix of a stack."""

    def read(part: str) -> Tensor:
        tensor_has_it = module.tensors[part].shape[:1] == weight.shape[:1]
        return module.read_at(part, (place,)) if tensor_has_it else module.read(part)

    return weight.decode(read)


def _read(store: TensorStore, path: str, name: str, index: Index) -> Tensor:
    return store.load(join_name(path, name), index)


def _unread(info: TensorInfo, reason: str) -> TensorInfo:
    """Return the description of a tensor that is skipped for a reason, whatever its dtype."""
    return info._replace(dtype=torch.float32, reason=reason)


def _without_scales(
    tensors: Mapping[str, TensorInfo], formats: Mapping[str, str], settings: Mapping[str, Any]
) -> list[str]:
    """Return the FP8 weights of a module that have no scales, although the configuration says how they are scaled."""
    if formats or str(settings.get("quant_method")) not in _SCALED:
        return []
    return [
        name for name, info in tensors.items() if len(info.shape) > 1 and str(info.dtype).startswith("torch.float8_e")
    ]


def _settings(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the settings of quantisation in a configuration."""
    for key in ("quantization_config", "quantization", "compression_config"):
        if isinstance(config.get(key), Mapping):
            settings: Mapping[str, Any] = config[key]
            return settings
    return {}
