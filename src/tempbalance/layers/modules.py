"""Walk a live module: every parameter with two axes or more becomes a candidate."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tempbalance.layers.blocks import block_namer
from tempbalance.layers.effective import Effective, effective_weights
from tempbalance.layers.fused import Index, Reader
from tempbalance.layers.names import StateDict, join_name, name_candidates
from tempbalance.layers.reasons import IN_MEMORY, failure_reason, hides_shape, quantised_reasons, tensor_reason
from tempbalance.layers.roles import Site, role_of
from tempbalance.layers.sharded import FullTensorCache, full_tensor
from tempbalance.layers.tuners import (
    OF_ADAPTER,
    Fetch,
    base_of,
    is_adapter_part,
    is_auxiliary,
    is_tuner,
    module_in_use,
    tuner_candidates,
)
from tempbalance.layers.vectors import drop_norms, vector_role
from tempbalance.layers.weights import Candidate, Role, storage_identity
from tempbalance.spectra.matrices import MATRIX_NDIM, Layout

__all__ = ["CONTAINERS", "module_candidates"]

CONTAINERS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Node:
    """A module and its position in the tree."""

    name: str
    module: nn.Module
    child: str
    owner: nn.Module | None
    meta: bool
    lora: str
    gather: FullTensorCache | None
    fetch: Fetch

    def unreadable(self, tensor: Tensor) -> str | None:
        """Return the reason why the values of a parameter cannot be read, or None."""
        return tensor_reason(tensor, meta=self.meta, sharded=self.gather is not None)

    def descend(self, child: str) -> _Node:
        """Return the node of a child module."""
        module = self.module.get_submodule(child)
        return replace(self, name=join_name(self.name, child), module=module, child=child, owner=self.module)

    def site(self, attribute: str, shape: tuple[int, ...], dtype: torch.dtype) -> Site:
        """Return the site of a parameter of this module."""
        return Site(
            name=join_name(self.name, attribute),
            attribute=attribute,
            shape=shape,
            dtype=dtype,
            module=self.module,
            child=self.child,
            owner=self.owner,
        )


def module_candidates(
    model: nn.Module, *, lora: str = "merged", meta: bool = False, sharded: bool = False, fetch: Fetch | None = None
) -> list[Candidate]:
    """List the weights of a live model, which is not changed.

    Args:
        model: Any module.
        lora: ``"merged"`` or ``"update"``: the matrix of a layer of PEFT.
        meta: Whether tensors on the meta device are allowed (their values are read from a checkpoint).
        sharded: Whether DTensors are allowed; reading one gathers it, which is a collective.
        fetch: Reads a tensor of a layer of PEFT, or a part of it; None for what the model has.

    Returns:
        One candidate per parameter with two axes or more, including tied names, in the order of the model.
    """
    root = _Node(
        name="",
        module=model,
        child="",
        owner=None,
        meta=meta,
        lora=lora,
        gather=FullTensorCache() if sharded else None,
        fetch=fetch or _fetch,
    )
    found = drop_norms(list(_walk(root, ())))
    modules = dict(model.named_modules(remove_duplicate=False)) if found else {}
    block_of = block_namer([candidate.name for candidate in found], lambda path: _is_container(modules.get(path)))
    return [replace(candidate, block=block_of(candidate.name)) for candidate in found]


def _is_container(module: nn.Module | None) -> bool:
    scripted: Any = getattr(module, "original_name", None) if isinstance(module, torch.jit.ScriptModule) else None
    return isinstance(module, CONTAINERS) or scripted in {cls.__name__ for cls in CONTAINERS}


def _walk(node: _Node, ancestors: tuple[int, ...]) -> Iterator[Candidate]:
    """Yield the candidates of a module and its descendants."""
    module = node.module
    if id(module) in ancestors:
        return
    seen = (*ancestors, id(module))
    if isinstance(module, torch.jit.ScriptModule):
        state = {join_name(node.name, name): tensor for name, tensor in module.state_dict().items()}
        yield from name_candidates(StateDict(state))  # the classes of its layers are not known
        return
    if is_tuner(module):
        yield from _tuned(node, seen)
        return
    if is_auxiliary(module):
        yield from _trained_copy(node, seen)
        return
    if _is_factorised(module):
        yield from _factorised(node)
        return
    yield from _own(node)
    yield from _packed(node)
    for child, submodule in module._modules.items():  # not named_children(): it drops the second name of a shared one
        again = child == "_original_module" and "_forward_module" in module._modules  # Lightning registers both
        if child != "parametrizations" and submodule is not None and not again:
            found = _walk(node.descend(child), seen)
            yield from (_skip(c.name, c.shape, OF_ADAPTER) for c in found) if is_adapter_part(module, child) else found


def _tuned(node: _Node, seen: tuple[int, ...]) -> Iterator[Candidate]:
    """Yield the weights of a layer of PEFT under the names, and with the roles, that they have without PEFT."""
    base = base_of(node.module)
    inner = {id(parameter) for parameter in base.parameters()}
    own = [parameter for parameter in node.module.parameters() if id(parameter) not in inner]
    reason = next((reason for parameter in own if (reason := node.unreadable(parameter))), None)
    candidates = list(_walk(replace(node, module=base), seen))
    yield from tuner_candidates(node.module, candidates, node.name, node.lora, node.fetch, reason)


def _trained_copy(node: _Node, seen: tuple[int, ...]) -> Iterator[Candidate]:
    """Yield the copy in use under the name of the module; the others are skipped."""
    used, others = module_in_use(node.module)
    yield from _walk(replace(node.descend(used), name=node.name, child=node.child, owner=node.owner), seen)
    for path in others:
        for candidate in _walk(node.descend(path), seen):
            yield candidate.skipped(f"not in use: {used.partition('.')[0]} takes its place")


def _own(node: _Node) -> Iterator[Candidate]:
    """Yield the candidates of a module's own parameters."""
    effective = effective_weights(node.module)
    hidden = frozenset().union(*(e.hides for e in effective.values()))
    tensors = {**node.module._parameters, **node.module._buffers}
    quantised = quantised_reasons({name: _dtype(tensor) for name, tensor in tensors.items()}, IN_MEMORY)
    for attribute, computed in effective.items():
        yield _computed(node, attribute, computed)
    for attribute, parameter in node.module._parameters.items():
        if parameter is None or attribute in hidden:
            continue
        try:
            candidate = _parameter(node, attribute, parameter, quantised.get(attribute))
        except Exception as error:  # whatever a tensor or a module of the user raises
            candidate = _skip(join_name(node.name, attribute), (), failure_reason(error))
        if candidate is not None:
            yield candidate
    for attribute, buffer in node.module._buffers.items():  # only quantised layers keep weights in buffers
        reason = quantised.get(attribute)
        if buffer is not None and reason and not reason.startswith("belongs"):
            yield _skip(join_name(node.name, attribute), tuple(buffer.shape), reason)


