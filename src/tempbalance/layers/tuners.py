"""Layers of PEFT in a live model: each is measured as the weight that it applies (PEFT is not imported).

One rule serves every method: the layer is copied, PEFT merges the copy, and the weight of its base layer is read. The
update is this weight minus the base weight, in float64. The layer itself is not changed, and its factors are not rows:
their spectra do not describe it.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tempbalance.errors import WeightError
from tempbalance.layers.effective import make_plain
from tempbalance.layers.fused import Index
from tempbalance.layers.weights import Candidate

__all__ = [
    "OF_ADAPTER",
    "Fetch",
    "base_of",
    "is_adapter_part",
    "is_auxiliary",
    "is_tuner",
    "module_in_use",
    "tuner_candidates",
]

Fetch = Callable[[Tensor, Index], Tensor]  # reads a tensor of a layer of PEFT, or the part of it at an index
OF_ADAPTER = "belongs to the adapter, which is measured in the layers that it changes"
_UNMERGED = "analyse the model without the adapter (unload), or merge it yourself"


def is_tuner(module: nn.Module) -> bool:
    """Return whether a module is a layer of PEFT around a base layer."""
    return _is_a(module, "BaseTunerLayer") and hasattr(module, "base_layer")


def _is_a(module: nn.Module, name: str) -> bool:
    return any(cls.__name__ == name for cls in type(module).__mro__)


def base_of(module: nn.Module) -> nn.Module:
    """Return the module inside all layers of PEFT around it."""
    while is_tuner(module):
        module = module.get_submodule("base_layer")
    return module


def is_auxiliary(module: nn.Module) -> bool:
    """Return whether a module has copies that PEFT trains in full (``modules_to_save``), or trainable tokens."""
    return _is_a(module, "AuxiliaryTrainingWrapper") or _is_a(module, "ModulesToSaveWrapper")  # the latter before 0.15


def is_adapter_part(module: nn.Module, child: str) -> bool:
    """Return whether a child of PEFT's model is not the model itself: a vector bank, projections."""
    inner = module._modules.get(child)
    return _is_a(module, "BaseTuner") and child != "model" and inner is not None and not _is_a(inner, "BaseTuner")


def module_in_use(module: Any) -> tuple[str, list[str]]:
    """Return the child of an auxiliary module that is in use, and the others."""
    if "token_adapter" in module._modules:
        return "token_adapter", []
    paths = ["original_module", *(f"modules_to_save.{name}" for name in module.modules_to_save)]
    active = [] if module.disable_adapters else [f"modules_to_save.{name}" for name in module.active_adapters]
    used = next((path for path in active if path in paths), "original_module")
    return used, [path for path in paths if path != used]


def tuner_candidates(
    layer: Any, base: list[Candidate], name: str, mode: str, fetch: Fetch, reason: str | None
) -> Iterator[Candidate]:
    """Yield the candidates of the outermost layer of PEFT; those that PEFT changes are read from a merged copy.

    ``base`` are the candidates of its base layer, under their names without PEFT. ``mode`` is ``"merged"`` or
    ``"update"``. ``reason`` is why the tensors of the adapter cannot be read, or None.
    """
    tuners = _chain(layer)
    local = {candidate.name: candidate.name.removeprefix(f"{name}.") for candidate in base}
    inside = [name for name in local.values() if "." not in name or _is_nested(base_of(layer), name)]
    targets = {target for tuner in tuners if _adapters(tuner) for target in _targets(tuner, inside)}
    merged = any(tuner.merged for tuner in tuners)
    disabled = any(tuner.disable_adapters for tuner in tuners)
    reason = next((found for tuner in tuners if (found := _unmergeable(tuner))), reason)
    as_it_is = disabled if mode == "update" else merged != disabled  # a disabled layer unmerges before it is applied
    for candidate in base:
        attribute = local[candidate.name]
        if as_it_is or attribute not in targets or candidate.role.reason:
            yield candidate
            continue
        kind = "lora" if mode == "update" else candidate.role.kind
        read = functools.partial(_read, layer, attribute, mode, fetch)
        role = replace(candidate.role, kind=kind, reason=reason)
        yield replace(candidate, role=role, dtype=None, read=read, identity=(id(layer), attribute, mode))


def _chain(layer: Any) -> list[Any]:
    """Return the layers of PEFT around one base layer, the innermost first."""
    chain: list[Any] = []
    while is_tuner(layer):
        chain.insert(0, layer)
        layer = layer.base_layer
    return chain


def _adapters(tuner: Any) -> list[str]:
    """Return the active adapters that a layer has, or those that are merged into it."""
    known: set[str] = set()
    for attribute in (*tuner.adapter_layer_names, *tuner.other_param_names):
        known.update(getattr(getattr(tuner, attribute, None), "keys", tuple)())
    return list(tuner.merged_adapters) or [name for name in tuner.active_adapters if name in known]


def _targets(tuner: Any, names: Iterable[str]) -> set[str]:
    """Return the attributes of the base layer that a layer of PEFT changes."""
    name = getattr(tuner, "parameter_name", None)
    return {name} if isinstance(name, str) else set(names)


