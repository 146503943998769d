"""The weights of a checkpoint, by the architecture in its configuration.

The model is built without data. Its modules give names, types, fused parts, stacks, blocks and ties; the tensors on
disk give the values, renamed and merged as Transformers does when it loads them.
"""

from __future__ import annotations

import copy
import logging
import math
import re
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tempbalance.layers.conversion import Conversion, convert_names
from tempbalance.layers.effective import effective_weights
from tempbalance.layers.fused import Index
from tempbalance.layers.meta_model import build_on_meta
from tempbalance.layers.modules import module_candidates
from tempbalance.layers.names import TensorStore, join_name, name_candidates, unreadable
from tempbalance.layers.parametrised import with_computed_weights
from tempbalance.layers.stored import StoredTensor
from tempbalance.layers.traced_tensors import Node
from tempbalance.layers.weights import Candidate

__all__ = ["checkpoint_candidates"]

_logger = logging.getLogger("tempbalance")
_LEAST_SHARE = 0.5  # of the stored weights that an architecture must have to describe a checkpoint
_MISSING = "not in the checkpoint: Transformers computes it, or initialises it at random"
_OUTSIDE = "not in {}, the architecture in config.json: to analyse it, pass a state dict"
_ROWS = 4096  # rows of two tensors compared at a time


def checkpoint_candidates(store: TensorStore) -> list[Candidate]:
    """Return the weights of a state dict or checkpoint, in the order of the model, then of the store.

    With a configuration and Transformers installed, weights have the names, types and blocks of the live model.
    Without, tensors are classified by name and shape.
    """
    model = build_on_meta(store.config, len(store.tensors)) if store.config else None
    found = None if model is None else _by_architecture(store, model)
    return name_candidates(with_computed_weights(store)) if found is None else found


class _Stored(NamedTuple):
    """A checkpoint, by the names of the parameters in the model of its configuration.

    Attributes:
        store: The checkpoint.
        model: The model, without data.
        nodes: The tensors by their names in the model.
        reasons: Why stored tensors cannot be read.
        missing: Why parameters are not there, by name or by the name of their module.
    """

    store: TensorStore
    model: nn.Module
    nodes: Mapping[str, Node]
    reasons: Mapping[str, str]
    missing: Mapping[str, str]

    def reason(self, *nodes: Node) -> str | None:
        """Return the first reason why a stored tensor that these are made of cannot be read, or None."""
        names = [source.name for node in nodes for source in node.walk()]
        return next((self.reasons[name] for name in names if name in self.reasons), None)


def _by_architecture(store: TensorStore, model: nn.Module) -> list[Candidate] | None:
    """Return the candidates of the model, then those of other tensors; None if the store is not of this model."""
    cls = type(model).__name__
    try:
        conversion = convert_names(model, store.tensors)
        stored = _stored(store, model, conversion)
        known = list(_known(stored))
    except Exception as error:  # whatever a model or a conversion of Transformers raises
        _logger.info("%s (%s: %s): layer types come from names and shapes", cls, type(error).__name__, error)
        return None
    told = {_module(c.name) for c in known if c.role.reason == stored.missing.get(_module(c.name))}
    outside = {name: _module(conversion.outside[name]) for name in store.tensors if name in conversion.outside}
    rest = name_candidates(store, [n for n, module in outside.items() if not (n in stored.reasons and module in told)])
    if _size(known) < _LEAST_SHARE * (_size(known) + _size(rest)):
        _logger.info("%s has few of the weights: layer types come from names and shapes", cls)
        return None
    if (store.config or {}).get("architectures"):
        rest = [c.skipped(_OUTSIDE.format(cls)) for c in rest]
    return known + rest


