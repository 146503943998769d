"""Weights of a model: which there are, what they are called, what they are, how to read one.

``modules`` walks a live model, ``names`` judges a state dict by names and shapes, ``architecture`` gives a Hugging Face
checkpoint the layer types of its configuration. All three make candidates; here they become rows, or are skipped with
a reason: nothing is dropped silently. ``units`` says which parameters go together when rates are assigned, ``depth``
how deep they lie.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor, nn

from tempbalance.layers.adapters import adapter_candidates
from tempbalance.layers.architecture import checkpoint_candidates
from tempbalance.layers.depth_groups import find_depth_groups
from tempbalance.layers.fused import Fused, Index
from tempbalance.layers.modules import module_candidates, wrapper_prefix
from tempbalance.layers.names import StateDict, TensorInfo, TensorStore
from tempbalance.layers.select import EMBEDDING_OFF, Select
from tempbalance.layers.sharded import is_sharded, local, mesh_ranks, refresh_fsdp, reshard, shards
from tempbalance.layers.units import Unit, find_units, parameter_names, sources_of
from tempbalance.layers.weights import KINDS, Candidate, Weight, to_weights
from tempbalance.types import Skipped

__all__ = [
    "KINDS",
    "Fused",
    "Index",
    "Select",
    "TensorInfo",
    "TensorStore",
    "Unit",
    "Weight",
    "find_depth_groups",
    "find_units",
    "find_weights",
    "is_sharded",
    "local",
    "mesh_ranks",
    "parameter_names",
    "refresh_fsdp",
    "reshard",
    "shards",
    "sources_of",
    "wrapper_prefix",
]

_NO_UPDATE = "no LoRA update on this weight (lora='update' analyses the updates alone)"


def find_weights(
    source: nn.Module | Mapping[str, Tensor] | TensorStore, select: Select | None = None, *, sharded: bool = False
) -> tuple[list[Weight], list[Skipped]]:
    """Find the weight matrices of a model.

    Every parameter with two axes or more ends up on exactly one side: as one row (or a row per part of a fused
    parameter), or skipped with a reason. Biases, norms and scalars are no weight matrices and are not listed. What the
    patterns of the selection leave out is on neither side. A live model is only read, never changed.

    Args:
        source: A live model, a state dict, or an open checkpoint.
        select: What to analyse; None for everything but embeddings.
        sharded: Whether the parameters of a live model may be DTensors; to load such a row is then a collective call.

    Returns:
        The rows and the skipped weights, both in the order of the model.

    Raises:
        SelectionError: A pattern matches no weight.

    Example:
        >>> rows, skipped = find_weights(nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 2)))
        >>> rows[0].name, rows[0].shape, skipped[0].name
        ('1.weight', (2, 4), '0.weight')
    """
    select = select or Select()
    candidates = _candidates(source, select, sharded)
    weights, skipped = _assemble(_tied(candidates), select)
    select.check([*(w.name for w in weights), *(s.name for s in skipped)])
    return [w for w in weights if select.admits(w.name)], [s for s in skipped if select.admits(s.name)]


def _candidates(
    source: nn.Module | Mapping[str, Tensor] | TensorStore, select: Select, sharded: bool
) -> list[Candidate]:
    if isinstance(source, nn.Module):
        return module_candidates(source, lora=select.lora, sharded=sharded)
    if isinstance(source, Mapping):
        source = StateDict(source)
    return adapter_candidates(source, checkpoint_candidates(source), select.lora)


def _tied(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Give each tensor to the first of its names; the others say so."""
    owners: dict[Hashable, str] = {}
    result = []
    for candidate in candidates:
        owner = candidate.tied_to
        if candidate.identity is not None and owner is None:
            owner = owners.setdefault(candidate.identity, candidate.name)
        if owner is not None and owner != candidate.name:
            candidate = replace(candidate, role=replace(candidate.role, reason=f"tied to {owner}"))  # noqa: PLW2901
        result.append(candidate)
    return result


def _assemble(candidates: Sequence[Candidate], select: Select) -> tuple[list[Weight], list[Skipped]]:
    """Rows and skipped weights of all candidates, before any pattern is applied."""
    weights: list[Weight] = []
    skipped: list[Skipped] = []
    for candidate in candidates:
        reason = candidate.role.reason
        if reason is None and candidate.role.kind == "embedding" and not select.embeddings:
            reason = EMBEDDING_OFF
        if reason is None and select.lora == "update" and candidate.role.kind != "lora":
            reason = _NO_UPDATE
        if reason is None:
            weights.extend(to_weights(candidate, split=select.split))
        else:
            skipped.append(Skipped(candidate.name, reason))
    return weights, skipped
