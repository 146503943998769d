"""Blocks of a model (transformer blocks and other repeated layers), found from qualified names.

A block is an item of a list that has several layers, such as ``encoder.layer.0``; only in a model without such items
are items of a single layer, in a submodule, blocks. Where lists are directly in the items of a list
(``stages.0.blocks.1``, ``layer.0.1``), those items are stages and the blocks are in the inner lists, if more than two
thirds of the layers of the stages are in inner items similar to their neighbours. Lists of experts, branches, paths
or heads, and of the attentions or MLPs of one block, contain no blocks.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import TypeVar

__all__ = ["block_namer", "in_block_order"]

_T = TypeVar("_T")

_NO_BLOCKS = re.compile(r"(\w*_)?(experts|branch(es)?\w*|paths|heads)")
_PARTS_OF_BLOCKS = re.compile(r"self_attn|mlps|ffns?")
_BLOCKS = frozenset({"block", "blocks", "h"})  # decides only where no inner list has two items to compare
_IN_STAGES = 2 / 3
# The end of a name after its layer: that of the weight, of factors of LoRA, of a parametrization.
_WEIGHT = re.compile(r"\.(parametrizations|base_layer|lora_\w+)\..*|\.[^.]+$")
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


def block_namer(names: Iterable[str], is_container: Callable[[str], bool] | None = None) -> Callable[[str], str | None]:
    """Return the function from a qualified parameter name to the name of its block, or to None outside of blocks.

    ``names`` are those of all parameters of the model with two axes or more. ``is_container`` returns whether the
    module of a name is a list of modules; it is None if only names are known.

    Example:
        >>> block_of = block_namer(["h.0.attn.weight", "head.0.weight"])
        >>> block_of("h.0.attn.weight"), block_of("head.0.weight")
        ('h.0', None)
    """
    return _Blocks(names, is_container).block_of


def in_block_order(items: Sequence[_T], block_of: Callable[[_T], str | None]) -> list[_T]:
    """Return items with those of each list of blocks in the order of their numbers; all others keep their places.

    A GGUF or safetensors file, and the dict that is loaded from it, may list block 10 before block 2. ``block_of``
    returns the name of the block of an item, or None outside of blocks.

    Example:
        >>> in_block_order(["head", "h.0", "h.10", "h.2"], lambda name: name if "." in name else None)
        ['head', 'h.0', 'h.2', 'h.10']
    """
    places: dict[str, list[int]] = defaultdict(list)  # by kind of list
    blocks = [block_of(item) or "" for item in items]
    for place, block in enumerate(blocks):
        places[_kind(block)].append(place)
    result = list(items)
    for taken in places.values():
        ordered = sorted(taken, key=lambda place: [int(number) for number in _NUMBER.findall(blocks[place])])
        for place, source in zip(taken, ordered, strict=True):
            result[place] = items[source]
    return result


class _Blocks:
    """The lists of a model. An item is a member of a list, by name; the kind of a list is its name without numbers."""

    def __init__(self, names: Iterable[str], is_container: Callable[[str], bool] | None) -> None:
        self._is_container = is_container
        self._layers: dict[str, set[str]] = defaultdict(set)  # by item: its layers, by their names in it
        inner: dict[str, set[str]] = defaultdict(set)  # by kind: the items of lists directly in its items
        for name in names:
            items = self._items(name)
            layer = _WEIGHT.sub("", name)
            for place, item in enumerate(items):
                self._layers[item] |= {layer.removeprefix(item)} - {""}  # parameters of its own are no layer
                if place:
                    inner[_kind(items[place - 1])].add(item)
        sizes: dict[str, int] = defaultdict(int)  # by kind: layers of all its items
        for item, layers in self._layers.items():
            sizes[_kind(item)] += len(layers)
        self._only_single = not any(map(self._has_several, self._layers))
        # By kind of list whose items are stages: the items of lists in them.
        self._in_stages = {kind: found for kind, items in inner.items() if (found := self._within(items, sizes[kind]))}

    def block_of(self, name: str) -> str | None:
        """Return the block of a parameter."""
        items = [item for item in self._items(name) if item in self._layers]
        in_stage = False
        for place, item in enumerate(items):
            inner = self._in_stages.get(_kind(item), frozenset())
            if inner.isdisjoint(items[place + 1 : place + 2]):
                is_stage = any(other.startswith(f"{item}.") for other in inner)
                return item if self._is_block(item, single=in_stage) and not is_stage else None
            in_stage = True
        return None

    def _items(self, name: str) -> list[str]:
        """Return the items that contain a parameter: of the first list, then of lists directly in each other."""
        parts = name.split(".")
        found: list[int] = []
        for i in range(1, len(parts) - 1):
            if not parts[i].isdecimal() or (self._is_container and not self._is_container(".".join(parts[:i]))):
                continue
            no_blocks = _NO_BLOCKS.fullmatch(parts[i - 1])
            if found and (no_blocks or _PARTS_OF_BLOCKS.fullmatch(parts[i - 1]) or i > found[-1] + 2):
                break
            if not no_blocks:
                found.append(i)
        return [".".join(parts[: i + 1]) for i in found]

    def _is_block(self, item: str, *, single: bool) -> bool:
        """Return whether an item is a block; with ``single`` also if it has a single layer, in a submodule."""
        return self._has_several(item) or ((single or self._only_single) and bool(self._layers[item]))

    def _has_several(self, item: str) -> bool:
        """Return whether an item has several layers, or one in a submodule of a submodule (in a part of a model)."""
        layers = self._layers[item]
        return len(layers) > 1 or any(_NUMBER.sub("", layer).strip(".").count(".") for layer in layers)

    def _within(self, items: Iterable[str], size: int) -> frozenset[str]:
        """Return the blocks among the items of inner lists, if they make stages of the outer items, of this size."""
        kinds: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for item in sorted(items, key=lambda item: (len(item), item)):  # 2 before 10
            kinds[_kind(item)][item.rpartition(".")[0]].append(item)
        blocks: list[str] = []
        held = 0
        for kind, lists in kinds.items():
            pairs = [pair for members in lists.values() for pair in pairwise(members)]
            similar = sum(self._are_similar(*pair) for pair in pairs)
            if 2 * similar > len(pairs) or (not pairs and kind.rpartition(".")[2] in _BLOCKS):
                found = [item for members in lists.values() for item in members]
                held += sum(len(self._layers[item]) for item in found if not pairs or len(self._layers[item]) > 1)
                blocks += found
        return frozenset(blocks) if held > _IN_STAGES * size else frozenset()

    def _are_similar(self, one: str, other: str) -> bool:
        """Return whether two items have several layers each, most of them with the same names."""
        a, b = self._layers[one], self._layers[other]
        return min(len(a), len(b)) > 1 and 2 * len(a & b) > min(len(a), len(b))


def _kind(item: str) -> str:
    return _NUMBER.sub("*", item.rpartition(".")[0])
