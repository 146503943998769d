"""Round the weights of a live model to number formats, for a while, to measure what an allocation of bits costs."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping, Sequence

from torch import Tensor, nn

from tempbalance.compress.allocation import Allocation
from tempbalance.compress.budget_units import linear_shape, module_name
from tempbalance.compress.formats import WeightFormat, format_of
from tempbalance.compress.layer_allocation import LayerAllocation
from tempbalance.compress.pruning.targets import write_part
from tempbalance.errors import AllocationError, check_type
from tempbalance.layers import Select, TensorStore, Weight, find_weights, parameter_names, unwrapped

__all__ = ["changed_part", "check_rounds", "match_weights", "modules_of", "oriented", "quantized"]


@contextlib.contextmanager
def quantized(model: nn.Module, allocation: Allocation, *, group_size: int | None = None) -> Generator[None]:
    """Round the weights of a model as allocated inside a ``with`` block (fake quantization, round to nearest).

    The weights keep their dtype, and are restored at the end. GPTQ, AWQ and AutoRound round better than to nearest, so
    this is an upper bound of the loss. Activations are not quantized.

    Args:
        model: A live model.
        allocation: An allocation of bits, from an analysis of this model. A plain width of 2 to 8 bits is rounded to
            integers, 16 bits to bfloat16.
        group_size: Columns that share a scale with plain widths; by default all columns of a row.

    Yields:
        None.

    Raises:
        AllocationError: The allocation is for another model or another quantity, a format does not fit a weight, or a
            weight is computed from others; the model is then unchanged.

    Example:
        >>> import torch
        >>> import tempbalance as tb
        >>> model = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(3)))
        >>> allocation = tb.allocate_bits(tb.analyze(model), bits=4, method="uniform")
        >>> with quantized(model, allocation):
        ...     len(model[0].weight[0].unique()) <= 2**4
        True
    """
    check_type("model", model, nn.Module)
    check_type("allocation", allocation, Allocation)
    allocation.check_quantity("bits")
    root = unwrapped(model)
    parameters, weights = parameter_names(root), match_weights(root, allocation.layers)
    chosen = [(weight, format_of(layer, group_size)) for weight, layer in zip(weights, allocation.layers, strict=True)]
    for layer, (weight, number_format) in zip(allocation.layers, chosen, strict=True):
        check_rounds(layer, weight, number_format)
    with contextlib.ExitStack() as stack:
        for weight, number_format in chosen:
            parameter = parameters[weight.parameter]
            rounded = oriented(weight, number_format.round(oriented(weight, weight.within(parameter))))
            stack.enter_context(changed_part(weight, parameter, rounded))
        yield


def modules_of(source: nn.Module | Mapping[str, Tensor] | TensorStore) -> dict[str, Weight]:
    """Return the linear layers and experts of a model by the names that an allocation of bits has."""
    found: dict[str, Weight] = {}
    for split in (True, False):  # parts of stacked experts have names of their own, those of other fused weights not
        weights, _ = find_weights(source, Select(split=split))
        found |= {module_name(weight): weight for weight in weights if weight.kind in {"linear", "experts"}}
    return found


def oriented(weight: Weight, values: Tensor) -> Tensor:
    """Turn the values of a weight from the stored layout to ``(outputs, inputs)``, or back."""
    return values.T if weight.transposed else values


@contextlib.contextmanager
def changed_part(weight: Weight, parameter: Tensor, values: Tensor) -> Generator[None]:
    """Replace the values of a weight inside its parameter in a ``with`` block."""
    before = weight.within(parameter).detach().clone()
    write_part(parameter, weight, values)
    try:
        yield
    finally:
        write_part(parameter, weight, before)


def match_weights(root: nn.Module, layers: Sequence[LayerAllocation]) -> list[Weight]:
    """Return the weight of each layer; raise an AllocationError if one is missing, of another shape, or computed."""
    parameters, weights = parameter_names(root), modules_of(root)
    return [_match(layer, weights, parameters) for layer in layers]


def check_rounds(layer: LayerAllocation, weight: Weight, number_format: WeightFormat) -> None:
    """Raise an AllocationError if a weight, as the model stores it, cannot be rounded to a format at its cost."""
    shape = linear_shape(weight)
    if not number_format.fits(shape):
        raise AllocationError(
            f"{layer.name}: {number_format.name} needs a matrix whose {shape[-1]} inputs are a multiple of "
            f"{number_format.block}: choose another format or group_size"
        )
    if layer.format and number_format.cost(shape) != number_format.cost(layer.shape):
        raise AllocationError(
            f"{layer.name} is stored as (inputs, outputs), which the allocation does not know: analyse the model or "
            "its folder, and allocate again"
        )


def _match(layer: LayerAllocation, weights: Mapping[str, Weight], parameters: Mapping[str, Tensor]) -> Weight:
    weight = weights.get(layer.name)
    # The shape as stored is that of allocations of older versions, and of those for a state dict of GPT-2.
    if weight is None or layer.shape not in {weight.shape, linear_shape(weight)}:
        here = f"has shape {weight.shape} here" if weight else f"is not among {', '.join([*weights][:3])}, ..."
        raise AllocationError(f"the allocation is for another model: {layer.name}, of shape {layer.shape}, {here}")
    if weight.parameter not in parameters:
        raise AllocationError(
            f"{layer.name} is computed from other tensors (an adapter, a parametrization): merge them first"
        )
    return weight
