"""An adapter with the base model that it was trained on, from two places."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from tempbalance.analysis.matching import common_affix
from tempbalance.checkpoints import Checkpoint
from tempbalance.layers import Index, TensorInfo, TensorStore
from tempbalance.layers.names import StateDict, ancestors
from tempbalance.layers.peft_model import PREFIX

__all__ = ["AdaptedCheckpoint", "is_adapter", "with_base"]

_ADAPTER_FILE = "adapter_model"


def is_adapter(source: Checkpoint) -> bool:
    """Return whether a checkpoint is an adapter of PEFT without its base model."""
    return source.adapter_config is not None and all(file.name.startswith(_ADAPTER_FILE) for file in source.shards)


def with_base(adapter: Checkpoint, base: nn.Module | Mapping[str, Tensor] | Checkpoint) -> AdaptedCheckpoint:
    """Return an open adapter with its base model, to be analysed as a folder that has both."""
    if isinstance(base, Checkpoint):
        return AdaptedCheckpoint(adapter, base, base.config)
    if isinstance(base, nn.Module):
        config = getattr(base, "config", None)
        to_dict = getattr(config, "to_dict", None)
        return AdaptedCheckpoint(adapter, StateDict(base.state_dict()), to_dict() if to_dict else None)
    return AdaptedCheckpoint(adapter, StateDict(base), None)


class AdaptedCheckpoint(Checkpoint):
    """The tensors of a base model and of its adapter; closing it closes neither."""

    def __init__(self, adapter: Checkpoint, base: TensorStore, config: Mapping[str, Any] | None) -> None:
        files = (*getattr(base, "files", ()), *adapter.files)
        super().__init__(adapter.path, {}, config, adapter.adapter_config, files)
        self._adapter, self._base = adapter, base
        names = _names_in_base(adapter, base)
        self._stored = {new: old for old, new in names.items()}
        self._merged = {**base.tensors, **{names[name]: info for name, info in adapter.tensors.items()}}

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Shapes and dtypes by name: of the base model, then of the adapter."""
        return self._merged

    @property
    def shards(self) -> dict[Any, dict[str, TensorInfo]]:
        """Shapes and dtypes by file of the adapter."""
        return {
            file: {new: self._merged[new] for new, old in self._stored.items() if old in tensors}
            for file, tensors in self._adapter.shards.items()
        }

    def load(self, name: str, index: Index = ()) -> Tensor:
        """Read a tensor or a part of it."""
        if name in self._stored:
            return self._adapter.load(self._stored[name], index)
        return self._base.load(name, index)


def _names_in_base(adapter: Checkpoint, base: TensorStore) -> dict[str, str]:
    """Return the names of the adapter's tensors with the prefix that the names of the base have."""
    layers = {name.rpartition(".")[0] for name in base.tensors}
    local = {name: name.removeprefix(PREFIX) for name in adapter.tensors}
    within = {ancestor: () for name in local.values() for ancestor in ancestors(name)}
    if within.keys() & layers:
        return {name: name for name in local}
    affix, _ = common_affix(dict.fromkeys(layers, ()), within)
    if affix is None or not affix.is_prefix:  # the names of the base may be others when Transformers has loaded it
        return {name: name for name in local}
    if affix.of_after:
        return {name: f"{PREFIX}{inner.removeprefix(affix.text)}" for name, inner in local.items()}
    return {name: f"{PREFIX}{affix.text}{inner}" for name, inner in local.items()}