def _dtype(tensor: Tensor | None) -> torch.dtype | None:
    try:
        return None if tensor is None else tensor.dtype
    except Exception:  # whatever a subclass of a tensor raises
        return None


def _skip(name: str, shape: tuple[int, ...], reason: str) -> Candidate:
    role = Role(kind="parameter", reason=reason)
    return Candidate(name=name, role=role, shape=shape, dtype=None, read=functools.partial(_unreadable, name))


def _unreadable(name: str, _: Index) -> Tensor:
    raise AssertionError(f"{name} is skipped and never read")


def _read_live(parameter: Tensor, gather: FullTensorCache | None, index: Index) -> Tensor:
    weight = gather(parameter) if gather is not None else parameter
    return weight.detach()[index] if index else weight.detach()


def _fetch(tensor: Tensor, index: Index) -> Tensor:
    whole = full_tensor(tensor).detach()
    return whole[index] if index else whole


def _read_computed(computed: Effective, index: Index) -> Tensor:
    weight = full_tensor(computed.compute())
    return weight[index] if index else weight


def _parameter(node: _Node, attribute: str, parameter: Tensor, quantised: str | None) -> Candidate | None:
    """Return the candidate of one parameter, or None if it is not a matrix."""
    name = join_name(node.name, attribute)
    reason = quantised or node.unreadable(parameter)
    if reason and hides_shape(reason):
        return None if attribute.startswith("bias") else _skip(name, (), reason)
    shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
    if len(shape) < MATRIX_NDIM:
        flattened = attribute == "weight" and isinstance(
            node.module, (nn.Linear, nn.Embedding, nn.modules.conv._ConvNd)
        )
        sharded = f"has shape {shape}, which is a shard: analyse the full state dict, or the saved checkpoint"
        if flattened or attribute != "weight" or len(shape) != 1 or quantised:
            return _skip(name, shape, sharded) if flattened and not quantised else None
        return replace(_skip(name, shape, ""), role=vector_role())
    role = role_of(node.site(attribute, shape, parameter.dtype))
    if role.kind == "spectral_conv" and getattr(node.module, "separable", False):
        reason = reason or SEPARABLE
    if reason:
        role = replace(role, reason=reason)
    return Candidate(
        name=name,
        role=role,
        shape=shape,
        dtype=parameter.dtype,
        read=functools.partial(_read_live, parameter, node.gather),
        identity=storage_identity(parameter),
    )


