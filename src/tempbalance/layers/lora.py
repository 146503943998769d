"""LoRA layers of a live model, recognised by their attributes (PEFT is not imported).

``merged`` is ``W + sum (alpha / r) B A`` over the active adapters, ``update`` the sum alone. The factors ``A`` and
``B`` are not rows: their spectra do not describe the layer.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tempbalance.errors import WeightError
from tempbalance.layers.fused import Index, Reader
from tempbalance.layers.sharded import full_tensor
from tempbalance.layers.weights import Candidate

__all__ = ["adapted_copies", "is_lora", "is_trained_copy", "lora_attribute", "lora_candidates"]

_VARIANT = "LoRA variant ({}) other than W + (alpha/r) BA: merge it (merge_and_unload) and analyse the result"


def is_lora(module: nn.Module) -> bool:
    """Return whether a module is a LoRA layer around a base layer."""
    return all(hasattr(module, name) for name in ("base_layer", "lora_A", "lora_B", "scaling"))


def is_trained_copy(module: nn.Module) -> bool:
    """Return whether a module has copies that PEFT trains in full (``modules_to_save``) and the original."""
    return hasattr(module, "original_module") and isinstance(getattr(module, "modules_to_save", None), nn.ModuleDict)


def adapted_copies(module: Any) -> tuple[str, list[str]]:
    """Return the child of a ``modules_to_save`` wrapper that is in use, and the others."""
    paths = ["original_module", *(f"modules_to_save.{name}" for name in module.modules_to_save)]
    active = [f"modules_to_save.{name}" for name in _active(module)]
    used = next((path for path in active if path in paths), "original_module")
    return used, [path for path in paths if path != used]


def lora_attribute(module: nn.Module) -> str:
    """Return the name of the parameter of the base layer that a LoRA layer adapts."""
    name = getattr(module, "parameter_name", "weight")
    return name if isinstance(name, str) else "weight"


def _active(module: Any) -> list[str]:
    if getattr(module, "disable_adapters", False):
        return []
    active = getattr(module, "active_adapters", [])
    return [active] if isinstance(active, str) else list(active)


def _variant(module: Any, adapters: Iterable[str]) -> str | None:
    """Return the name of a variant of LoRA that is not a plain product, if any."""
    if type(module).__name__ == "MultiheadAttention":
        return "nn.MultiheadAttention"
    for adapter in adapters:
        variant = getattr(module, "lora_variant", {}).get(adapter)
        if variant is not None:
            return type(variant).__name__
        if getattr(module, "use_dora", {}).get(adapter):
            return "DoRA"
    return None


def lora_candidates(module: Any, name: str, base: list[Candidate], mode: str) -> Iterator[Candidate]:
    """Yield the candidates of a LoRA layer."""
    has_factors = {*module.lora_A, *getattr(module, "lora_embedding_A", {})}
    adapters = [adapter for adapter in _active(module) if adapter in has_factors]
    variant = _variant(module, adapters)
    target = f"{name}.base_layer.{lora_attribute(module)}"
    for candidate in base:
        plain = replace(candidate, name=name + candidate.name.removeprefix(f"{name}.base_layer"))
        reason = _VARIANT.format(variant) if variant else None
        if candidate.name != target or not adapters or plain.role.reason:
            yield plain
        elif mode == "update":
            read: Reader = functools.partial(_read_update, module, tuple(adapters), candidate.shape)
            yield replace(plain, role=replace(plain.role, kind="lora", reason=reason), read=read, identity=None)
        elif getattr(module, "merged", False):
            yield plain
        else:
            read = functools.partial(_read_merged, module, tuple(adapters), candidate)
            yield replace(plain, role=replace(plain.role, reason=reason), read=read, identity=None)


def _read_update(module: Any, adapters: tuple[str, ...], shape: tuple[int, ...], index: Index) -> Tensor:
    with torch.no_grad():
        deltas = [full_tensor(module.get_delta_weight(adapter)).detach() for adapter in adapters]
    total = functools.reduce(torch.add, deltas)
    if tuple(total.shape) != shape:
        raise WeightError(f"the LoRA update has shape {tuple(total.shape)}, its base weight {shape}")
    return total[index] if index else total


def _read_merged(module: Any, adapters: tuple[str, ...], base: Candidate, index: Index) -> Tensor:
    update = _read_update(module, adapters, base.shape, index)
    weight = base.read(index).to(update.device)
    dtype = weight.dtype if weight.dtype == update.dtype else torch.float32
    dtype = torch.promote_types(dtype, update.dtype)
    return weight.to(dtype) + update.to(dtype)
