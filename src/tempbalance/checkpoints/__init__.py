"""Checkpoints on disk or hub, tensor by tensor: never more than one weight in memory."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from torch import Tensor

from tempbalance.checkpoints.folder import read_json, weight_files
from tempbalance.checkpoints.hub import is_hub_id, snapshot
from tempbalance.checkpoints.shards import Shard, open_shard
from tempbalance.errors import CheckpointError, CorruptFileError, NotFoundError
from tempbalance.layers import Index, TensorInfo

__all__ = ["Checkpoint", "FileInfo", "open_checkpoint"]

_CONFIG, _ADAPTER_CONFIG = "config.json", "adapter_config.json"
# A single file of one of these names is the whole model, so the configuration beside it describes it.
_WHOLE = frozenset({"model.safetensors", "pytorch_model.bin"})
_ADAPTERS = frozenset({"adapter_model.safetensors", "adapter_model.bin"})


class FileInfo(NamedTuple):
    """A file that a checkpoint was read from, for a fingerprint.

    Attributes:
        path: Its path.
        size: Its size in bytes.
        mtime: Time of its last change, in seconds.
    """

    path: Path
    size: int
    mtime: float


class Checkpoint:
    """Named tensors on disk: names, shapes and dtypes are known, numbers are read when asked for.

    Args:
        path: The file or folder.
        shards: The open files.
        config: The parsed ``config.json``, if any.
        adapter_config: The parsed ``adapter_config.json``, if any.
        files: All files involved.
    """

    def __init__(
        self,
        path: Path,
        shards: Mapping[Path, Shard],
        config: Mapping[str, Any] | None,
        adapter_config: Mapping[str, Any] | None,
        files: tuple[FileInfo, ...],
    ) -> None:
        """Merge the shards, which share no name.

        Raises:
            CheckpointError: Two files hold a tensor of the same name.
        """
        self.path = path
        self.config = config
        self.adapter_config = adapter_config
        self.files = files
        self._homes: dict[str, tuple[Path, Shard]] = {}
        self._tensors: dict[str, TensorInfo] = {}
        for file, shard in shards.items():
            for name, info in shard.tensors.items():
                if name in self._homes:
                    raise CheckpointError(
                        f"{path}: {self._homes[name][0].name} and {file.name} both hold {name}: they are two "
                        "checkpoints in one folder; open one of the files instead"
                    )
                self._homes[name] = (file, shard)
                self._tensors[name] = info

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Names in stored order, with shapes and dtypes; nothing is read."""
        return self._tensors

    @property
    def shards(self) -> dict[Path, dict[str, TensorInfo]]:
        """The tensors of each file."""
        result: dict[Path, dict[str, TensorInfo]] = {}
        for name, (file, _) in self._homes.items():
            result.setdefault(file, {})[name] = self._tensors[name]
        return result

    @property
    def revision(self) -> str | None:
        """Commit of a model in the cache of the hub; None for any other."""
        return self.path.name if self.path.parent.name == "snapshots" else None

    def load(self, name: str, index: Index = ()) -> Tensor:
        """Read one tensor, or the part of it at an index.

        Args:
            name: Name of the tensor.
            index: Which part, ``()`` for all of it.

        Returns:
            The tensor on the CPU, in the stored dtype. It is mapped from the file where the format allows it: drop it
            and the memory is free.

        Raises:
            NotFoundError: The checkpoint holds no tensor of that name.
            CheckpointError: The checkpoint is closed.
        """
        if name not in self._tensors:
            close = difflib.get_close_matches(name, self._tensors, n=3)
            raise NotFoundError(
                f"{self.path}: no tensor {name!r}" + (f"; did you mean {', '.join(close)}?" if close else "")
            )
        if name not in self._homes:
            raise CheckpointError(f"{self.path}: the checkpoint is closed; open it again")
        return self._homes[name][1].load(name, index)

    def close(self) -> None:
        """Let go of the files; names, shapes and dtypes stay known."""
        self._homes.clear()

    def __enter__(self) -> Checkpoint:
        """Enter a ``with`` block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close at the end of a ``with`` block."""
        self.close()

    def __repr__(self) -> str:
        """One line: where it is, how many tensors."""
        return f"Checkpoint({str(self.path)!r}, {len(self._tensors)} tensors)"


