"""Weights that are computed from other tensors: parametrizations, the older hooks, pruning masks.

The effective weight, which the layer applies, is measured under its name in the module. The model is not changed: a
parametrization is evaluated on a copy in evaluation mode, because reading ``module.weight`` of a spectral norm in
training mode advances its power iteration.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Effective", "effective_weights", "make_plain"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Effective:
    """A weight computed on demand.

    Attributes:
        shape: Shape of the weight.
        compute: Computes it without gradient and without changing the module.
        hides: Names of the parameters of the module that it is computed from.
        meta: Whether these parameters have no data.
    """

    shape: tuple[int, ...]
    compute: Callable[[], Tensor]
    hides: frozenset[str]
    meta: bool


def _evaluate(parametrization: nn.Module) -> Tensor:
    with torch.no_grad():
        result: Tensor = copy.deepcopy(parametrization).eval()()
    return result.detach()


def _compute(function: Callable[[Any, nn.Module], Tensor], hook: object, module: nn.Module) -> Tensor:
    with torch.no_grad():
        return function(hook, module).detach()


# Class name of a forward pre-hook, its attribute with the name of the weight, the function that computes the weight,
# the suffixes of the parameters it is computed from; the last one has the shape of the weight.
_HOOKS: tuple[tuple[str, str, Callable[[Any, nn.Module], Tensor], tuple[str, ...]], ...] = (
    ("WeightNorm", "name", lambda hook, module: hook.compute_weight(module), ("_g", "_v")),
    ("SpectralNorm", "name", lambda hook, module: hook.compute_weight(module, do_power_iteration=False), ("_orig",)),
    ("BasePruningMethod", "_tensor_name", lambda hook, module: hook.apply_mask(module), ("_orig",)),
)


def _shape(parametrization: nn.Module) -> tuple[int, ...]:
    try:
        return tuple(_evaluate(parametrization).shape)
    except Exception:  # raised again when the weight is read; that of its last part, until then
        return tuple(list(parametrization.parameters(recurse=False))[-1].shape)


def effective_weights(module: nn.Module) -> dict[str, Effective]:
    """Return the weights that a module, without its children, computes from other tensors, by attribute (``weight``).

    Example:
        >>> layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
        >>> effective_weights(layer)["weight"].shape
        (3, 4)
    """
    found: dict[str, Effective] = {}
    parametrizations = module._modules.get("parametrizations")
    if isinstance(parametrizations, nn.ModuleDict):
        for name, parametrization in parametrizations.items():
            meta = any(t.is_meta for t in parametrization.parameters())
            shape = _shape(parametrization)
            compute = functools.partial(_evaluate, parametrization)
            found[name] = Effective(shape=shape, compute=compute, hides=frozenset(), meta=meta)
    for hook in module._forward_pre_hooks.values():
        classes = {cls.__name__ for cls in type(hook).__mro__}
        for class_name, attribute, function, suffixes in _HOOKS:
            if class_name in classes:
                name = getattr(hook, attribute)
                source = getattr(module, name + suffixes[-1])
                found[name] = Effective(
                    shape=tuple(source.shape),
                    compute=functools.partial(_compute, function, hook, module),
                    hides=frozenset(name + suffix for suffix in suffixes),
                    meta=source.is_meta,
                )
    for name in [name for name in found if any(name in other.hides for other in found.values())]:
        part = found.pop(name)  # a computed weight is computed from a computed one: a mask on a factor of weight norm
        found = {n: replace(e, hides=e.hides | part.hides) if name in e.hides else e for n, e in found.items()}
    return found


def make_plain(module: nn.Module) -> None:
    """Replace the weights that a copy of a module computes from other tensors by their values, which can be changed.

    Example:
        >>> layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
        >>> make_plain(layer)
        >>> [name for name, _ in layer.named_parameters()]
        ['bias', 'weight']
    """
    values = {name: effective.compute() for name, effective in effective_weights(module).items()}
    if nn.utils.parametrize.is_parametrized(module):  # remove_parametrizations() changes the original's class
        module.__class__ = nn.utils.parametrize.type_before_parametrizations(module)
        del module._modules["parametrizations"]
    for name, value in values.items():
        if hasattr(module, name):  # a hook computes it before each forward pass
            setattr(module, name, value)
        else:
            module.register_parameter(name, nn.Parameter(value, requires_grad=False))
