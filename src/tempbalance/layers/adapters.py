"""Checkpoints with adapters: with its base model an adapter is merged as PEFT does, alone it has its updates.

Without PEFT, or without the architecture of the base model, updates are added to the base weights of their names.
"""

from __future__ import annotations

import functools
import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import InitVar, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from tempbalance.layers.adapter_settings import check_settings
from tempbalance.layers.architecture import checkpoint_candidates
from tempbalance.layers.blocks import block_namer
from tempbalance.layers.expert_adapters import expert_update
from tempbalance.layers.factors import AdapterError, Update, factor_groups, find_update
from tempbalance.layers.fused import Index
from tempbalance.layers.meta_model import build_on_meta
from tempbalance.layers.names import TensorInfo, TensorStore, ancestors, name_candidates
from tempbalance.layers.peft_model import PREFIX, merged_candidates
from tempbalance.layers.roles import conv_role
from tempbalance.layers.weights import Candidate, Role

__all__ = ["adapter_candidates"]

_logger = logging.getLogger("tempbalance")
_BASE = ".base_layer."
# Components that PEFT adds to the names of a base weight, and of a copy that it trains in full.
_WRAPPED = re.compile(r"(\.(token_adapter|base_layer))+\.|\.modules_to_save\.[^.]+\.")
_CONVS = {3: "conv1d", 4: "conv2d", 5: "conv3d"}
_BELONGS = "belongs to an adapter{}: {}"
_CHANGED = "an adapter{} changes it: {}"
_COPY = "a copy of the base weight"
_NEEDS_BASE = "put the files of the base model{} beside the adapter to measure what it changes"
_LIVE = "its tensors do not tell how: analyse the model in memory, or the folder of the adapter"
_PROMPTS = frozenset(
    {"PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE", "ADAPTION_PROMPT"}
)
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # ways to initialise that change the base weight


def adapter_candidates(store: TensorStore, mode: str) -> list[Candidate]:
    """Return the weights of a checkpoint, with its adapter if it has one; the tensors of an adapter are skipped.

    Mode ``"merged"`` adds an update to its base weight if the store has it; ``"update"`` does not.
    """
    own = _adapter_tensors(store)
    if not own:
        return checkpoint_candidates(store)
    rest = {_WRAPPED.sub(".", name): name for name in store.tensors if name not in own}
    base = _View(store, rest)
    found = checkpoint_candidates(base) if rest else []
    settings, failure = store.adapter_config, None
    check_settings(settings or {})
    if settings is None:
        found = [c.skipped(_CHANGED.format("", _LIVE)) if _BASE in rest.get(c.name, "") else c for c in found]
    elif settings.get("peft_type") in _PROMPTS:
        failure = "it adds learned inputs and changes no weight"
    elif rest:
        try:
            return _by_peft(store, base, own, found, mode)
        except AdapterError as error:
            failure = str(error)
    elif mode == "merged":
        _logger.warning("rows are the updates of an adapter without its base model: %s", _needs_base(store))
    return _ByFactors(store=store, own=own, base=found, mode=mode, failure=failure).candidates()


class _View:
    """Some tensors of a store, under other names."""

    def __init__(self, store: TensorStore, names: Mapping[str, str]) -> None:
        self._store = store
        self._names = names
        self.tensors: Mapping[str, TensorInfo] = {name: store.tensors[stored] for name, stored in names.items()}
        self.config: Mapping[str, Any] | None = store.config
        self.adapter_config: Mapping[str, Any] | None = None

    def load(self, name: str, index: Index = ()) -> Tensor:
        """Read a tensor, or the part of it at an index."""
        return self._store.load(self._names[name], index)


def _adapter_tensors(store: TensorStore) -> set[str]:
    """Return the names of the tensors of adapters: those of the file of an adapter, or by their names."""
    if store.adapter_config is not None:
        shards: Mapping[Any, Iterable[str]] = getattr(store, "shards", {})
        files = [names for file, names in shards.items() if file.name.startswith("adapter_model")]
        return {name for names in files for name in names} or {n for n in store.tensors if n.startswith("base_model.")}
    found = factor_groups(store.tensors)
    groups = {k: v for k, v in found.items() if f"{k}.qweight" not in store.tensors}  # SVDQuant has factors of its own
    own = {name for parts in groups.values() for names in parts.values() for name in names}
    layers = {name[: match.start()] for name in store.tensors for match in re.finditer(r"\.base_layer\.", name)}
    for name in store.tensors:
        layer = next((layer for layer in ancestors(name) if layer in layers), None)
        outside = layers and re.match(r"base_model\.(?!model\.)", name)  # projections that layers share
        if outside or (layer is not None and not name.startswith(f"{layer}{_BASE}")):
            own.add(name)
    plain = Counter(_WRAPPED.sub(".", name) for name in store.tensors if name not in own)
    copies = {name for name in store.tensors if ".modules_to_save." in name and plain[_WRAPPED.sub(".", name)] > 1}
    return own | copies | {name for name in store.tensors if ".original_module." in name}


def _needs_base(store: TensorStore) -> str:
    name = (store.adapter_config or {}).get("base_model_name_or_path")
    return _NEEDS_BASE.format(f" ({name})" if name else "")


