"""Units: the layers or blocks of a live model that get one learning rate each, with all parameters that follow them.

A parameter belongs to the layer whose module holds it; what a layer keeps in submodules of its own (the factors of
LoRA, parametrizations, factorised tensors) counts as held by it. A norm follows the layer before it, if its size is
that of the layer's output or input. In a block everything follows the block.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from tempbalance.layers.blocks import block_namer
from tempbalance.layers.modules import CONTAINERS, wrapper_prefix
from tempbalance.layers.weights import Weight

__all__ = ["Unit", "block_of_parameter", "find_units", "parameter_names", "sources_of"]

# Wrappers that stand in the middle of a name: torch.compile and activation checkpointing of a submodule, PEFT's copies.
_WRAPPERS = re.compile(r"_orig_mod\.|_checkpoint_wrapped_module\.|modules_to_save\.[^.]+\.|original_module\.")
# What a layer keeps in submodules of its own: parametrizations, LoRA, factorised tensors.
_INNER = re.compile(r"(^|\.)(parametrizations|base_layer|lora_\w+|weight)(\..*)?$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A layer or block.

    Attributes:
        name: Qualified name of the module; of a weight that lies loose in a larger module, its own.
        weights: Names of its weight matrices, as ``find_weights`` gives them.
        parameters: Names of all parameters that go with it, as ``parameter_names`` gives them.
    """

    name: str
    weights: tuple[str, ...]
    parameters: tuple[str, ...]


def parameter_names(model: nn.Module) -> dict[str, Tensor]:
    """The parameters of a model by name, without what wrappers (``torch.compile``, DDP, PEFT) add to it.

    Args:
        model: Any module.

    Returns:
        Name to parameter, in the order of the model; a shared parameter once, under its first name.

    Example:
        >>> list(parameter_names(nn.DataParallel(nn.Linear(2, 2))))
        ['weight', 'bias']
    """
    prefix = wrapper_prefix(model)
    return {_plain(name, prefix): parameter for name, parameter in model.named_parameters()}