def open_checkpoint(path_or_hub_id: str | os.PathLike[str], revision: str | None = None) -> Checkpoint:
    """Open a checkpoint without reading any tensor.

    Args:
        path_or_hub_id: A ``.safetensors`` file, a PyTorch state dict, a folder (Hugging Face model, sharded or not;
            PEFT adapter), or a hub id ``organisation/name``.
        revision: Branch, tag or commit of a hub id.

    Returns:
        The open checkpoint.

    Raises:
        NotFoundError: There is no such path or hub id.
        CheckpointError: It is not a checkpoint, or holds no tensor.
        CorruptFileError: A file is truncated, or an index and its shards disagree.

    Example:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> path = Path(tempfile.mkdtemp()) / "model.pt"
        >>> torch.save({"weight": torch.zeros(3, 2)}, path)
        >>> open_checkpoint(path).tensors["weight"].shape
        (3, 2)
    """
    path = _resolve(path_or_hub_id, revision)
    if path.is_dir():
        files, promised = weight_files(path)
        folder, adapter = path, any(file.name in _ADAPTERS for file in files)
        whole = any(file.name not in _ADAPTERS for file in files)
    else:
        files, promised, folder = [path], {}, path.parent
        whole, adapter = path.name in _WHOLE, path.name in _ADAPTERS
    config, config_files = _read_config(folder / _CONFIG, wanted=whole)
    adapter_config, adapter_files = _read_config(folder / _ADAPTER_CONFIG, wanted=adapter)
    shards = {file: open_shard(file) for file in files}
    _check_promises(path, shards, promised)
    infos = tuple(_file_info(file) for file in (*files, *config_files, *adapter_files))
    checkpoint = Checkpoint(path, shards, config, adapter_config, infos)
    if not checkpoint.tensors:
        raise CheckpointError(f"{path}: the checkpoint holds no tensor")
    return checkpoint


def _resolve(source: str | os.PathLike[str], revision: str | None) -> Path:
    """The existing path that is meant."""
    path = Path(source).expanduser()
    if path.exists():
        if revision is not None:
            raise CheckpointError(f"a revision ({revision!r}) belongs to a hub id, but {path} is a path here")
        return path
    if isinstance(source, str) and is_hub_id(source):
        return snapshot(source, revision)
    try:
        near = difflib.get_close_matches(path.name, os.listdir(path.parent), n=3)
    except OSError:
        near = []
    parent = next(p for p in path.absolute().parents if p.exists())
    hint = f"did you mean {' or '.join(str(path.parent / n) for n in near)}?" if near else f"looked in {parent}"
    raise NotFoundError(f"there is no file or folder {path}; {hint}; a hub id has the form organisation/name")


def _read_config(path: Path, *, wanted: bool) -> tuple[dict[str, Any] | None, list[Path]]:
    if wanted and path.is_file():
        return read_json(path), [path]
    return None, []


def _file_info(path: Path) -> FileInfo:
    stat = path.stat()
    return FileInfo(path, stat.st_size, stat.st_mtime)


def _check_promises(path: Path, shards: Mapping[Path, Shard], promised: Mapping[str, str]) -> None:
    """Make sure that every shard holds what the index says it does."""
    held = {file.name: shard.tensors for file, shard in shards.items()}
    broken = [(name, file) for name, file in promised.items() if name not in held[file]]
    if broken:
        name, file = broken[0]
        raise CorruptFileError(
            f"{path}: the index promises {len(broken)} tensor(s) that their shards do not hold, such as {name} in "
            f"{file}; download or copy the folder again"
        )
