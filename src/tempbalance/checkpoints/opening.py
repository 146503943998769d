"""Open a checkpoint from a path or a hub id."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from tempbalance._files import as_path, open_regular
from tempbalance.checkpoints.checkpoint import Checkpoint, FileInfo, Shard
from tempbalance.checkpoints.folder import ADAPTERS, NUMBERED, model_parts, pipeline_folders, read_json, weight_files
from tempbalance.checkpoints.gguf_file import GGUF_MAGIC, open_gguf
from tempbalance.checkpoints.hub import snapshot, split_hub_id
from tempbalance.checkpoints.safetensors_file import SafetensorsShard
from tempbalance.checkpoints.torch_file import TORCH_MAGIC, TORCH_SUFFIXES, TorchShard
from tempbalance.checkpoints.unsupported import SUPPORTED, describe_unsupported
from tempbalance.errors import CheckpointError, CorruptFileError, NotFoundError
from tempbalance.layers import Index, TensorInfo

__all__ = ["open_checkpoint"]

_logger = logging.getLogger("tempbalance")
_CONFIG, _ADAPTER_CONFIG = "config.json", "adapter_config.json"
_MODELS = frozenset({"model.safetensors", "pytorch_model.bin"})  # files that config.json describes


def open_checkpoint(
    path_or_hub_id: str | os.PathLike[str], revision: str | None = None, *, key: str | None = None
) -> Checkpoint:
    """Open a checkpoint without reading a tensor.

    Args:
        path_or_hub_id: A ``.safetensors`` or ``.gguf`` file, a PyTorch state dict, a folder (Hugging Face model,
            sharded or not; PEFT adapter; pipeline of diffusers), or a hub id ``organisation/name``, also with a folder
            or file in it and a revision, ``organisation/name/folder@revision``.
        revision: Branch, tag or commit of a hub id.
        key: Key of the state dict in a training checkpoint of PyTorch, ``"model"`` or ``"ema.state_dict"``; by default
            it is searched.

    Returns:
        The open checkpoint.

    Raises:
        NotFoundError: There is no such path or hub id.
        CheckpointError: It is not a checkpoint, or has no tensor, or no state dict under the key.
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
    components = pipeline_folders(path) if path.is_dir() else {}
    if components:
        return _open_pipeline(path, components)
    if path.is_dir():
        files, indexed = weight_files(path)
        folder, is_adapter = path, any(file.name in ADAPTERS for file in files)
        is_model = any(file.name not in ADAPTERS for file in files)
    else:
        files, indexed, folder = [path], {}, path.parent
        is_model, is_adapter = path.name in _MODELS, path.name in ADAPTERS
    needed = [folder / name for name, used in ((_CONFIG, is_model), (_ADAPTER_CONFIG, is_adapter)) if used]
    configs = {file: read_json(file) for file in needed if file.is_file()}
    shards = _open_files(files, key)
    numbered = NUMBERED.fullmatch(path.name)
    if path.is_file() and numbered is not None and int(numbered["count"]) > len(shards):
        _logger.warning("%s: only this shard of a model is read; open its folder to read all", path)
    _check_index(path, shards, indexed)
    config, adapter = configs.get(folder / _CONFIG), configs.get(folder / _ADAPTER_CONFIG)
    checkpoint = Checkpoint(path, shards, config, adapter, _file_infos((*shards, *configs)), key=key)
    if not checkpoint.tensors:
        raise CheckpointError(f"{path}: the checkpoint has no tensor")
    return checkpoint


def _open_pipeline(path: Path, components: Mapping[str, Path]) -> Checkpoint:
    """Open the components of a pipeline of diffusers as one checkpoint, with the names of the components in front."""
    shards: dict[Path, Shard] = {}
    for name, folder in components.items():
        files, indexed = weight_files(folder)
        opened = _open_files(files)
        _check_index(folder, opened, indexed)
        shards.update({file: _Component(shard, f"{name}.") for file, shard in opened.items()})
    return Checkpoint(path, shards, None, None, _file_infos(shards))


def _file_infos(files: Iterable[Path]) -> tuple[FileInfo, ...]:
    return tuple(FileInfo(file, file.stat().st_size) for file in files)


class _Component:
    """The file of a component, whose tensors have its name in front."""

    def __init__(self, shard: Shard, prefix: str) -> None:
        self._shard, self._prefix = shard, prefix
        self.tensors: Mapping[str, TensorInfo] = {f"{prefix}{name}": info for name, info in shard.tensors.items()}

    def load(self, name: str, index: Index = ()) -> Tensor:
        return self._shard.load(name.removeprefix(self._prefix), index)


def _open_files(files: Iterable[Path], key: str | None = None) -> dict[Path, Shard]:
    """Open existing files, of GGUF with all other parts of the model."""
    shards: dict[Path, Shard] = {}
    for file in files:
        if file not in shards:
            shards |= _open_file(file, key)
    return shards


def _open_file(path: Path, key: str | None) -> Mapping[Path, Shard]:
    """Open one existing file; the error for an unsupported format names it and the supported ones."""
    try:
        with open_regular(path) as file:
            head = file.read(8)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be opened: {error.strerror or error}") from error
    suffix = path.suffix.lower()
    unsupported = describe_unsupported(path, head)
    if unsupported is not None:
        raise CheckpointError(f"{path} is {unsupported}; {SUPPORTED}")
    is_gguf = suffix == ".gguf" or head.startswith(GGUF_MAGIC)
    if is_gguf or suffix == ".safetensors":
        if key is not None:
            raise CheckpointError(f"{path}: a {suffix[1:]} file has no key {key!r}; keys are for PyTorch files")
        return open_gguf(model_parts(path)) if is_gguf else {path: SafetensorsShard(path)}
    if suffix in TORCH_SUFFIXES or head.startswith(TORCH_MAGIC):
        return {path: TorchShard(path, key)}
    raise CheckpointError(f"{path} is not a checkpoint; {SUPPORTED}")


def _resolve(source: str | os.PathLike[str], revision: str | None) -> Path:
    path = as_path("source", source)
    try:
        path = path.expanduser()
        exists = path.exists()
    except (OSError, RuntimeError) as error:  # a name that is too long; a home that is not known
        raise CheckpointError(f"{path}: cannot be opened: {getattr(error, 'strerror', None) or error}") from error
    if exists:
        if revision is not None:
            raise CheckpointError(f"a revision ({revision!r}) requires a hub id, but {path} is a local path")
        return path
    name, at, named = str(source).partition("@")
    repository, part = split_hub_id(name) if isinstance(source, str) else ("", "")
    if repository:
        if at and revision is not None:
            raise CheckpointError(f"{source!r} has a revision, and another is given: {revision!r}")
        return snapshot(repository, named if at else revision, part)
    try:
        near = difflib.get_close_matches(path.name, os.listdir(path.parent), n=3)
    except OSError:
        near = []
    parent = next(p for p in path.absolute().parents if p.exists())
    hint = f"did you mean {' or '.join(str(path.parent / n) for n in near)}?" if near else f"looked in {parent}"
    raise NotFoundError(f"there is no file or folder {path}; {hint}; a hub id has the form organisation/name")


def _check_index(path: Path, shards: Mapping[Path, Shard], indexed: Mapping[str, str]) -> None:
    stored = {file.name: shard.tensors for file, shard in shards.items()}
    missing = [(name, file) for name, file in indexed.items() if name not in stored[file]]
    if missing:
        name, file = missing[0]
        raise CorruptFileError(
            f"{path}: {len(missing)} tensor(s) of the index are not in their shards, such as {name} in {file}; "
            "download or copy the folder again"
        )
