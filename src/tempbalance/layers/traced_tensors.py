"""Tensors that an operation merges, splits, transposes or reshapes, read in part.

Transformers merges and splits the tensors of a checkpoint while it loads them. Its operations run here on traced
tensors, which have a shape but no data, so that each result knows how it is made. To read a part of a result, only the
tensors that the part consists of are read: one expert in a stack of 128 reads one tensor.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

__all__ = ["Box", "Node", "ReadLeaf", "full_box", "leaf", "traced"]

Box = tuple[tuple[int, int], ...]  # start and stop on each axis
ReadLeaf = Callable[[str, Box], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Node:
    """A tensor known by how it is made.

    Attributes:
        shape: Its shape.
        read: Reads the part in a box, given the function that reads a part of a stored tensor.
        sources: The tensors that it is made from.
        name: Name of a stored tensor; empty for the others.
        moved: Whether each entry is an entry of a source; False if the operation may compute.
    """

    shape: tuple[int, ...]
    read: Callable[[Box, ReadLeaf], Tensor]
    sources: tuple[Node, ...] = ()
    name: str = ""
    moved: bool = True

    def walk(self) -> Iterator[Node]:
        """Yield this node and all that it is made from."""
        yield self
        for source in self.sources:
            yield from source.walk()


def leaf(name: str, shape: Sequence[int]) -> Node:
    """Return the node of a stored tensor."""
    return Node(shape=tuple(shape), read=lambda box, read: read(name, box), name=name)


def full_box(shape: Sequence[int]) -> Box:
    """Return the box of a whole tensor."""
    return tuple((0, size) for size in shape)


def _on_axis(box: Box, axis: int, bounds: tuple[int, int]) -> Box:
    return (*box[:axis], bounds, *box[axis + 1 :])


def _swapped(values: Sequence[Any], first: int, second: int) -> tuple[Any, ...]:
    result = list(values)
    result[first], result[second] = values[second], values[first]
    return tuple(result)


def _joined(shape: Sequence[int], parts: Sequence[Node], axis: int) -> Node:
    """Return tensors one after the other along an axis; only those in the box are read."""

    def read(box: Box, leaf: ReadLeaf) -> Tensor:
        found, place = [], 0
        for part in parts:
            start, stop = max(box[axis][0] - place, 0), min(box[axis][1] - place, part.shape[axis])
            if start < stop:
                found.append(part.read(_on_axis(box, axis, (start, stop)), leaf))
            place += part.shape[axis]
        return found[0] if len(found) == 1 else torch.cat(found, axis)

    return Node(shape=tuple(shape), read=read, sources=tuple(parts))


def _viewed(shape: Sequence[int], source: Node) -> Node:
    """Return a tensor in another shape; the leading axes that both have are read in part, the others whole."""
    ours = [axis for axis, size in enumerate(shape) if size > 1]
    theirs = [axis for axis, size in enumerate(source.shape) if size > 1]
    common: dict[int, int] = {}
    for axis, other in zip(ours, theirs, strict=False):
        if shape[axis] != source.shape[other]:
            break
        common[axis] = other

    def read(box: Box, leaf: ReadLeaf) -> Tensor:
        inner = full_box(source.shape)
        for axis, other in common.items():
            inner = _on_axis(inner, other, box[axis])
        sizes = [box[axis][1] - box[axis][0] if axis in common else size for axis, size in enumerate(shape)]
        viewed = source.read(inner, leaf).reshape(sizes)
        return viewed[tuple(slice(None) if axis in common else slice(*bounds) for axis, bounds in enumerate(box))]

    return Node(shape=tuple(shape), read=read, sources=(source,))


def _computed(
    shape: Sequence[int], sources: Sequence[Node], run: Callable[[ReadLeaf], list[Tensor]], number: int
) -> Node:
    """Return one result of any other operation, which runs on whole tensors."""

    def read(box: Box, leaf: ReadLeaf) -> Tensor:
        return run(leaf)[number][tuple(slice(*bounds) for bounds in box)]

    return Node(shape=tuple(shape), read=read, sources=tuple(sources), moved=False)


# The operations on traced tensors that move entries. Each takes the arguments of the operation of torch and the results
# on the meta device, and returns one node per result.
_Results = Sequence[Tensor]


def _cat(results: _Results, tensors: Sequence[_Traced], dim: int = 0) -> list[Node]:
    return [_joined(results[0].shape, [tensor.node for tensor in tensors], dim % results[0].ndim)]


def _stack(results: _Results, tensors: Sequence[_Traced], dim: int = 0) -> list[Node]:
    axis = dim % results[0].ndim
    parts = [_viewed((*t.shape[:axis], 1, *t.shape[axis:]), t.node) for t in tensors]
    return [_joined(results[0].shape, parts, axis)]


def _split(results: _Results, tensor: _Traced, _: Any, dim: int = 0) -> list[Node]:
    axis, place, nodes = dim % tensor.ndim, 0, []
    for result in results:
        start = place

        def read(box: Box, leaf: ReadLeaf, start: int = start) -> Tensor:
            bounds = (box[axis][0] + start, box[axis][1] + start)
            return tensor.node.read(_on_axis(box, axis, bounds), leaf)

        nodes.append(Node(shape=tuple(result.shape), read=read, sources=(tensor.node,)))
        place += result.shape[axis]
    return nodes


def _transpose(results: _Results, tensor: _Traced, dim0: int, dim1: int) -> list[Node]:
    axes = dim0 % tensor.ndim, dim1 % tensor.ndim

    def read(box: Box, leaf: ReadLeaf) -> Tensor:
        return tensor.node.read(_swapped(box, *axes), leaf).transpose(*axes)

    return [Node(shape=tuple(results[0].shape), read=read, sources=(tensor.node,))]


def _view(results: _Results, tensor: _Traced, *_: Any, **__: Any) -> list[Node]:
    return [_viewed(results[0].shape, tensor.node)]


_MOVES: Mapping[str, Callable[..., list[Node]]] = {
    "cat": _cat,
    "stack": _stack,
    **dict.fromkeys(("split", "split_with_sizes"), _split),
    "transpose": _transpose,
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "squeeze", "unsqueeze", "clone", "detach", "alias"), _view),
}


class _Traced(Tensor):
    """A tensor without data that records how it is made."""

    node: Node

    @staticmethod
    def __new__(cls, node: Node, dtype: torch.dtype) -> _Traced:
        made = Tensor._make_wrapper_subclass(cls, node.shape, dtype=dtype, device=torch.device("meta"))
        made.node = node
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        kwargs = kwargs or {}
        outputs = func(*tree_map(_on_meta, args), **tree_map(_on_meta, kwargs))
        results = tree_leaves(outputs)
        move = _MOVES.get(func.overloadpacket.__name__)
        if move is not None:
            nodes = move(results, *args, **kwargs)
        else:
            sources = [value.node for value in tree_leaves((args, kwargs)) if isinstance(value, _Traced)]
            run = functools.partial(_run, func, args, kwargs)
            nodes = [_computed(result.shape, sources, run, number) for number, result in enumerate(results)]
        made = iter([cls(node, result.dtype) for node, result in zip(nodes, results, strict=True)])
        return tree_map(lambda _: next(made), outputs)


def _on_meta(value: Any) -> Any:
    return torch.empty(value.shape, dtype=value.dtype, device="meta") if isinstance(value, _Traced) else value


def _run(func: Any, args: Any, kwargs: Any, leaf: ReadLeaf) -> list[Tensor]:
    """Run an operation on the whole of its sources."""

    def read(value: Any) -> Any:
        """Read a traced tensor; other arguments stay."""
        return value.node.read(full_box(value.shape), leaf) if isinstance(value, _Traced) else value

    return tree_leaves(func(*tree_map(read, args), **tree_map(read, kwargs)))


def traced(name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return a tensor without data that stands for a stored one; what is made from it has a :class:`Node` as ``node``.

    Example:
        >>> parts = [traced(name, (2, 3), torch.float32) for name in "ab"]
        >>> [source.name for source in torch.stack(parts).node.walk() if source.name]
        ['a', 'b']
    """
    return _Traced(leaf(name, shape), dtype)
