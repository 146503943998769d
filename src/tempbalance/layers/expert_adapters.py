"""LoRA on the stacked experts of a model (``target_parameters`` of PEFT), from the adapter alone."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tempbalance.layers.adapter_settings import by_pattern
from tempbalance.layers.factors import AdapterError, lora_scale
from tempbalance.layers.fused import Index
from tempbalance.layers.meta_model import build_on_meta
from tempbalance.layers.names import TensorStore
from tempbalance.layers.roles import experts_role
from tempbalance.layers.weights import Candidate, Role
from tempbalance.spectra.matrices import Layout

__all__ = ["expert_update"]

_BASE = ".base_layer"
_ORDER = ("gate_up_proj", "down_proj")  # PEFT wraps the parameters of a module in this order, the first one innermost
_MANY = 10**5  # tensors of a model of any size


def expert_update(
    store: TensorStore, layer: str, parts: Mapping[str, list[str]], settings: Mapping[str, Any]
) -> Candidate | None:
    """Return the update of a stack of experts, given the parts of a layer; None if the layer is no stack of experts.

    ``layer`` is the name with ``.base_layer`` for each parameter of its module that is wrapped further out; ``parts``
    is as in ``factor_groups``.

    Raises:
        AdapterError: Which parameter it belongs to is not known; the message is the reason.
    """
    module = layer.replace(_BASE, "")
    targets = [target.rpartition(".") for target in settings.get("target_parameters") or ()]
    names = {name for path, _, name in targets if f".{module}".endswith(f".{path}")}
    if not names or parts.keys() != {"lora_A", "lora_B"}:
        return None
    ordered = [name for name in _ORDER if name in names] if names <= {*_ORDER} else [*names] * (len(names) == 1)
    depth = layer.count(_BASE)
    if depth >= len(ordered):
        raise AdapterError(f"which of {', '.join(sorted(names))} it changes is not in the file")
    name = ordered[-1 - depth]
    a, b = (store.tensors[parts[part][0]].shape for part in ("lora_A", "lora_B"))
    rank = int(by_pattern(settings.get("rank_pattern"), f"{module}.{name}", settings.get("r") or 1))
    if rank < 1 or a[0] % rank or a[0] != b[1] or a[0] == rank:
        raise AdapterError(f"factors that do not fit: {a} and {b}, with rank {rank}")
    experts, scale = a[0] // rank, lora_scale(settings, f"{module}.{name}", rank)
    role, transposed = _role((experts, b[0], a[1]), module, name, settings)

    def read(index: Index) -> Tensor:
        down, up = (store.load(parts[part][0]).to(torch.float64) for part in ("lora_A", "lora_B"))
        down, up = down.view(experts, rank, -1), up.view(up.shape[0], rank, experts).permute(2, 0, 1)
        which = index[0] if index else slice(None)
        update = scale * up[which] @ down[which]
        update = update.mT if transposed else update
        return update[index[1:]] if isinstance(which, int) else update

    shape = (experts, a[1], b[0]) if transposed else (experts, b[0], a[1])
    return Candidate(name=f"{module}.{name}", role=role, shape=shape, dtype=None, read=read)


def _role(shape: tuple[int, ...], module: str, name: str, settings: Mapping[str, Any]) -> tuple[Role, bool]:
    """Return the role, and whether experts are stored ``(in, out)``; gate and up are split if the model is known."""
    owner = _module(module, settings)
    role, transposed = Role(kind="lora", layout=Layout.STACK), bool(getattr(owner, "is_transposed", False))
    if owner is None or name != _ORDER[0] or not getattr(owner, "has_gate", True):
        return role, transposed
    stored = (shape[0], shape[2], shape[1]) if transposed else shape
    interleaved = not getattr(owner, "is_concatenated", True)
    known = experts_role(stored, gate_up=True, transposed=transposed, interleaved=interleaved)
    return Role(kind="lora", layout=known.layout, fused=known.fused), transposed


def _module(path: str, settings: Mapping[str, Any]) -> nn.Module | None:
    """Return the module of a path in the model that the settings name, with its default sizes; None if unknown."""
    model = _default_model(str((settings.get("auto_mapping") or {}).get("base_model_class")))
    try:
        return None if model is None else model.get_submodule(path)
    except AttributeError:
        return None


@functools.lru_cache(maxsize=1)
def _default_model(name: str) -> nn.Module | None:
    """Return a model class of Transformers with its default sizes, without data; None if there is none."""
    try:
        import transformers

        kind = getattr(transformers, name).config_class.model_type
    except (ImportError, AttributeError):
        return None
    return build_on_meta({"model_type": kind, "architectures": [name]}, _MANY)