def sources_of(weight: Weight, parameters: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The parameters that a weight is made of: itself, or those it is computed from (LoRA, parametrizations).

    Args:
        weight: A weight of the model.
        parameters: All parameters of the model by name.

    Returns:
        Their names; a bias is not among them.

    Example:
        >>> from tempbalance.layers import find_weights
        >>> net = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
        >>> sources_of(find_weights(net)[0][0], parameter_names(net))
        ('parametrizations.weight.original0', 'parametrizations.weight.original1')
    """
    name = _plain(weight.parameter)
    if name in parameters:
        return (name,)
    home = _home(name)
    return tuple(p for p in parameters if _home(p) == home and not p.rpartition(".")[2].startswith("bias"))


def block_of_parameter(model: nn.Module) -> Callable[[str], str | None]:
    """The function from a parameter's name, as ``parameter_names`` gives it, to its block's, None outside of blocks.

    Args:
        model: Any module.

    Returns:
        The function.

    Example:
        >>> blocks = nn.ModuleList(nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)}) for _ in range(2))
        >>> block_of_parameter(nn.ModuleDict({"layers": blocks}))("layers.1.b.weight")
        'layers.1'
    """
    prefix = wrapper_prefix(model)
    modules = model.named_modules(remove_duplicate=False)
    containers = {_plain(name, prefix) for name, module in modules if isinstance(module, CONTAINERS)}
    return block_namer(parameter_names(model), lambda path: path in containers)


def find_units(
    model: nn.Module,
    weights: Sequence[Weight],
    *,
    unit: Literal["layer", "block"] = "layer",
    norms: Literal["follow", "by_name", "base"] = "follow",
) -> list[Unit]:
    """Divide the parameters of a model into units.

    Args:
        model: The live model that the weights were found in.
        weights: The weights that are judged, in the order of the model.
        unit: Whether a unit is a layer or a block; with blocks, weights outside of all blocks are in no unit.
        norms: Whether a norm belongs to the unit of the layer before it; with ``"by_name"`` only ``...bn1`` to
            ``...conv1`` (as in the code released with TempBalance); with ``"base"`` norms are in no unit.

    Returns:
        The units in the order of the model, each with at least one weight. A parameter is in one unit at most.

    Example:
        >>> from tempbalance.layers import find_weights
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))
        >>> [unit.parameters for unit in find_units(net, find_weights(net)[0])]
        [('0.weight', '0.bias', '1.weight', '1.bias'), ('3.weight', '3.bias')]
    """
    parameters = parameter_names(model)
    norm_of = {name: norm for norm in _norms(model) for name in norm.parameters}
    if unit == "block":
        block_of = block_of_parameter(model)
        homes = {weight.name: block_of(_plain(weight.parameter)) for weight in weights}
        owners = {name: block_of(name) for name in parameters if norms != "base" or name not in norm_of}
    else:
        homes = {weight.name: _layer_of(weight) for weight in weights}
        owners = {name: home for name in parameters for home in (_home(name), name) if home in homes.values()}
        if norms == "by_name":
            owners.update(_by_name(norm_of, set(owners.values())))
        elif norms == "follow":
            widths: dict[str | None, set[int]] = {}
            for weight in weights:
                widths.setdefault(homes[weight.name], set()).update(weight.shape[:2])
            owners.update(_following(parameters, norm_of, owners, widths))
    members: dict[str, list[str]] = {}
    for weight in weights:
        home = homes[weight.name]
        if home is not None:
            members.setdefault(home, []).append(weight.name)
    return [
        Unit(name=name, weights=tuple(own), parameters=tuple(p for p, owner in owners.items() if owner == name))
        for name, own in members.items()
    ]


def _plain(name: str, prefix: str = "") -> str:
    return _WRAPPERS.sub("", name.removeprefix(prefix))


def _home(name: str) -> str:
    """Name of the layer that holds a parameter, be it in a submodule of its own."""
    return _INNER.sub("", name.rpartition(".")[0])


def _layer_of(weight: Weight) -> str:
    """Name of the layer of a weight; a parameter that lies loose in a module is a layer of its own."""
    name = _plain(weight.parameter)
    return name if weight.kind == "parameter" else _home(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Norm:
    """A normalisation layer: its module's name and class, its parameters and how many numbers each of them has."""

    name: str
    module: nn.Module
    parameters: tuple[str, ...]
    width: int


def _norms(model: nn.Module) -> Iterator[_Norm]:
    """The norms of a model: modules without children, of a class called so, with parameters of their own."""
    prefix = wrapper_prefix(model)
    for path, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        is_norm = any("norm" in cls.__name__.lower() for cls in type(module).__mro__)
        if is_norm and own and not list(module.children()):
            width = max(math.prod(parameter.shape) for parameter in own.values())
            parameters = tuple(_plain(f"{path}.{key}" if path else key, prefix) for key in own)
            yield _Norm(name=_plain(path, prefix), module=module, parameters=parameters, width=width)


def _by_name(norm_of: Mapping[str, _Norm], layers: set[str | None]) -> dict[str, str]:
    found = {}
    for name, norm in norm_of.items():
        layer = norm.name.replace("bn", "conv")
        if isinstance(norm.module, nn.BatchNorm2d) and layer in layers:
            found[name] = layer
    return found


def _following(
    parameters: Mapping[str, Tensor],
    norm_of: Mapping[str, _Norm],
    owners: Mapping[str, str | None],
    widths: Mapping[str | None, set[int]],
) -> dict[str, str | None]:
    """The layer before each norm, if it is judged and as wide as the norm."""
    found = {}
    last: str | None = None
    for name, parameter in parameters.items():
        norm = norm_of.get(name)
        if norm is None:
            last = owners[name] if name in owners else None if parameter.ndim > 1 else last
        elif norm.width in widths.get(last, ()):
            found[name] = last
    return found
