"""LoRA adapters on disk: each pair of factors becomes its update ``(alpha / r) B A``."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tempbalance.layers.blocks import block_namer
from tempbalance.layers.fused import Index
from tempbalance.layers.names import TensorStore
from tempbalance.layers.weights import Candidate, Role

__all__ = ["adapter_candidates"]

_FACTOR = re.compile(r"(?P<layer>.+)\.lora_(?P<factor>[AB])(\.(?P<adapter>[^.]+))?\.weight")
_PREFIX = "base_model.model."
_MATRIX_NDIM = 2
_NO_SCALE = "LoRA factor: its scale is in adapter_config.json; analyse the adapter folder, or the model in memory"
_NO_PARTNER = "LoRA factor without its partner"
_NOT_LINEAR = "LoRA on a layer that is not linear: merge it (merge_and_unload) and analyse the result"
_DORA = "DoRA is not W + (alpha/r) BA: merge it (merge_and_unload) and analyse the result"


class _Pair(NamedTuple):
    """Stored names of the two factors of one update."""

    a: str
    b: str


def adapter_candidates(store: TensorStore, candidates: Sequence[Candidate], mode: str) -> list[Candidate]:
    """Replace factors by their updates.

    Args:
        store: The tensors.
        candidates: The candidates of the tensors.
        mode: ``"merged"`` adds an update to its base weight if the store has it; ``"update"`` does not.

    Returns:
        The candidates, without factors.
    """
    if not any(_FACTOR.fullmatch(candidate.name) for candidate in candidates):
        return list(candidates)
    by_name = {candidate.name: candidate for candidate in candidates}
    pairs = _pairs(store)
    result: dict[str, Candidate] = {}
    for candidate in candidates:
        match = _FACTOR.fullmatch(candidate.name)
        if match is None:
            result.setdefault(candidate.name, candidate)
            continue
        layer = match["layer"]
        reason = _reason(store, layer, pairs.get(layer))
        if reason is not None:
            result[candidate.name] = replace(candidate, role=replace(candidate.role, reason=reason))
            continue
        update = _update(store, layer.removeprefix(_PREFIX), pairs[layer])
        base = by_name.get(update.name)
        result[update.name] = update if base is None or mode == "update" else _merged(base, update)
    block_of = block_namer(result)
    return [c if c.block or c.role.kind != "lora" else replace(c, block=block_of(c.name)) for c in result.values()]


def _pairs(store: TensorStore) -> dict[str, _Pair]:
    names: dict[str, dict[str, str]] = {}
    for name in store.tensors:
        match = _FACTOR.fullmatch(name)
        if match is not None:
            names.setdefault(match["layer"], {})[match["factor"]] = name
    return {layer: _Pair(found["A"], found["B"]) for layer, found in names.items() if found.keys() == {"A", "B"}}


def _reason(store: TensorStore, layer: str, pair: _Pair | None) -> str | None:
    """Return the reason why a factor has no update, or None."""
    if store.adapter_config is None:
        return _NO_SCALE
    if pair is None:
        return _NO_PARTNER
    if any(name.startswith(f"{layer}.lora_magnitude_vector") for name in store.tensors):
        return _DORA
    if any(len(store.tensors[name].shape) != _MATRIX_NDIM for name in pair):
        return _NOT_LINEAR
    return None


def _scale(config: Mapping[str, Any], layer: str, rank: int) -> float:
    """Return ``lora_alpha / r``, or ``lora_alpha / sqrt(r)`` for rank-stabilised LoRA; patterns as in PEFT."""
    patterns = config.get("alpha_pattern") or {}
    own = next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", layer)), None)
    alpha = float(config.get("lora_alpha", rank) if own is None else own)
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _update(store: TensorStore, layer: str, pair: _Pair) -> Candidate:
    rank, columns = store.tensors[pair.a].shape
    rows = store.tensors[pair.b].shape[0]
    scale = _scale(store.adapter_config or {}, layer, rank)
    return Candidate(
        name=f"{layer}.weight",
        role=Role(kind="lora"),
        shape=(rows, columns),
        dtype=None,
        read=functools.partial(_read_update, store, pair, scale),
    )


def _read_update(store: TensorStore, pair: _Pair, scale: float, index: Index) -> Tensor:
    a, b = (store.load(name).to(torch.float64) for name in pair)
    update = scale * (b @ a)
    return update[index] if index else update


def _merged(base: Candidate, update: Candidate) -> Candidate:
    def read(index: Index) -> Tensor:
        """Read the weight with its update, or the part of it at an index."""
        change = update.read(())
        weight = base.read(()).to(torch.float64)
        merged = weight + (change if change.shape == weight.shape else change.mT)  # Conv1D is stored (in, out)
        return merged[index] if index else merged

    return replace(base, read=read)
