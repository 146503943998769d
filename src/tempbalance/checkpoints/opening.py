"""Open a checkpoint from a path or a hub id."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tempbalance.checkpoints.checkpoint import Checkpoint, FileInfo
from tempbalance.checkpoints.folder import read_json, weight_files
from tempbalance.checkpoints.hub import is_hub_id, snapshot
from tempbalance.checkpoints.shards import Shard, open_shard
from tempbalance.errors import CheckpointError, CorruptFileError, NotFoundError

__all__ = ["open_checkpoint"]

_CONFIG, _ADAPTER_CONFIG = "config.json", "adapter_config.json"
_MODELS = frozenset({"model.safetensors", "pytorch_model.bin"})  # a file of such a name belongs to the config.json
_ADAPTERS = frozenset({"adapter_model.safetensors", "adapter_model.bin"})


def open_checkpoint(path_or_hub_id: str | os.PathLike[str], revision: str | None = None) -> Checkpoint:
    """Open a checkpoint without reading a tensor.

    Args:
        path_or_hub_id: A ``.safetensors`` file, a PyTorch state dict, a folder (Hugging Face model, sharded or not;
            PEFT adapter), or a hub id ``organisation/name``.
        revision: Branch, tag or commit of a hub id.

    Returns:
        The open checkpoint.

    Raises:
        NotFoundError: There is no such path or hub id.
        CheckpointError: It is not a checkpoint, or has no tensor.
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
        files, indexed = weight_files(path)
        folder, is_adapter = path, any(file.name in _ADAPTERS for file in files)
        is_model = any(file.name not in _ADAPTERS for file in files)
    else:
        files, indexed, folder = [path], {}, path.parent
        is_model, is_adapter = path.name in _MODELS, path.name in _ADAPTERS
    config, config_files = _read_config(folder / _CONFIG, is_model)
    adapter_config, adapter_files = _read_config(folder / _ADAPTER_CONFIG, is_adapter)
    shards = {file: open_shard(file) for file in files}
    _check_index(path, shards, indexed)
    infos = tuple(_file_info(file) for file in (*files, *config_files, *adapter_files))
    checkpoint = Checkpoint(path, shards, config, adapter_config, infos)
    if not checkpoint.tensors:
        raise CheckpointError(f"{path}: the checkpoint has no tensor")
    return checkpoint


def _resolve(source: str | os.PathLike[str], revision: str | None) -> Path:
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


def _read_config(path: Path, needed: bool) -> tuple[dict[str, Any] | None, list[Path]]:
    if needed and path.is_file():
        return read_json(path), [path]
    return None, []


def _file_info(path: Path) -> FileInfo:
    stat = path.stat()
    return FileInfo(path, stat.st_size, stat.st_mtime)


def _check_index(path: Path, shards: Mapping[Path, Shard], indexed: Mapping[str, str]) -> None:
    stored = {file.name: shard.tensors for file, shard in shards.items()}
    missing = [(name, file) for name, file in indexed.items() if name not in stored[file]]
    if missing:
        name, file = missing[0]
        raise CorruptFileError(
            f"{path}: {len(missing)} tensor(s) of the index are not in their shards, such as {name} in {file}; "
            "download or copy the folder again"
        )