def _is_nested(module: nn.Module, path: str) -> bool:
    """Return whether a weight is in a layer of PEFT inside another one (``out_proj`` of ``nn.MultiheadAttention``)."""
    for child in path.split(".")[:-1]:
        module = module.get_submodule(child)
        if is_tuner(module):
            return True
    return False


def _weight(module: nn.Module, path: str) -> Tensor:
    """Return a weight of a base layer by its name without PEFT."""
    *children, attribute = path.split(".")
    for child in children:
        module = base_of(module.get_submodule(child))
    found: Tensor = getattr(module, attribute)
    return found.detach()


def _unmergeable(tuner: Any) -> str | None:
    """Return why the update of a layer is not a matrix, or None."""
    method = f"{type(tuner).__module__.split('.')[-2]} ({type(tuner).__name__})"
    owner = next(cls for cls in type(tuner).__mro__ if "merge" in vars(cls))
    if owner.__name__ == "BaseTunerLayer":
        return f"adapter {method} cannot be merged, it depends on the input: {_UNMERGED}"
    forward = vars(tuner).get("forward")
    if getattr(forward, "__self__", tuner) is not tuner:  # X-LoRA scales the adapters token by token
        return (
            f"adapter {method} is applied by {type(forward.__self__).__name__}, which depends on the input: {_UNMERGED}"
        )
    return None


def _read(layer: Any, attribute: str, mode: str, fetch: Fetch, index: Index) -> Tensor:
    """Read the weight that a layer applies, or its update."""
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = _read_expert(layer, attribute, mode, fetch, index)
            return _read_merged(layer, attribute, mode, fetch, index) if found is None else found
    except Exception as error:  # whatever a method of PEFT raises
        raise WeightError(f"PEFT cannot merge this layer ({error}): {_UNMERGED}") from error


def _read_merged(layer: Any, attribute: str, mode: str, fetch: Fetch, index: Index) -> Tensor:
    merged = _copy(layer, mode, fetch)
    tuners = _chain(merged)

    def weight() -> Tensor:
        """Return the weight of the copy now."""
        found = _weight(base_of(merged), attribute)
        return found[index] if index else found

    if any(tuner.merged for tuner in tuners):
        applied = weight().clone()
        for tuner in reversed(tuners):
            if tuner.merged:
                tuner.unmerge()
        return applied - weight() if mode == "update" else weight()
    bare = weight().clone() if mode == "update" else None
    for tuner in tuners:
        if not tuner.merged and not tuner.disable_adapters and (adapters := _adapters(tuner)):
            tuner.merge(adapter_names=adapters)
    return weight() if bare is None else weight() - bare


def _read_expert(layer: Any, attribute: str, mode: str, fetch: Fetch, index: Index) -> Tensor | None:
    """Read one expert of a stack without merging all of them; None if this is not possible."""
    tuners = [tuner for tuner in _chain(layer) if getattr(tuner, "parameter_name", None) == attribute]
    if not index or not isinstance(index[0], int) or len(tuners) != 1 or tuners[0].merged:
        return None
    if not hasattr(tuners[0], "get_delta_factors") or tuners[0].num_experts == 1:
        return None
    whole = {id(parameter) for parameter in base_of(layer).parameters()}
    factors = _copy(tuners[0], mode, lambda t, part: t.new_empty(0) if id(t) in whole else fetch(t, part))
    found = [factors.get_delta_factors(adapter) for adapter in _adapters(factors)]
    update: Tensor = sum(scale * left[index[0]] @ right[index[0]] for left, right, scale in found)[index[1:]]
    return update if mode == "update" else fetch(getattr(base_of(layer), attribute), index) + update


def _copy(layer: Any, mode: str, fetch: Fetch) -> Any:
    """Return a copy of a layer in evaluation mode, with all its data in one dtype and without parametrizations."""
    homes = [home for m in layer.modules() for home in (m._parameters, m._buffers, vars(m))]
    tensors = [tensor for home in homes for tensor in home.values() if isinstance(tensor, Tensor)]
    dtype = _work_dtype(tensors, mode)
    copied = copy.deepcopy(layer, {id(t): _converted(t, fetch(t, ()).detach(), dtype) for t in tensors}).eval()
    for module in copied.modules():
        make_plain(module)
    return copied


def _work_dtype(tensors: list[Tensor], mode: str) -> torch.dtype:
    """Return the widest dtype of the tensors, in which PEFT would merge them; for an update, float64."""
    floating = [t.dtype for t in tensors if t.is_floating_point() and t.itemsize > 1]  # not float8
    if mode == "update":
        return torch.float32 if any(t.device.type == "mps" for t in tensors) else torch.float64
    return functools.reduce(torch.promote_types, floating) if floating else torch.float32


def _converted(tensor: Tensor, data: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a copy of the data of a tensor in another dtype; integers keep theirs."""
    if data.is_complex():
        dtype = torch.promote_types(data.dtype, dtype)
    elif not data.is_floating_point():
        dtype = data.dtype
    data = data.to(dtype, copy=True)
    return nn.Parameter(data, requires_grad=False) if isinstance(tensor, nn.Parameter) else data
