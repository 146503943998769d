"""Write pruned models: a folder of dense safetensors that ``from_pretrained`` loads, with ``allocation.json``."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections.abc import Callable, Collection, Hashable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tempbalance._files import as_path, atomic_folder
from tempbalance._progress import progress_bar
from tempbalance.checkpoints import Checkpoint, open_checkpoint
from tempbalance.checkpoints.folder import copy_non_weights
from tempbalance.checkpoints.safetensors_file import write_safetensors
from tempbalance.compress.allocation import Allocation
from tempbalance.compress.pruning.masks import magnitude_scores
from tempbalance.compress.pruning.pruner import warn_of_other_criterion
from tempbalance.compress.pruning.targets import Target, find_targets, stored_names
from tempbalance.errors import AllocationError
from tempbalance.layers import Weight

__all__ = ["ALLOCATION_FILE", "prune_checkpoint", "save_folder", "save_pruned"]

ALLOCATION_FILE = "allocation.json"
_GENERATION = "generation_config.json"


def prune_checkpoint(
    source: Checkpoint | str | os.PathLike[str],
    allocation: Allocation,
    out: str | os.PathLike[str],
    *,
    partial: bool = False,
    exclude: Collection[Path] = (),
    progress: bool = True,
) -> dict[str, float]:
    """Prune a checkpoint by magnitude, file by file, with one tensor in memory at a time.

    Args:
        source: A checkpoint: a folder (sharded or not), a file, or a hub id.
        allocation: An allocation of sparsity, from an analysis of this checkpoint.
        out: Folder to write, atomically; an earlier output there is replaced. It contains safetensors, the config and
            tokenizer files, and ``allocation.json``.
        partial: Whether less than 90 % of the weights inside the blocks may be in the allocation.
        exclude: Files beside the weights that are not copied, such as calibration text.
        progress: Whether to show a progress bar (on a terminal only).

    Returns:
        The fraction of zeros of each weight of the allocation, by name.

    Raises:
        AllocationError: The allocation is for another model, covers too little of this one, or has N:M sparsity, which
            needs a loaded model.
        CheckpointError: The source cannot be read, or the folder cannot be written; an earlier output is then kept.

    Example:
        >>> import tempfile, torch
        >>> import tempbalance as tb
        >>> folder = Path(tempfile.mkdtemp())
        >>> torch.save({"a": torch.arange(1.0, 65.0).view(8, 8), "b": torch.ones(8)}, folder / "model.pt")
        >>> allocation = tb.allocate_sparsity(tb.analyze(folder / "model.pt"), sparsity=0.25)
        >>> prune_checkpoint(folder / "model.pt", allocation, folder / "pruned")
        {'a': 0.25}
        >>> sorted(path.name for path in (folder / "pruned").iterdir())
        ['allocation.json', 'model.safetensors']
    """
    if allocation.group is not None:
        raise AllocationError("N:M sparsity needs the input axis, which a file lacks: load the model and use prune()")
    if not partial:
        allocation.check_coverage()
    warn_of_other_criterion(allocation, "magnitude")
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source)
    targets: dict[str, list[tuple[str, Target]]] = {}  # the name that its target knows a tensor by
    tied = _tied_names(checkpoint)
    for target in find_targets(checkpoint, allocation, lambda weight: _is_stored(weight, checkpoint)):
        for name in stored_names(target.weight):
            for other in tied.get(checkpoint.tensors[name].identity, [name]):
                targets.setdefault(other, []).append((name, target))
    achieved: dict[str, float] = {}

    def load(name: str) -> Tensor:
        """Load a tensor, pruned if it is in the allocation."""
        tensor = checkpoint.load(name)
        if name in targets:
            tensor = tensor.contiguous()  # it may be stored transposed
        for known, target in targets.get(name, ()):
            achieved[target.name] = target.prune_stored(known, tensor, magnitude_scores)
        return tensor

    with (
        atomic_folder(as_path("out", out), ALLOCATION_FILE) as folder,
        progress_bar("writing", len(checkpoint.tensors), progress) as advance,
    ):
        files: dict[str, str] = {}
        for file, tensors in checkpoint.shards.items():
            name = re.sub(r"^pytorch_model(?=\b)", "model", file.stem) + ".safetensors"
            write_safetensors(folder / name, tensors, load)
            files.update(dict.fromkeys(tensors, name))
            advance(len(tensors))
        if len(checkpoint.shards) > 1:
            size = sum(math.prod(info.shape) * info.dtype.itemsize for info in checkpoint.tensors.values())
            index = {"metadata": {"total_size": size}, "weight_map": files}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
        if checkpoint.path.is_dir():
            copy_non_weights(checkpoint.path, folder, exclude)
        allocation.save(folder / ALLOCATION_FILE)
    return {name: achieved[name] for name in allocation}


def _tied_names(checkpoint: Checkpoint) -> dict[Hashable, list[str]]:
    """Return the names of each stored tensor by its identity; tied ones have several."""
    names: dict[Hashable, list[str]] = {}
    for name, info in checkpoint.tensors.items():
        if info.identity is not None:
            names.setdefault(info.identity, []).append(name)
    return names


def _is_stored(weight: Weight, checkpoint: Checkpoint) -> bool:
    """Return whether each entry of a weight is an entry of a tensor on disk."""
    names = stored_names(weight)
    return bool(names) and checkpoint.tensors.keys() >= {*names}


@contextlib.contextmanager
def _valid_generation_config(model: nn.Module, folder: Path, source: str | os.PathLike[str] | None) -> Iterator[None]:
    """Set the generation settings aside while a model is saved, if those of its source will be copied as they are.

    Transformers refuses to save settings such as a temperature without sampling, which Vicuna's folder has.
    """
    own: Any = getattr(model, "generation_config", None)
    if own is None or source is None or not (Path(source) / _GENERATION).is_file():
        yield
        return
    model.generation_config = type(own)()
    try:
        yield
    finally:
        model.generation_config = own
    (folder / _GENERATION).unlink(missing_ok=True)


def save_pruned(
    model: nn.Module,
    allocation: Allocation,
    out: str | os.PathLike[str],
    source: str | os.PathLike[str] | None = None,
    *,
    exclude: Collection[Path] = (),
) -> None:
    """Save a pruned Hugging Face model with ``allocation.json``, atomically.

    Args:
        model: A model with ``save_pretrained``.
        allocation: The allocation that it was pruned by.
        out: Folder to write; an earlier output there is replaced.
        source: Folder of the original model, to copy the tokenizer from.
        exclude: Files in this folder that are not copied, such as calibration text.

    Raises:
        AllocationError: The model has no ``save_pretrained``.
        CheckpointError: The folder cannot be written; an earlier output is then kept.
    """
    save_folder(model, out, source, (ALLOCATION_FILE, allocation.save), exclude)


def save_folder(
    model: nn.Module,
    out: str | os.PathLike[str],
    source: str | os.PathLike[str] | None,
    record: tuple[str, Callable[[Path], None]],
    exclude: Collection[Path] = (),
) -> None:
    """Save a Hugging Face model with a record: the name of a file that marks a replaceable output, and its writer."""
    name, write = record
    save: Any = getattr(model, "save_pretrained", None)
    if save is None:
        raise AllocationError(f"{type(model).__name__} has no save_pretrained: save its state dict and {name} yourself")
    with atomic_folder(as_path("out", out), name) as folder:
        with _valid_generation_config(model, folder, source):
            save(folder)
        if source is not None and Path(source).is_dir():
            copy_non_weights(Path(source), folder, exclude)
        write(folder / name)
