"""Read a parameter from the tensors on disk that it consists of."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tempbalance.layers.fused import Index, Reader
from tempbalance.layers.traced_tensors import Box, Node, ReadLeaf, full_box, leaf

if TYPE_CHECKING:
    from tempbalance.layers.names import TensorStore

__all__ = ["StoredTensor", "is_mapping", "mapping"]

_MAPPING = ContextVar("tempbalance_mapping", default=False)


@contextlib.contextmanager
def mapping() -> Iterator[None]:
    """Map tensors from their files inside the block, for code that needs all of a model and reads little of it."""
    token = _MAPPING.set(True)
    try:
        yield
    finally:
        _MAPPING.reset(token)


def is_mapping() -> bool:
    """Return whether tensors are to be mapped."""
    return _MAPPING.get()


class StoredTensor:
    """Reads a parameter that a checkpoint stores whole, in parts, or as a part of another tensor.

    Args:
        store: The checkpoint.
        node: How the parameter is made of stored tensors; or the name of the stored tensor that it is.
        tied: The same for all names under which it is stored, if it is tied.

    Attributes:
        names: Names of the stored tensors that it consists of, under all names.
        whole: Whether it is one stored tensor, unchanged.
        moved: Whether each entry is an entry of a stored tensor.
        quantisation: Format and bits of the quantised weights that it consists of; empty if there is none.
    """

    def __init__(self, store: TensorStore, node: Node | str, tied: Sequence[Node] = ()) -> None:
        self._store = store
        self._node = leaf(node, store.tensors[node].shape) if isinstance(node, str) else node
        nodes = [self._node, *(other for other in tied if other is not self._node)]
        self._homes = {source.name: node for node in nodes for source in node.walk() if source.name}
        self.names = tuple(self._homes)
        self.whole = all(node.name for node in nodes)
        formats = dict.fromkeys(store.tensors[name].quantisation for name in self.names)
        self.quantisation = "; ".join(filter(None, formats))
        self.moved = not self.quantisation and all(source.moved for node in nodes for source in node.walk())

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the parameter."""
        return self._node.shape

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the parameter; the widest, if it consists of tensors with several."""
        dtypes = [self._store.tensors[source.name].dtype for source in self._node.walk() if source.name]
        return max(dtypes, key=lambda dtype: dtype.itemsize)

    def __call__(self, index: Index = ()) -> Tensor:
        """Read the parameter, or the part of it at an index."""
        name = self._node.name
        return self._store.load(name, index) if name else self._read(self._node, index, self._load)

    def names_of(self, cut: Callable[[Reader], Tensor]) -> tuple[str, ...]:
        """Return the names of the stored tensors that a part consists of, which ``cut`` reads, under all names."""
        found: dict[str, None] = {}

        def record(name: str, box: Box) -> Tensor:
            """Note a stored tensor, and return one without data."""
            found[name] = None
            return torch.empty([stop - start for start, stop in box], device="meta")

        for node in dict.fromkeys(self._homes.values()):
            cut(functools.partial(self._read, node, load=record))
        return tuple(found)

    def positions(self, name: str) -> Reader:
        """Return the reader of the position (int64) of each entry in a stored tensor; -1 if it is in another one."""
        return functools.partial(self._read, self._homes[name], load=functools.partial(self._positions, name))

    def _read(self, node: Node, index: Index, load: ReadLeaf) -> Tensor:
        """Read the box around an index, and drop the axes at which the index is a number."""
        box = list(full_box(self.shape))
        for axis, entry in enumerate(index):
            size = self.shape[axis]
            start, stop, _ = (slice(entry % size, entry % size + 1) if isinstance(entry, int) else entry).indices(size)
            box[axis] = (start, max(start, stop))
        part = node.read(tuple(box), load)
        return part[tuple(0 if isinstance(entry, int) else slice(None) for entry in index)]

    def _load(self, name: str, box: Box) -> Tensor:
        whole = box == full_box(self._store.tensors[name].shape)
        return self._store.load(name, () if whole else tuple(slice(*bounds) for bounds in box))

    def _positions(self, stored: str, name: str, box: Box) -> Tensor:
        sizes = [stop - start for start, stop in box]
        if name != stored:
            return torch.full(sizes, -1)
        result, stride = torch.zeros(sizes, dtype=torch.int64), 1
        for axis in reversed(range(len(box))):
            along = torch.arange(*box[axis]) * stride
            result += along.view(-1, *(1,) * (len(box) - axis - 1))
            stride *= self._store.tensors[name].shape[axis]
        return result
