"""Find the parameters of an allocation in a model, and write zeros to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tempbalance.compress.allocation import Allocation
from tempbalance.compress.budget_units import linear_shape
from tempbalance.compress.layer_allocation import LayerAllocation
from tempbalance.compress.pruning.masks import mask_by_row, mask_smallest
from tempbalance.compress.sparsity import check_group
from tempbalance.errors import AllocationError, NonFiniteError
from tempbalance.layers import Select, StoredTensor, TensorStore, Weight, find_weights

__all__ = [
    "Target",
    "check_unquantised",
    "check_unwrapped",
    "find_targets",
    "stored_names",
    "write_part",
    "write_zeros",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A weight in the model, with its row of the allocation."""

    weight: Weight
    layer: LayerAllocation

    @property
    def name(self) -> str:
        """Name of the weight."""
        return self.layer.name

    @property
    def module(self) -> str:
        """Name of the module that has the parameter."""
        return self.weight.parameter.rpartition(".")[0]

    def prune(
        self,
        parameter: Tensor,
        score: Callable[[Tensor], Tensor],
        *,
        by_row: bool = False,
        group: int | None = None,
    ) -> None:
        """Set the entries of smallest score to zero, in the whole weight, in each row, or in each N:M group.

        ``score`` takes a matrix ``(outputs, inputs)``, also of a weight that is stored as ``(inputs, outputs)``.
        """
        part = self.weight.within(parameter)
        write_zeros(parameter, self.weight, self.mask(part, score, by_row=by_row, group=group))

    def mask(
        self,
        part: Tensor,
        score: Callable[[Tensor], Tensor],
        *,
        by_row: bool = False,
        group: int | None = None,
    ) -> Tensor:
        """Mark the entries of the weight that ``prune`` sets to zero."""
        turned = self.weight.transposed  # stored as (inputs, outputs)
        mask = self._choose(score(part.T if turned else part), by_row, group)
        return mask.T if turned else mask

    def prune_stored(self, name: str, stored: Tensor, score: Callable[[Tensor], Tensor]) -> float:
        """Set the entries of smallest score to zero where a stored tensor has them; return the fraction of zeros."""
        reader = self.weight.read
        assert isinstance(reader, StoredTensor)
        if reader.whole:
            self.prune(stored, score)
            return self.achieved(stored)
        part = self.weight.load()
        mask = self._choose(score(part), False, None)
        positions = self.weight.cut(reader.positions(name))
        stored.view(-1)[positions[mask & (positions >= 0)]] = 0
        return float(((part == 0) | mask).double().mean())

    def achieved(self, parameter: Tensor) -> float:
        """Return the fraction of zeros."""
        return float((self.weight.within(parameter) == 0).double().mean())

    def _choose(self, scores: Tensor, by_row: bool, group: int | None) -> Tensor:
        if bool(scores.isnan().any()):
            raise NonFiniteError(f"{self.name}: a score is NaN, because its weights or activations are not finite")
        if group is not None:
            return mask_by_row(scores.reshape(-1, group), self.layer.zeros).view(scores.shape)
        return mask_by_row(scores, self.layer.zeros) if by_row else mask_smallest(scores, self.layer.zeros)


def stored_names(weight: Weight) -> tuple[str, ...]:
    """Return the names of the tensors of a checkpoint that have the entries of a weight; none if it is computed."""
    reader = weight.read
    return reader.names_of(weight.cut) if isinstance(reader, StoredTensor) and reader.moved else ()


def find_targets(
    source: nn.Module | TensorStore, allocation: Allocation, writable: Callable[[Weight], object]
) -> list[Target]:
    """Find the weights of an allocation of sparsity in a model; ``writable`` tells which can be written to."""
    allocation.check_quantity("sparsity")
    known: dict[str, Weight] = {}
    for split in (True, False):
        weights, _ = find_weights(source, Select(embeddings=True, split=split))
        known.update({weight.name: weight for weight in weights})
    targets = [Target(weight=_match(layer, known, writable), layer=layer) for layer in allocation.layers]
    for target in targets if allocation.group is not None else ():
        check_group(target.name, linear_shape(target.weight), allocation.group or 1)
    return targets


def _match(layer: LayerAllocation, known: Mapping[str, Weight], writable: Callable[[Weight], object]) -> Weight:
    weight = known.get(layer.name)
    if weight is None:
        some = ", ".join([*known][:3])
        raise AllocationError(f"the allocation is for another model: this one has {some}, ..., but no {layer.name}")
    if weight.shape != layer.shape:
        raise AllocationError(
            f"the allocation is for another model: {layer.name} has shape {weight.shape} here and {layer.shape} there"
        )
    _check_plain(weight)
    if not writable(weight) or weight.kind == "lora":
        raise AllocationError(
            f"{layer.name} is computed from other tensors (an adapter, a parametrization): merge them first"
        )
    if not 0 <= layer.zeros <= layer.numel:
        raise AllocationError(f"{layer.name} has {layer.numel} weights, but {layer.zeros} zeros are allocated")
    return weight


def check_unquantised(source: TensorStore) -> None:
    """Raise an AllocationError if weights that are pruned are stored quantised, without reading any."""
    weights, _ = find_weights(source)
    for weight in [weight for weight in weights if weight.block is not None] or weights:
        _check_plain(weight)


def _check_plain(weight: Weight) -> None:
    if weight.quantisation:
        raise AllocationError(f"{weight.name} is stored quantised ({weight.quantisation}): prune the unquantised model")


def check_unwrapped(model: nn.Module, layers: Iterable[str]) -> None:
    """Raise an AllocationError if a layer, given by its name without wrappers, is inside a wrapper of a block."""
    modules = {name for name, _ in model.named_modules()}
    for layer in layers:
        if layer not in modules:
            raise AllocationError(f"{layer} is inside a wrapper (torch.compile, checkpointing): unwrap its block first")


def write_zeros(parameter: Tensor, weight: Weight, mask: Tensor) -> None:
    """Set the masked entries of a weight to zero, in the parameter that it is a part of."""
    with torch.no_grad():
        part = weight.within(parameter)
        if _is_view(part, parameter):
            part.masked_fill_(mask, 0)
        else:
            parameter.view(-1)[_places(parameter, weight)[mask]] = 0


def write_part(parameter: Tensor, weight: Weight, values: Tensor) -> None:
    """Set all entries of a weight, in the parameter that it is a part of."""
    with torch.no_grad():
        part = weight.within(parameter)
        if _is_view(part, parameter):
            part.copy_(values)
        else:
            parameter.view(-1)[_places(parameter, weight).flatten()] = values.flatten()


def _is_view(part: Tensor, parameter: Tensor) -> bool:
    """Return whether a part shares its memory with its parameter; one that is scattered over it is a copy."""
    return part.untyped_storage().data_ptr() == parameter.untyped_storage().data_ptr()


def _places(parameter: Tensor, weight: Weight) -> Tensor:
    return weight.within(torch.arange(parameter.numel(), device=parameter.device).view(parameter.shape))