def _by_peft(store: TensorStore, base: _View, own: set[str], found: list[Candidate], mode: str) -> list[Candidate]:
    """Return the candidates of the model that PEFT builds."""
    model = build_on_meta(base.config, len(base.tensors)) if base.config else None
    if model is None:
        raise AdapterError("the architecture of the base model is not known")
    tensors = {name: store.load(name) for name in sorted(own)}
    candidates, unexpected = merged_candidates(model, store.adapter_config or {}, tensors, found, mode)
    names = {candidate.name for candidate in candidates}
    beside = _ByFactors(store=store, own=set(unexpected), base=[], mode=mode).candidates()
    return [*candidates, *(candidate for candidate in beside if candidate.name not in names)]


@dataclass(kw_only=True)
class _ByFactors:
    """An adapter whose updates are computed from its factors, and added to the base weights of their names."""

    store: TensorStore
    own: set[str]
    base: InitVar[Iterable[Candidate]]
    mode: str
    failure: str | None = None
    found: dict[str, Candidate] = field(init=False)

    def __post_init__(self, base: Iterable[Candidate]) -> None:
        """Begin with the weights of the base model."""
        self.found = {candidate.name: candidate for candidate in base}
        self._bases: dict[str, list[str]] = {}
        for name in self.found:
            self._bases.setdefault(name.rpartition(".")[0], []).append(name)

    def candidates(self) -> list[Candidate]:
        """Return the base weights with their updates, the updates of others, and what is skipped."""
        own = [name for name in self.store.tensors if name in self.own]
        groups = factor_groups(own)
        for layer, parts in groups.items():
            try:
                self._add(layer.removeprefix(PREFIX), parts)
            except AdapterError as error:
                for name in [name for names in parts.values() for name in names]:
                    self._skip(name, self.failure or str(error))
        used = {name for parts in groups.values() for names in parts.values() for name in names}
        for name in own:
            if name not in used:
                self._add_other(name)
        block_of = block_namer(self.found)
        found = self.found.values()
        return [c if c.block or c.role.kind != "lora" else replace(c, block=block_of(c.name)) for c in found]

    def _add(self, layer: str, parts: Mapping[str, list[str]]) -> None:
        """Add the update of a layer, to its base weight if there is one; or raise why this is not possible."""
        settings = self.store.adapter_config or {}
        expert = expert_update(self.store, layer, parts, settings)
        update = expert or _as_candidate(layer, find_update(self.store, layer, parts, self.store.adapter_config))
        base = self.found.get(update.name)
        if base is None or self.mode == "update":
            self.found[update.name] = update
            return
        if str(settings.get("init_lora_weights")).startswith(_CHANGES_BASE):
            raise AdapterError("its base weight is changed when it is loaded: merge it first (merge_and_unload)")
        if len({*update.shape[-2:]}) == 1 and self.store.config:
            raise AdapterError("which axis is the input of its square weight is not known without PEFT")
        self.found[base.name] = _merged(base, update)

    def _add_other(self, name: str) -> None:
        """Add a weight that an adapter stores in full, or skip the part of an adapter."""
        local = name.removeprefix(PREFIX)
        settings = self.store.adapter_config or {}
        full = any(f".{module}." in f".{local}" for module in settings.get("modules_to_save") or ())
        found = name_candidates(_View(self.store, {local: name})) if local.endswith(".weight") else []
        if _BASE in local:
            self._skip(name, _COPY)
        elif found and (full or found[0].role.kind == "embedding" or local.endswith("lm_head.weight")):
            self.found[local] = found[0]
        else:
            self._skip(name, (self.failure or _needs_base(self.store)) if settings else _LIVE)

    def _skip(self, name: str, reason: str) -> None:
        """Skip a part of an adapter, and the base weight that it changes; if this is not known, all of them."""
        method = (self.store.adapter_config or {}).get("peft_type")
        method = f" ({method})" if method else ""
        for base in self._changed_by(name):
            self.found[base] = self.found[base].skipped(_CHANGED.format(method, reason))
        info = self.store.tensors[name]
        if len(info.shape) > 1:
            read = functools.partial(self.store.load, name)
            role = Role(kind="parameter", reason=_BELONGS.format(method, reason))
            self.found[name] = Candidate(name=name, role=role, shape=info.shape, dtype=info.dtype, read=read)

    def _changed_by(self, name: str) -> list[str]:
        """Return the base weights that a part of an adapter changes: those of its module, else all."""
        if (self.store.adapter_config or {}).get("peft_type") in _PROMPTS:
            return []
        for module in ancestors(_WRAPPED.sub(".", name.removeprefix(PREFIX))):
            if module in self._bases:
                return self._bases[module]
        return [name for names in self._bases.values() for name in names] if self.store.adapter_config else []


def _as_candidate(layer: str, update: Update) -> Candidate:
    shape = update.shape
    conv = conv_role(_CONVS[len(shape)], shape) if len(shape) in _CONVS else Role(kind="lora")
    return Candidate(name=f"{layer}.weight", role=replace(conv, kind="lora"), shape=shape, dtype=None, read=update.read)


def _merged(base: Candidate, update: Candidate) -> Candidate:
    if update.shape not in {base.shape, base.shape[::-1]}:
        raise AdapterError(f"its update has shape {update.shape}, its base weight {base.shape}")

    def read(index: Index) -> Tensor:
        change = update.read(())
        weight = base.read(()).to(torch.float64)
        merged = weight + (change if change.shape == weight.shape else change.mT)  # Conv1D is stored (in, out)
        return merged[index] if index else merged

    return replace(base, read=read, dtype=None, identity=(base.identity, update.name) if base.identity else None)
