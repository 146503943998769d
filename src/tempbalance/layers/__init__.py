"""Find the weight matrices of a model, their names and kinds, and how to read them.

``modules`` walks a live model, ``names`` classifies the tensors of a state dict by name and shape, and ``architecture``
uses the layer types in the configuration of a Hugging Face checkpoint. All three return candidates, which become rows
here or are skipped with a reason; none is dropped silently. ``units`` groups parameters that get one learning rate, and
``depth_groups`` groups parameters by depth.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor, nn

from tempbalance.layers.averages import find_averages
from tempbalance.layers.coverage import measure_size
from tempbalance.layers.depth_groups import find_depth_groups
from tempbalance.layers.fused import Fused, Index
from tempbalance.layers.layer_candidates import find_candidates, first_and_last, first_convolution, open_store
from tempbalance.layers.names import TensorInfo, TensorStore
from tempbalance.layers.parameter_roles import ROLES, ParameterFacts, describe_parameters, find_role_units, find_roles
from tempbalance.layers.select import EMBEDDING_OFF, Select
from tempbalance.layers.sharded import (
    full_tensor,
    is_sharded,
    local_tensor,
    mesh_ranks,
    num_shards,
    refresh_fsdp,
    reshard,
)
from tempbalance.layers.stored import StoredTensor
from tempbalance.layers.units import Norm, Unit, find_norms, find_units, parameter_names, source_parameters
from tempbalance.layers.weights import KINDS, Candidate, Weight, to_weights
from tempbalance.layers.wrappers import plain_modules, unwrapped
from tempbalance.types import ModelSize, Skipped

__all__ = [
    "KINDS",
    "ROLES",
    "FoundWeights",
    "Fused",
    "Index",
    "Norm",
    "ParameterFacts",
    "Select",
    "StoredTensor",
    "TensorInfo",
    "TensorStore",
    "Unit",
    "Weight",
    "describe_parameters",
    "find_depth_groups",
    "find_norms",
    "find_role_units",
    "find_roles",
    "find_units",
    "find_weights",
    "find_weights_and_size",
    "first_and_last",
    "full_tensor",
    "is_sharded",
    "local_tensor",
    "mesh_ranks",
    "num_shards",
    "parameter_names",
    "plain_modules",
    "refresh_fsdp",
    "reshard",
    "source_parameters",
    "unwrapped",
]

_NO_UPDATE = "no LoRA update on this weight (lora='update' analyses the updates alone)"


def find_weights(
    source: nn.Module | Mapping[str, Tensor] | TensorStore, select: Select | None = None, *, sharded: bool = False
) -> tuple[list[Weight], list[Skipped]]:
    """Find the weight matrices of a model.

    Every parameter with two axes or more is either one row (or one row per part of a fused parameter), or skipped with
    a reason. Biases, norms and scalars are not weight matrices and are in neither list, nor are weights that the
    patterns of the selection exclude. A live model is not changed.

    Args:
        source: A live model, a state dict, or an open checkpoint.
        select: Weights to analyse; None for everything except embeddings.
        sharded: Whether the parameters of a live model may be DTensors; loading such a row is a collective.

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
    weights, skipped = _admitted(*_assemble(find_candidates(source, select, sharded), select), select)
    return weights, [Skipped(candidate.name, reason) for candidate, reason in skipped]


class FoundWeights(NamedTuple):
    """The weight matrices of a model, and what depends on all of its parameters.

    Attributes:
        weights: The rows, as from ``find_weights``.
        skipped: The skipped weights, as from ``find_weights``.
        size: The size of the model.
        roles: The role of each row, by name.
    """

    weights: list[Weight]
    skipped: list[Skipped]
    size: ModelSize
    roles: dict[str, str]


def find_weights_and_size(source: nn.Module | Mapping[str, Tensor] | TensorStore, select: Select) -> FoundWeights:
    """Find the weight matrices of a model and their roles, and count its parameters.

    Args:
        source: A live model, a state dict, or an open checkpoint.
        select: Weights to analyse.

    Returns:
        The rows and the skipped weights as from ``find_weights``, the size of the model, and the roles of the rows.

    Raises:
        SelectionError: A pattern matches no weight.

    Example:
        >>> find_weights_and_size(nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 2)), Select()).size
        ModelSize(parameters=46, weights=8, block_weights=0)
    """
    opened = source if isinstance(source, nn.Module) else open_store(source)
    candidates = find_candidates(opened, select, False)
    every, others = _assemble(candidates, select)
    weights, skipped = _admitted(every, others, select)
    size = measure_size(opened, weights, skipped, find_averages(candidates))
    stem = first_convolution(candidates) if any(weight.kind.startswith("conv") for weight in every) else None
    roles = find_roles(every, stem)  # they depend on all
    return FoundWeights(
        weights,
        [Skipped(candidate.name, reason) for candidate, reason in skipped],
        size,
        {weight.name: roles[weight.name] for weight in weights},
    )


_Skipped = list[tuple[Candidate, str]]


def _admitted(weights: Sequence[Weight], skipped: _Skipped, select: Select) -> tuple[list[Weight], _Skipped]:
    """Return the rows, and the candidates without a row, that the patterns select."""
    select.check([*(weight.name for weight in weights), *(candidate.name for candidate, _ in skipped)])
    return [w for w in weights if select.admits(w.name)], [s for s in skipped if select.admits(s[0].name)]


def _tied(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Keep each tensor under one name, that of an embedding or else the first; the others get a reason."""
    owners: dict[Hashable, Candidate] = {}
    for candidate in candidates:
        if candidate.identity is not None:
            owner = owners.setdefault(candidate.identity, candidate)
            if candidate.role.kind == "embedding" != owner.role.kind:
                owners[candidate.identity] = candidate
    result = []
    for candidate in candidates:
        owner = owners.get(candidate.identity, candidate)
        if owner.name != candidate.name:
            candidate = replace(candidate, role=replace(candidate.role, reason=f"tied to {owner.name}"))  # noqa: PLW2901
        result.append(candidate)
    return result


def _assemble(candidates: Sequence[Candidate], select: Select) -> tuple[list[Weight], _Skipped]:
    """Return rows and skipped candidates, before the patterns are applied."""
    weights: list[Weight] = []
    skipped: _Skipped = []
    for candidate in _tied(candidates):
        reason = candidate.role.reason
        if reason is None and candidate.role.kind == "embedding" and not select.embeddings:
            reason = EMBEDDING_OFF
        if reason is None and select.lora == "update" and candidate.role.kind != "lora":
            reason = _NO_UPDATE
        if reason is None:
            weights.extend(to_weights(candidate, split=select.split))
        else:
            skipped.append((candidate, reason))
    return weights, skipped
