"""Layer types of a checkpoint from its configuration: the architecture is built without data."""

from __future__ import annotations

import contextlib
import functools
import logging
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from tempbalance.layers.modules import module_candidates
from tempbalance.layers.names import TensorStore, name_candidates, unreadable
from tempbalance.layers.weights import Candidate

__all__ = ["checkpoint_candidates"]

_logger = logging.getLogger("tempbalance")


def checkpoint_candidates(store: TensorStore) -> list[Candidate]:
    """List the weights of a state dict or checkpoint.

    With a configuration and Transformers installed, the architecture is built on the meta device and gives the type of
    each tensor. Tensors that it does not contain (Transformers renames single experts while loading), and all tensors
    of a checkpoint without a configuration, are classified by name and shape.

    Args:
        store: Named tensors.

    Returns:
        One candidate per tensor with two axes or more, in the order of the model, then of the store.
    """
    model = _architecture(store.config) if store.config else None
    if model is None:
        return name_candidates(store)
    known = _matched(store, model)
    stored = {candidate.name for candidate in known}
    return known + name_candidates(store, [name for name in store.tensors if name not in stored])


def _architecture(config: Mapping[str, Any]) -> nn.Module | None:
    """Return the model of a configuration, without data; None if Transformers cannot build it."""
    try:
        import transformers
    except ImportError:
        _logger.info("without transformers, layer types come from names and shapes alone")
        return None
    names = config.get("architectures") or ()
    cls: Any = getattr(transformers, names[0], None) if names else transformers.AutoModel
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        with warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("ignore")
            settings = transformers.CONFIG_MAPPING[config["model_type"]].from_dict(dict(config))
            settings.quantization_config = None
            model: nn.Module = cls.from_config(settings) if cls is transformers.AutoModel else cls(settings)
            with contextlib.suppress(AttributeError):
                model.tie_weights()  # type: ignore[operator]
            return model
    except Exception as error:  # any error of a model with an incomplete or newer configuration
        _logger.info("%s cannot be built (%s): layer types come from names and shapes", names, error)
        return None
    finally:
        transformers.logging.set_verbosity(level)


def _matched(store: TensorStore, model: nn.Module) -> list[Candidate]:
    """Return the candidates of the architecture that are in the store, under their stored names."""
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    reasons = unreadable(store)
    found: list[Candidate] = []
    for candidate in module_candidates(model, meta=True):
        stored = next((name for name in _spellings(candidate.name, prefix) if name in store.tensors), None)
        if stored is None:
            if _is_second_name(candidate, found):
                found.append(candidate)
            continue
        info = store.tensors[stored]
        if tuple(info.shape) != candidate.shape:
            continue
        role = replace(candidate.role, reason=reasons[stored]) if stored in reasons else candidate.role
        found.append(
            replace(
                candidate,
                name=stored,
                block=_respell(candidate.block, candidate.name, stored, prefix),
                role=role,
                dtype=info.dtype,
                read=functools.partial(store.load, stored),
            )
        )
    return found


def _spellings(name: str, prefix: str) -> tuple[str, ...]:
    """Return the names of a parameter in checkpoints: with or without the prefix of the base model."""
    return (name, prefix + name, name.removeprefix(prefix))


def _respell(block: str | None, name: str, stored: str, prefix: str) -> str | None:
    if block is None or stored == name:
        return block
    return prefix + block if stored == prefix + name else block.removeprefix(prefix)


def _is_second_name(candidate: Candidate, found: list[Candidate]) -> bool:
    """Return whether a tied weight is stored under its first name only."""
    return candidate.identity is not None and any(other.identity == candidate.identity for other in found)
