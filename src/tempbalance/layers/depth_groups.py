"""Depth groups: parameters at one depth below the head, in blocks, or in layers for a model without blocks.

A tower is a module with lists of blocks of its own, beside others in the model: the vision and the text model of CLIP,
an encoder and a decoder. Depth is counted within each tower.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from tempbalance.layers.units import Unit, block_of_parameter, find_units, parameter_names
from tempbalance.layers.weights import Weight

__all__ = ["find_depth_groups"]

_ABOVE, _BELOW = "above the blocks", "below the blocks"
_Placed = dict[str, tuple[int, str]]  # by parameter: its depth, and what it belongs to


def find_depth_groups(model: nn.Module, weights: Sequence[Weight]) -> list[Unit]:
    """Divide all parameters of a model by depth, in the order in which the model defines them.

    Parameters after the last block of a tower (final norm, pooler, head) have depth 0, the last block has depth 1, and
    so on; parameters before the first block (embeddings, stem) have the largest depth of the tower. Parameters between
    two blocks have the depth of the block before them. Parameters outside of all towers have depth 0 or, before the
    first block of the module that contains them and towers, its largest depth. A tied parameter has the depth of its
    first name. Without blocks each layer is a group, and the last one has depth 0.

    Args:
        model: A live model.
        weights: All its weights.

    Returns:
        One unit without weights per depth, starting at 0, with the parameters of all towers at that depth; together
        they contain every parameter once. With blocks, the first and the last may be empty.

    Example:
        >>> from tempbalance.layers import find_weights
        >>> net = nn.Sequential(nn.Embedding(9, 4), nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 2))
        >>> [group.parameters for group in find_depth_groups(net, find_weights(net)[0])]
        [('3.weight', '3.bias'), ('0.weight', '1.weight', '1.bias', '2.weight', '2.bias')]
    """
    names = list(parameter_names(model))
    block_of = block_of_parameter(model)
    owners = {name: block for name in names if (block := block_of(name)) is not None}
    if owners:
        placed, deepest = _in_towers(names, owners)
    else:
        owners = {name: unit.name for unit in find_units(model, weights) for name in unit.parameters}
        layers = _in_order(names, owners) or [""]
        placed, deepest = _in_sequence(names, owners, layers), len(layers) - 1
    members: list[dict[str, str]] = [{} for _ in range(deepest + 1)]
    for name in names:
        depth, owner = placed[name]
        members[depth][name] = owner
    labels = [sorted(dict.fromkeys(found.values()), key=lambda label: label == _BELOW) for found in members]
    return [
        Unit(name=" and ".join(own or [_BELOW if depth else _ABOVE]), weights=(), parameters=tuple(found))
        for depth, (own, found) in enumerate(zip(labels, members, strict=True))
    ]


def _in_order(names: Iterable[str], owners: Mapping[str, str]) -> list[str]:
    return list(dict.fromkeys(owners[name] for name in names if name in owners))


def _in_sequence(names: Sequence[str], owners: Mapping[str, str], order: Sequence[str]) -> _Placed:
    """Place parameters by their owners, which are in the order from the input to the head."""
    depths = {owner: len(order) - 1 - place for place, owner in enumerate(order)}
    placed = {}
    owner = order[0]
    last = max((place for place, name in enumerate(names) if name in owners), default=-1)
    for place, name in enumerate(names):
        owner = owners.get(name, owner) if place <= last else order[-1]
        placed[name] = depths[owner], owner
    return placed


def _in_towers(names: Sequence[str], owners: Mapping[str, str]) -> tuple[_Placed, int]:
    """Place the parameters of each tower, and those outside of all towers; return also the largest depth."""
    towers: dict[str, list[str]] = {tower: [] for tower in _towers(owners.values())}
    outside: list[str] = []
    for name in names:
        own = [tower for tower in towers if name.startswith(tower)]
        (towers[max(own, key=len)] if own else outside).append(name)
    placed: _Placed = {}
    for members in towers.values():
        placed |= _in_sequence(members, owners, [_BELOW, *_in_order(members, owners), _ABOVE])
    places = {name: place for place, name in enumerate(names)}
    for name in outside:
        placed[name] = _outside(name, placed, owners, places)
    return placed, 1 + max(placed[name][0] for name in owners)


def _outside(name: str, placed: _Placed, owners: Mapping[str, str], places: Mapping[str, int]) -> tuple[int, str]:
    """Place a parameter outside of all towers in the smallest module around it that contains towers."""
    parts = name.split(".")
    for end in range(len(parts) - 1, -1, -1):
        prefix = "".join(f"{part}." for part in parts[:end])
        around = [other for other in owners if other.startswith(prefix)]
        if around:
            before = places[name] < places[around[0]]
            return (1 + max(placed[other][0] for other in around), _BELOW) if before else (0, _ABOVE)
    raise AssertionError(f"{name}: no prefix contains a block")


def _towers(blocks: Iterable[str]) -> list[str]:
    """Return the prefix of each tower: of the largest module that contains its lists of blocks and no others."""
    parents = {block: _parent(block) for block in blocks}
    return list(dict.fromkeys(_largest(parent, set(parents.values()) - {parent}) for parent in parents.values()))


def _parent(block: str) -> str:
    """Return the prefix of the module that contains the outermost list of a block: of all lists of one tower."""
    parts = block.split(".")
    first = next(place for place, part in enumerate(parts) if place and part.isdecimal())
    return ".".join([*parts[: first - 1], ""])


def _largest(prefix: str, others: Iterable[str]) -> str:
    """Return the shortest prefix of a prefix that none of the others starts with; if there is none, the prefix."""
    ends = [0, *(place + 1 for place, letter in enumerate(prefix) if letter == ".")]
    return next((prefix[:end] for end in ends if not any(other.startswith(prefix[:end]) for other in others)), prefix)