def _stored(store: TensorStore, model: nn.Module, conversion: Conversion) -> _Stored:
    """Return the checkpoint; a module whose parameter is stored otherwise (quantised) has the reason of that tensor."""
    reasons, missing = unreadable(store), dict(conversion.failed)
    for name, live in conversion.outside.items():
        if name in reasons and not reasons[name].startswith("belongs to"):
            missing.setdefault(_module(live), reasons[name])
    return _Stored(store, model, conversion.nodes, reasons, missing)


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _size(candidates: list[Candidate]) -> int:
    """Return the number of entries of the candidates that can be read."""
    return sum(math.prod(c.shape) for c in candidates if c.role.reason is None)


def _known(stored: _Stored) -> Iterator[Candidate]:
    """Yield the candidates of the model, with the values of the checkpoint."""
    candidates = module_candidates(stored.model, meta=True)
    names: dict[Hashable, list[str]] = {}
    for candidate in candidates:
        names.setdefault(candidate.identity or candidate.name, []).append(candidate.name)
    for candidate in candidates:
        if candidate.dtype is None:
            yield _computed(stored, candidate)
            continue
        tied = [name for name in names[candidate.identity or candidate.name] if name in stored.nodes]
        first = next(iter(tied), None)
        own = stored.nodes.get(candidate.name, stored.nodes[first] if first else None)
        if first is None or own is None:
            yield _missing(stored, candidate)
        elif candidate.name in tied and not _equal(stored, stored.nodes[first], own):
            yield _read(stored, replace(candidate, identity=None), own, [])  # Transformers does not tie them
        else:
            yield _read(stored, candidate, own, [stored.nodes[name] for name in tied])


def _missing(stored: _Stored, candidate: Candidate) -> Candidate:
    """Return the candidate of a parameter that is not on disk, or not in a form that can be read."""
    missing = stored.missing
    return candidate.skipped(missing.get(candidate.name) or missing.get(_module(candidate.name)) or _MISSING)


def _read(stored: _Stored, candidate: Candidate, node: Node, tied: list[Node]) -> Candidate:
    """Return the candidate of a stored parameter."""
    reason = stored.reason(node)
    if node.shape != candidate.shape and reason is None:
        reason = f"has shape {node.shape} on disk, but config.json says {candidate.shape}: correct config.json"
    reader = StoredTensor(stored.store, node, tied)
    return replace(
        candidate.skipped(reason),
        shape=node.shape,
        dtype=reader.dtype,
        read=reader,
        quantisation=reader.quantisation,
    )


def _equal(stored: _Stored, first: Node, other: Node) -> bool:
    """Return whether two stored parameters have the same values, as tied ones do."""
    if first is other or stored.reason(first, other):
        return True
    if first.shape != other.shape:
        return False
    identities = {stored.store.tensors[n.name].identity if n.name else None for n in (first, other)}
    if len(identities) == 1 and None not in identities:
        return True
    one, two = StoredTensor(stored.store, first), StoredTensor(stored.store, other)
    places = range(0, first.shape[0], _ROWS)
    return all(torch.equal(one((slice(i, i + _ROWS),)), two((slice(i, i + _ROWS),))) for i in places)


def _computed(stored: _Stored, candidate: Candidate) -> Candidate:
    """Return the candidate of a weight that the model computes from stored parts: the module computes it, with them."""
    path, _, attribute = candidate.name.rpartition(".")
    module = stored.model.get_submodule(path)
    part = re.compile(rf"parametrizations\.{attribute}\..+|{attribute}_\w+")
    keys = [key for key in module.state_dict() if part.fullmatch(key)]
    nodes = {key: stored.nodes.get(join_name(path, key)) for key in keys}
    found = {key: node for key, node in nodes.items() if node is not None}
    if len(found) < len(nodes):
        return _missing(stored, candidate)

    def read(index: Index) -> Tensor:
        copied = copy.deepcopy(module)
        parts = {key: StoredTensor(stored.store, node)() for key, node in found.items()}
        copied.load_state_dict(parts, strict=False, assign=True)
        weight = effective_weights(copied)[attribute].compute()
        return weight[index] if index else weight

    return replace(candidate.skipped(stored.reason(*found.values())), read=read)
