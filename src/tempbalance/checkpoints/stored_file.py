"""Read a tensor from its place in a file. It is read, not mapped: a mapped file that shrinks kills the process."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tempbalance.errors import CheckpointError, CorruptFileError
from tempbalance.layers import Index
from tempbalance.layers.stored import is_mapping

__all__ = ["Place", "StoredFile", "contiguous_stride"]


def contiguous_stride(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of a contiguous tensor, in numbers."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


class Place(NamedTuple):
    """The place of a tensor in a file."""

    start: int  # position of its first number, in bytes
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]  # distance of neighbours on each axis, in numbers

    @property
    def size(self) -> int:
        """Number of bytes from the first to the last number."""
        if 0 in self.shape:
            return 0
        return self.dtype.itemsize * (1 + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True)))

    def at(self, index: Index) -> Place:
        """Return the place of the part of the tensor at an index."""
        start, shape, stride = self.start, [], []
        for axis, (size, step) in enumerate(zip(self.shape, self.stride, strict=True)):
            entry = index[axis] if axis < len(index) else slice(None)
            chosen = range(size)[entry]
            first = chosen if isinstance(chosen, int) else chosen.start
            start += first * step * self.dtype.itemsize
            if not isinstance(chosen, int):
                shape.append(len(chosen))
                stride.append(step * chosen.step)
        return Place(start, self.dtype, tuple(shape), tuple(stride))


class StoredFile:
    """A file that is opened for each read. If it was written in between, the read raises."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mapped: Tensor | None = None
        try:
            self._stamp = _stamp(path.stat())
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be opened: {error.strerror or error}") from error

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self._stamp[0]

    def read(self, place: Place, *, swap: bool = False) -> Tensor:
        """Return the tensor at a place, in memory of its own; ``swap`` if its bytes have the other order.

        Raises:
            CorruptFileError: The file is too short, or has changed.
            CheckpointError: The file cannot be read.
        """
        if is_mapping() and place.size and place.start % place.dtype.itemsize == 0 and not swap:
            return self._map(place)
        data = torch.empty(place.size, dtype=torch.uint8)
        left = memoryview(data.numpy())  # type: ignore[arg-type]
        try:
            with self._path.open("rb", buffering=0) as file:
                file.seek(place.start)
                while left and (count := file.readinto(left)):  # a read has at most 2 GB
                    left = left[count:]
                changed = _stamp(os.fstat(file.fileno())) != self._stamp
        except OSError as error:
            raise CheckpointError(f"{self._path}: cannot be read: {error.strerror or error}") from error
        if left:
            raise CorruptFileError(f"{self._path} is truncated: download or copy it again")
        if changed:
            raise CorruptFileError(f"{self._path} has changed since it was opened: run again when it is complete")
        if swap:
            data.untyped_storage().byteswap(place.dtype)  # type: ignore[no-untyped-call]
        return data.view(place.dtype).as_strided(place.shape, place.stride)

    def _map(self, place: Place) -> Tensor:
        if self._mapped is None:
            self._mapped = torch.from_file(str(self._path), shared=False, size=self.size, dtype=torch.uint8)
        storage = self._mapped.untyped_storage()
        return torch.empty(0, dtype=place.dtype).set_(
            storage, place.start // place.dtype.itemsize, place.shape, place.stride
        )


def _stamp(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_size, stat.st_mtime_ns
