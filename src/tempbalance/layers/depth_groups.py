"""Depth groups: parameters at one depth below the head, in blocks, or in layers for a model without blocks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from tempbalance.layers.units import Unit, block_of_parameter, find_units, parameter_names
from tempbalance.layers.weights import Weight

__all__ = ["find_depth_groups"]

_ABOVE, _BELOW = "above the blocks", "below the blocks"


def find_depth_groups(model: nn.Module, weights: Sequence[Weight]) -> list[Unit]:
    """Divide all parameters of a model by depth, in the order in which the model defines them.

    Parameters after the last block (final norm, pooler, head) have depth 0, the last block has depth 1, and so on;
    parameters before the first block (embeddings, stem) have the largest depth. Parameters between two blocks have the
    depth of the block before them. A tied parameter has the depth of its first name. Without blocks each layer is a
    group, and the last one has depth 0.

    Args:
        model: A live model.
        weights: All its weights.

    Returns:
        One unit without weights per depth, starting at 0; together they contain every parameter once. With blocks, the
        first and the last may be empty.

    Example:
        >>> from tempbalance.layers import find_weights
        >>> net = nn.Sequential(nn.Embedding(9, 4), nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 2))
        >>> [group.parameters for group in find_depth_groups(net, find_weights(net)[0])]
        [('3.weight', '3.bias'), ('0.weight', '1.weight', '1.bias', '2.weight', '2.bias')]
    """
    names = list(parameter_names(model))
    block_of = block_of_parameter(model)
    owners = {name: block for name in names if (block := block_of(name)) is not None}
    below, above = [_BELOW], [_ABOVE]
    if not owners:
        owners = {name: unit.name for unit in find_units(model, weights) for name in unit.parameters}
        below, above = [], []
    order = [*below, *dict.fromkeys(owners[name] for name in names if name in owners), *above] or [""]
    members: dict[str, list[str]] = {group: [] for group in order}
    group = order[0]
    last = max((place for place, name in enumerate(names) if name in owners), default=-1)
    for place, name in enumerate(names):
        group = owners.get(name, group) if place <= last else order[-1]
        members[group].append(name)
    return [Unit(name=group, weights=(), parameters=tuple(members[group])) for group in reversed(order)]
