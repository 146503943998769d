"""Which parameters a plan is about, and how zeros get into them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tempbalance.compress.pruning.masks import mask_by_row, mask_smallest
from tempbalance.compress.sparsity import Allocation, LayerShare
from tempbalance.errors import AllocationError, NonFiniteError
from tempbalance.layers import Select, TensorStore, Weight, find_weights

__all__ = ["Target", "find_targets", "write_zeros"]

_MATRIX_NDIM = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A weight that is to be pruned.

    Attributes:
        weight: Where it is in the model.
        share: What the plan says of it.
    """

    weight: Weight
    share: LayerShare

    @property
    def name(self) -> str:
        """Name of the weight."""
        return self.share.name

    def choose(self, scores: Tensor, *, by_row: bool = False, group: int | None = None) -> Tensor:
        """Mark the weights that go.

        Args:
            scores: Those with the smallest go; shape ``(outputs, inputs)``, or any for a mask of the whole tensor.
            by_row: Whether every row loses equally many.
            group: M of N:M sparsity, or None.

        Returns:
            A boolean tensor of the shape of the scores, with as many true entries as the plan says.

        Raises:
            NonFiniteError: A score is NaN.
            AllocationError: The weight cannot be cut into groups of that size.
        """
        if bool(scores.isnan().any()):
            raise NonFiniteError(f"{self.name}: a score is NaN: its weights, or the activations, are not finite")
        if group is not None:
            if scores.ndim != _MATRIX_NDIM or scores.shape[1] % group:
                raise AllocationError(f"{self.name}: {tuple(scores.shape)} has no rows of groups of {group} weights")
            return mask_by_row(scores.reshape(-1, group), self.share.zeros).view(scores.shape)
        return mask_by_row(scores, self.share.zeros) if by_row else mask_smallest(scores, self.share.zeros)


def find_targets(source: nn.Module | TensorStore, allocation: Allocation, stored: Mapping[str, object]) -> list[Target]:
    """Find the weights of a plan in a model, which must be the one that was analysed.

    Args:
        source: A live model or an open checkpoint.
        allocation: The plan.
        stored: The tensors that can be written to, by name.

    Returns:
        One target per weight of the plan, in its order.

    Raises:
        AllocationError: The model lacks a weight, or has it in another shape, or computes it from other tensors.
    """
    known: dict[str, Weight] = {}
    for split in (True, False):
        weights, _ = find_weights(source, Select(embeddings=True, split=split))
        known.update({weight.name: weight for weight in weights})
    return [Target(weight=_match(share, known, stored), share=share) for share in allocation.layers]


def _match(share: LayerShare, known: Mapping[str, Weight], stored: Mapping[str, object]) -> Weight:
    weight = known.get(share.name)
    if weight is None:
        some = ", ".join([*known][:3])
        raise AllocationError(f"the plan is for another model: this one has {some}, ..., but no {share.name}")
    if weight.shape != share.shape:
        raise AllocationError(
            f"the plan is for another model: {share.name} has shape {weight.shape} here and {share.shape} in the plan"
        )
    if weight.parameter not in stored or weight.kind == "lora":
        raise AllocationError(
            f"{share.name} is computed from other tensors (an adapter, a parametrization): merge them first"
        )
    return weight


def write_zeros(parameter: Tensor, weight: Weight, mask: Tensor) -> None:
    """Set entries of a weight to zero, in place.

    Args:
        parameter: The parameter that the weight is, or is a part of.
        weight: Which part.
        mask: Where, of the shape of the weight.
    """
    with torch.no_grad():
        part = weight.within(parameter)
        if part.untyped_storage().data_ptr() == parameter.untyped_storage().data_ptr():
            part.masked_fill_(mask, 0)
        else:  # a part that is scattered over its parameter comes as a copy: ask for its places instead
            places = weight.within(torch.arange(parameter.numel(), device=parameter.device).view(parameter.shape))
            parameter.view(-1)[places[mask]] = 0
