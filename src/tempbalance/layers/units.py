"""Units: the layers or blocks of a live model that get one learning rate each, with all their parameters.

A parameter belongs to the layer whose module contains it, also if it is in an inner submodule (factors of LoRA,
parametrizations, factorised tensors). A norm belongs to the layer before it if its size is that of the layer's output
or input. With blocks, all parameters of a block belong to it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from tempbalance.layers.blocks import block_namer
from tempbalance.layers.modules import CONTAINERS
from tempbalance.layers.names import join_name
from tempbalance.layers.weights import Weight
from tempbalance.layers.wrappers import plain_modules, plain_parameters

__all__ = ["Norm", "Unit", "block_of_parameter", "find_norms", "find_units", "parameter_names", "source_parameters"]

# Copies of PEFT inside a name.
_COPIES = re.compile(r"modules_to_save\.[^.]+\.|original_module\.|token_adapter\.")
_BASE = ".base_layer."
# Inner submodules of a layer: parametrizations, factorised tensors.
_INNER = re.compile(r"(^|\.)(parametrizations|weight)(\..*)?$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A layer or block.

    Attributes:
        name: Qualified name of the module; for a parameter of a module of unknown type, the name of the parameter.
        weights: Names of its weight matrices, as in ``find_weights``.
        parameters: Names of all its parameters, as in ``parameter_names``.
    """

    name: str
    weights: tuple[str, ...]
    parameters: tuple[str, ...]


def parameter_names(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters of a model by name, without wrappers (``torch.compile``, DDP, FSDP, PEFT).

    They are in the order of the model, a shared parameter once, under its first name.

    Example:
        >>> list(parameter_names(nn.DataParallel(nn.Linear(2, 2))))
        ['weight', 'bias']
    """
    plain = plain_parameters(model)
    found: dict[str, Tensor] = {}
    for full, parameter in model.named_parameters():
        name = _COPIES.sub("", plain(full))
        if name not in found or parameter.requires_grad or not found[name].requires_grad:  # of copies, the trained one
            found[name] = parameter
    return found


def source_parameters(weight: Weight, parameters: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Return the names of the parameters that a weight is computed from, without biases.

    This is the weight itself, or those of LoRA or a parametrization. ``parameters`` are all of the model.

    Example:
        >>> from tempbalance.layers import find_weights
        >>> net = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
        >>> source_parameters(find_weights(net)[0][0], parameter_names(net))
        ('parametrizations.weight.original0', 'parametrizations.weight.original1')
    """
    if weight.parameter in parameters:
        return (weight.parameter,)
    home_of = _homes(parameters)
    home = home_of(weight.parameter)
    return tuple(p for p in parameters if home_of(p) == home and not p.rpartition(".")[2].startswith("bias"))


def block_of_parameter(model: nn.Module) -> Callable[[str], str | None]:
    """Return the function from the name of a parameter to the name of its block, or to None outside of blocks.

    Example:
        >>> blocks = nn.ModuleList(nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)}) for _ in range(2))
        >>> block_of_parameter(nn.ModuleDict({"layers": blocks}))("layers.1.b.weight")
        'layers.1'
    """
    containers = {name for name, module in plain_modules(model).items() if isinstance(module, CONTAINERS)}
    weights = [name for name, parameter in parameter_names(model).items() if _is_matrix(parameter)]
    return block_namer(weights, lambda path: path in containers)


def find_units(
    model: nn.Module,
    weights: Sequence[Weight],
    *,
    unit: Literal["layer", "block"] = "layer",
    norms: Literal["follow", "base"] = "follow",
) -> list[Unit]:
    """Divide the parameters of a model into units.

    Args:
        model: The live model that the weights were found in.
        weights: The weights to put into units, in the order of the model.
        unit: Whether a unit is a layer or a block; with blocks, weights outside of all blocks are in no unit.
        norms: ``"follow"``: a norm is in the unit of the layer before it, or of its block. ``"base"``: norms are in no
            unit.

    Returns:
        The units in the order of the model, each with at least one weight. A parameter is in at most one unit.

    Example:
        >>> from tempbalance.layers import find_weights
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))
        >>> [unit.parameters for unit in find_units(net, find_weights(net)[0])]
        [('0.weight', '0.bias', '1.weight', '1.bias'), ('3.weight', '3.bias')]
    """
    parameters = parameter_names(model)
    norm_of = {name: norm for norm in find_norms(model) for name in norm.parameters}
    if unit == "block":
        block_of = block_of_parameter(model)
        homes = {weight.name: block_of(weight.parameter) for weight in weights}
        owners = {name: block_of(name) for name in parameters if norms != "base" or name not in norm_of}
    else:
        home_of = _homes(parameters)
        homes = {w.name: w.parameter if w.kind == "parameter" else home_of(w.parameter) for w in weights}
        owners = {name: home for name in parameters for home in (home_of(name), name) if home in homes.values()}
        if norms == "follow":
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


def _is_matrix(parameter: Tensor) -> bool:
    if isinstance(parameter, UninitializedParameter):
        return True
    return len(getattr(parameter, "ds_shape", parameter.shape)) > 1  # DeepSpeed ZeRO-3 leaves an empty vector


def _homes(parameters: Iterable[str]) -> Callable[[str], str]:
    """Return the function from a parameter to the layer that contains it, directly or in an inner submodule."""
    tuned = {name.partition(_BASE)[0] for name in parameters if _BASE in name}  # layers of PEFT

    def home(name: str) -> str:
        """Return the outermost layer of PEFT around a parameter, or its module."""
        places = [match.start() for match in re.finditer(r"\.", name)]
        inside = _INNER.sub("", name.rpartition(".")[0])
        return next((name[:place] for place in places if name[:place] in tuned), inside) if tuned else inside

    return home


@dataclass(frozen=True, slots=True, kw_only=True)
class Norm:
    """A normalisation layer.

    Attributes:
        name: Qualified name of the module.
        module: The module.
        parameters: Names of its parameters, as in ``parameter_names``.
        width: Number of elements of its largest parameter.
    """

    name: str
    module: nn.Module
    parameters: tuple[str, ...]
    width: int


def find_norms(model: nn.Module) -> Iterator[Norm]:
    """Yield the norms of a model: modules with parameters, without children, and with "norm" in their class name."""
    plain = plain_parameters(model)
    for path, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        is_norm = any("norm" in cls.__name__.lower() for cls in type(module).__mro__)
        if is_norm and own and not list(module.children()):
            width = max(math.prod(parameter.shape) for parameter in own.values())
            names = (_COPIES.sub("", plain(join_name(path, key))) for key in own)
            yield Norm(name=_COPIES.sub("", plain(path)), module=module, parameters=tuple(names), width=width)


def _following(
    parameters: Mapping[str, Tensor],
    norm_of: Mapping[str, Norm],
    owners: Mapping[str, str | None],
    widths: Mapping[str | None, set[int]],
) -> dict[str, str | None]:
    """Return the layer before each norm, if it has a weight in ``widths`` and the width of the norm."""
    found = {}
    last: str | None = None
    for name, parameter in parameters.items():
        norm = norm_of.get(name)
        if norm is None:
            last = owners[name] if name in owners else None if parameter.ndim > 1 else last
        elif norm.width in widths.get(last, ()):
            found[name] = last
    return found
