"""An open checkpoint."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from tempbalance.errors import CheckpointError, NotFoundError
from tempbalance.layers import Index, TensorInfo

__all__ = ["Checkpoint", "FileInfo", "Shard"]


class FileInfo(NamedTuple):
    """Identity of a file of a checkpoint.

    Attributes:
        path: Path of the file.
        size: Size in bytes.
    """

    path: Path
    size: int


class Shard(Protocol):
    """A file of named tensors, read one by one."""

    tensors: Mapping[str, TensorInfo]

    def load(self, name: str, index: Index = ()) -> Tensor:
        """Read a tensor or a part of it."""


class Checkpoint:
    """Named tensors on disk. Names, shapes and dtypes are in memory; a tensor is read by ``load``.

    Args:
        path: The file or folder.
        shards: The open files.
        config: The parsed ``config.json``, or None.
        adapter_config: The parsed ``adapter_config.json``, or None.
        files: All files of the checkpoint.
        key: Key of the state dict in a training checkpoint, if it was given.

    Raises:
        CheckpointError: Two files contain a tensor of the same name.
    """

    def __init__(
        self,
        path: Path,
        shards: Mapping[Path, Shard],
        config: Mapping[str, Any] | None,
        adapter_config: Mapping[str, Any] | None,
        files: tuple[FileInfo, ...],
        *,
        key: str | None = None,
    ) -> None:
        self.path = path
        self.config = config
        self.adapter_config = adapter_config
        self.files = files
        self.key = key
        self._shards: dict[str, tuple[Path, Shard]] = {}
        self._tensors: dict[str, TensorInfo] = {}
        for file, shard in shards.items():
            for name, info in shard.tensors.items():
                if name in self._shards:
                    raise CheckpointError(
                        f"{path}: {self._shards[name][0].name} and {file.name} both contain {name}: the folder has two "
                        "checkpoints; open one of the files instead, or all by `tempbalance track`"
                    )
                self._shards[name] = (file, shard)
                self._tensors[name] = info

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Shapes and dtypes by name, in stored order."""
        return self._tensors

    @property
    def shards(self) -> dict[Path, dict[str, TensorInfo]]:
        """Shapes and dtypes by file and name."""
        result: dict[Path, dict[str, TensorInfo]] = {}
        for name, (file, _) in self._shards.items():
            result.setdefault(file, {})[name] = self._tensors[name]
        return result

    @property
    def revision(self) -> str | None:
        """Commit of a model in the hub's cache; None for other checkpoints."""
        return self.path.name if self.path.parent.name == "snapshots" else None

    def load(self, name: str, index: Index = ()) -> Tensor:
        """Read a tensor or a part of it.

        Args:
            name: Name of the tensor.
            index: The part to read; ``()`` reads all.

        Returns:
            The tensor on the CPU, in the stored dtype, in memory of its own.

        Raises:
            NotFoundError: The checkpoint has no tensor of that name.
            CheckpointError: The checkpoint is closed, or the tensor cannot be read: the file was truncated or written
                since it was opened, or the tensor has no values there.
        """
        if name not in self._tensors:
            close = difflib.get_close_matches(name, self._tensors, n=3)
            hint = f"; did you mean {', '.join(close)}?" if close else ""
            raise NotFoundError(f"{self.path}: no tensor {name!r}{hint}")
        if name not in self._shards:
            raise CheckpointError(f"{self.path}: the checkpoint is closed; open it again")
        return self._shards[name][1].load(name, index)

    def close(self) -> None:
        """Close the files; names, shapes and dtypes remain available."""
        self._shards.clear()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.path)!r}, {len(self._tensors)} tensors)"
