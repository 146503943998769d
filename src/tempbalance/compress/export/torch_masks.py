"""Zeros of a pruned model as masks of ``torch.nn.utils.prune``."""

from __future__ import annotations

import torch
from torch import nn

from tempbalance.compress.allocation import Allocation
from tempbalance.compress.pruning.targets import find_targets, write_zeros
from tempbalance.errors import AllocationError
from tempbalance.layers import parameter_names, plain_modules

__all__ = ["export_torch"]


def export_torch(allocation: Allocation, model: nn.Module) -> None:
    """Turn the zeros of a pruned model into masks of ``torch.nn.utils.prune``, so that training keeps them.

    Each weight becomes ``weight_orig`` times the buffer ``weight_mask``. Call ``torch.nn.utils.prune.remove`` before
    the model is saved for ``from_pretrained``. An optimizer built before this call still trains the same parameters,
    now named ``weight_orig``.

    Args:
        allocation: The allocation that the model was pruned by.
        model: A live model, pruned by any criterion; it changes in place.

    Raises:
        AllocationError: The allocation is for another model or another quantity, or the model has fewer zeros than
            allocated.

    Example:
        >>> import tempbalance as tb, torch
        >>> model = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(3)))
        >>> allocation = tb.allocate_sparsity(tb.analyze(model), sparsity=0.5)
        >>> _ = tb.prune(model, allocation)
        >>> export_torch(allocation, model)
        >>> int(model[0].weight_mask.sum())  # of 4096
        2048
    """
    from torch.nn.utils import prune as torch_prune

    parameters, modules = parameter_names(model), plain_modules(model)
    masks: dict[str, torch.Tensor] = {}
    for target in find_targets(model, allocation, lambda weight: weight.parameter in parameters):
        parameter = parameters[target.weight.parameter]
        mask = masks.setdefault(target.weight.parameter, torch.ones_like(parameter, dtype=torch.bool))
        found = target.weight.within(parameter) == 0
        count = int(found.sum())
        if count < target.layer.zeros:
            raise AllocationError(
                f"{target.name} has {count} zeros, but {target.layer.zeros} are allocated: prune the model first"
            )
        write_zeros(mask, target.weight, found)
    for name, mask in masks.items():
        owner, _, attribute = name.rpartition(".")
        torch_prune.custom_from_mask(modules[owner], attribute, mask)  # type: ignore[no-untyped-call]