def _computed(node: _Node, attribute: str, computed: Effective) -> Candidate:
    """Return the candidate of a weight that is computed from other tensors."""
    name = join_name(node.name, attribute)
    site = node.site(attribute, computed.shape, torch.get_default_dtype())
    role = role_of(site)
    if computed.meta and not node.meta:
        role = replace(role, reason="no data (meta device): load the weights first, or analyse the checkpoint")
    read: Reader = functools.partial(_read_computed, computed)
    return Candidate(name=name, role=role, shape=computed.shape, dtype=None, read=read)


SEPARABLE = "separable spectral convolution: each mode scales every channel separately, so there is no matrix"


def _is_factorised(module: nn.Module) -> bool:
    """Return whether a module is a tensor of TensorLy-Torch, in which neuraloperator stores its spectral weights."""
    return any(cls.__name__ == "FactorizedTensor" for cls in type(module).__mro__)


def _factorised(node: _Node) -> Iterator[Candidate]:
    """Yield one candidate for a factorised tensor: the product of its factors."""
    module: Any = node.module
    dense = module._parameters.get("tensor")
    shape = tuple(int(size) for size in module.shape)
    role = Role(kind="spectral_conv" if len(shape) > MATRIX_NDIM else "linear")
    role = replace(role, layout=Layout.TAPS if len(shape) > MATRIX_NDIM else Layout.MATRIX)
    if getattr(node.owner, "separable", False):
        role = replace(role, reason=SEPARABLE)
    if dense is not None:
        reason = role.reason or node.unreadable(dense)
        yield Candidate(
            name=join_name(node.name, "tensor"),
            role=replace(role, reason=reason),
            shape=shape,
            dtype=dense.dtype,
            read=functools.partial(_read_live, dense, node.gather),
            identity=storage_identity(dense),
        )
        return
    reasons = [node.unreadable(p) for p in module.parameters()]
    reason = role.reason or next((r for r in reasons if r), None)
    read = functools.partial(_read_factorised, module)
    yield Candidate(name=node.name, role=replace(role, reason=reason), shape=shape, dtype=None, read=read)


def _read_factorised(module: Any, index: Index) -> Tensor:
    with torch.no_grad():
        tensor = full_tensor(module.to_tensor())
    return tensor.detach()[index] if index else tensor.detach()


def _packed(node: _Node) -> Iterator[Candidate]:
    """Yield a skipped candidate for a quantised layer of torch, which has no parameter."""
    if type(node.module).__module__.startswith("torch.ao.nn.quantized") and hasattr(node.module, "_packed_params"):
        yield _skip(
            join_name(node.name, "weight"),
            (),
            "torch quantised layer: its weights are not read: analyse the model before it is quantised",
        )
