"""Pruned models on disk: a folder of dense safetensors with zeros that ``from_pretrained`` loads, and the plan."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tempbalance._progress import progress_bar
from tempbalance.checkpoints import Checkpoint, open_checkpoint
from tempbalance.checkpoints.writing import copy_beside, whole_folder, write_safetensors
from tempbalance.compress.pruning.masks import magnitude_scores
from tempbalance.compress.pruning.targets import Target, find_targets, write_zeros
from tempbalance.compress.sparsity import Allocation
from tempbalance.errors import AllocationError

__all__ = ["PLAN", "prune_checkpoint", "save_folder", "save_pruned"]

PLAN = "allocation.json"


def prune_checkpoint(
    source: Checkpoint | str | os.PathLike[str],
    allocation: Allocation,
    out: str | os.PathLike[str],
    *,
    progress: bool = True,
) -> dict[str, float]:
    """Prune a checkpoint by magnitude, file by file, with one tensor in memory at a time.

    Args:
        source: A checkpoint: a folder (sharded or not), a file, a hub id.
        allocation: The plan, from an analysis of this checkpoint.
        out: Folder to write, whole or not at all; an earlier output there is replaced. It gets safetensors, what lies
            beside the weights (configuration, tokenizer), and the plan as ``allocation.json``.
        progress: Whether to show a progress bar (only ever on a terminal).

    Returns:
        The share of zeros that each weight of the plan now has, by name.

    Raises:
        AllocationError: The plan is for another model, or has N:M sparsity, for which the model has to be loaded.
        CheckpointError: The source cannot be read, or the folder cannot be written; what was there stays.

    Example:
        >>> import tempfile, torch
        >>> import tempbalance as tb
        >>> folder = Path(tempfile.mkdtemp())
        >>> torch.save({"a": torch.arange(1.0, 65.0).view(8, 8), "b": torch.ones(8)}, folder / "model.pt")
        >>> plan = tb.allocate_sparsity(tb.analyze(folder / "model.pt"), sparsity=0.25)
        >>> prune_checkpoint(folder / "model.pt", plan, folder / "pruned")
        {'a': 0.25}
        >>> sorted(path.name for path in (folder / "pruned").iterdir())
        ['allocation.json', 'model.safetensors']
    """
    if allocation.group is not None:
        raise AllocationError("N:M sparsity needs to know which axis is the input: load the model and prune that")
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source)
    targets: dict[str, list[Target]] = {}
    for target in find_targets(checkpoint, allocation, checkpoint.tensors):
        targets.setdefault(target.weight.parameter, []).append(target)
    pruning = _Pruning(checkpoint, targets)
    with whole_folder(Path(out), PLAN) as folder, progress_bar("writing", len(checkpoint.tensors), progress) as advance:
        files: dict[str, str] = {}
        for file, tensors in checkpoint.shards.items():
            name = _safetensors_name(file)
            write_safetensors(folder / name, tensors, pruning.load)
            files.update(dict.fromkeys(tensors, name))
            advance(len(tensors))
        if len(checkpoint.shards) > 1:
            size = sum(math.prod(info.shape) * info.dtype.itemsize for info in checkpoint.tensors.values())
            index = {"metadata": {"total_size": size}, "weight_map": files}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
        if checkpoint.path.is_dir():
            copy_beside(checkpoint.path, folder)
        allocation.save(folder / PLAN)
    return {name: pruning.achieved[name] for name in allocation}


class _Pruning:
    """Gives the tensors of a checkpoint as they are to be written, and keeps count."""

    def __init__(self, checkpoint: Checkpoint, targets: Mapping[str, list[Target]]) -> None:
        self._checkpoint = checkpoint
        self._targets = targets
        self.achieved: dict[str, float] = {}

    def load(self, name: str) -> Tensor:
        """A tensor, pruned if the plan says so."""
        tensor = self._checkpoint.load(name)
        if name not in self._targets:
            return tensor
        tensor = tensor.clone()  # what was read is mapped from the file
        for target in self._targets[name]:
            mask = target.choose(magnitude_scores(target.weight.within(tensor)))
            write_zeros(tensor, target.weight, mask)
            self.achieved[target.name] = float((target.weight.within(tensor) == 0).double().mean())
        return tensor


def _safetensors_name(file: Path) -> str:
    """What a file of weights is called as safetensors."""
    return re.sub(r"^pytorch_model(?=\b)", "model", file.stem) + ".safetensors"


def save_pruned(
    model: nn.Module,
    allocation: Allocation,
    out: str | os.PathLike[str],
    source: str | os.PathLike[str] | None = None,
) -> None:
    """Save a pruned Hugging Face model with its plan, whole or not at all.

    Args:
        model: A model with ``save_pretrained``.
        allocation: The plan that it was pruned by.
        out: Folder to write; an earlier output there is replaced.
        source: Folder that the model came from: its tokenizer is copied.

    Raises:
        AllocationError: The model has no ``save_pretrained``.
        CheckpointError: The folder cannot be written; what was there stays.
    """
    save_folder(model, out, source, (PLAN, allocation.save))


def save_folder(
    model: nn.Module,
    out: str | os.PathLike[str],
    source: str | os.PathLike[str] | None,
    record: tuple[str, Callable[[Path], None]],
) -> None:
    """Save a Hugging Face model with a record of how it came about, whole or not at all.

    Args:
        model: A model with ``save_pretrained``.
        out: Folder to write; an earlier output there, known by its record, is replaced.
        source: Folder that the model came from: what lies beside its weights is copied.
        record: Name of the file with the record, and what writes it.

    Raises:
        AllocationError: The model has no ``save_pretrained``.
        CheckpointError: The folder cannot be written; what was there stays.
    """
    name, write = record
    save: Any = getattr(model, "save_pretrained", None)
    if save is None:
        raise AllocationError(f"{type(model).__name__} has no save_pretrained: save its state dict and {name}")
    with whole_folder(Path(out), name) as folder:
        save(folder)
        if source is not None and Path(source).is_dir():
            copy_beside(Path(source), folder)
        write(folder / name)
