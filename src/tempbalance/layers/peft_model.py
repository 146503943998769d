"""The model of an adapter folder with its base: PEFT builds it around stand-ins for the base weights.

A stand-in has the shape and dtype of its weight, and no memory. Whether PEFT computes something from the base weights
while it builds the adapter is seen with two stand-ins of different values; such an adapter is built around the weights
themselves.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tempbalance.layers.factors import AdapterError
from tempbalance.layers.fused import Index
from tempbalance.layers.modules import module_candidates
from tempbalance.layers.registration_limit import registration_limit
from tempbalance.layers.stored import mapping
from tempbalance.layers.weights import Candidate, storage_identity

__all__ = ["PREFIX", "merged_candidates"]

# Settings that name code or files, and those that describe where an adapter came from.
_IGNORED = frozenset(
    {"auto_mapping", "base_model_name_or_path", "megatron_config", "megatron_core", "peft_version", "revision"}
)
PREFIX = "base_model.model."
_SPARE = 10**7  # parameters that an adapter of any model may have
_NO_BASE = "the weight that the adapter changes is not in the folder: put the base model beside the adapter"


class _Built(NamedTuple):
    """A model with its adapter.

    Attributes:
        model: The model; where PEFT did not need a base weight, it has a stand-in.
        stand_ins: Names of the stand-ins, by the identity of the parameter.
        untouched: Memory of the base weights that are those of the base model.
        unexpected: Names of tensors of the adapter that the model has no place for.
    """

    model: nn.Module
    stand_ins: Mapping[int, str]
    untouched: frozenset[Hashable]
    unexpected: tuple[str, ...]


def merged_candidates(
    model: nn.Module, settings: Mapping[str, Any], tensors: Mapping[str, Tensor], base: Sequence[Candidate], mode: str
) -> tuple[list[Candidate], tuple[str, ...]]:
    """Return the weights of a model with an adapter, and the names of the tensors that it has no place for.

    The model is on the meta device; ``base`` are its candidates, which read its weights. ``mode`` is ``"merged"`` or
    ``"update"``.

    Raises:
        AdapterError: PEFT is not installed, or cannot put this adapter on this model.
    """
    config = _config(settings)
    known = {candidate.name: candidate for candidate in base}
    build = functools.partial(_build, model, config, tensors, known)
    try:
        built = build(math.nan)
        same = _same_adapter(built, build(1.0))
    except Exception:  # such as a singular value decomposition of NaN; or the adapter does not fit, which shows again
        same = False
    if not same:
        try:
            with mapping():
                built = build(None)
        except Exception as error:  # whatever PEFT raises
            reason = (str(error) or type(error).__name__).strip().splitlines()[0][:200]
            raise AdapterError(f"PEFT cannot put it on {type(model).__name__} ({reason})") from error
    return _candidates(built, known, mode), built.unexpected


def _config(settings: Mapping[str, Any]) -> Any:
    """Return the configuration as PEFT has it, without settings that name code or files."""
    try:
        import peft
    except ImportError as error:
        raise AdapterError("PEFT is needed to merge it: pip install 'tempbalance[peft]'") from error
    method = settings.get("peft_type")
    cls: Any = next(
        (found for key, found in peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING.items() if key.value == method), None
    )
    if cls is None or method == "XLORA":  # X-LoRA names other adapters to load
        raise AdapterError(f"the method {method!r} is not one that the installed PEFT can merge")
    fields = {field.name for field in dataclasses.fields(cls)}
    unknown = [key for key, value in settings.items() if value and key not in fields | _IGNORED]
    if unknown or settings.get("layer_replication"):
        names = ", ".join(unknown) or "layer_replication"
        raise AdapterError(f"its settings {names} are not known: a newer PEFT may merge it")
    config = cls(**{key: value for key, value in settings.items() if key in fields - _IGNORED})
    config.inference_mode = False  # what is trained has to be in the file
    return config


def _build(
    model: nn.Module, config: Any, tensors: Mapping[str, Tensor], known: Mapping[str, Candidate], value: float | None
) -> _Built:
    """Build a model with its adapter, around stand-ins of one value or, with None, the weights themselves."""
    import peft

    most = _SPARE + sum(math.prod(candidate.shape) for candidate in known.values())
    too_many = f"the adapter has more than {most} parameters, too many for its base model"
    limit = registration_limit(most, ("parameter", "buffer"), lambda t: 0 if t is None else t.numel(), too_many)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), limit:
        warnings.simplefilter("ignore")
        model = copy.deepcopy(model)
        changes_base = isinstance(getattr(config, "init_lora_weights", None), str)  # such as "olora"
        base = _replace_weights(model, known, value, copied=changes_base)
        places = {name: parameter.data_ptr() for name, parameter in base.items()}
        adapted: Any = peft.PeftModel(model, copy.deepcopy(config))
        state = _respelled(tensors, model)
        parameters = dict(adapted.named_parameters(remove_duplicate=False))
        for name in [name for name in state if parameters.get(name) is not None]:
            parameter = parameters[name]  # the adapter has its own copy of a base weight, such as a resized embedding
            if parameter.shape != state[name].shape:
                raise ValueError(
                    f"{name} has shape {tuple(state[name].shape)}, the base weight {tuple(parameter.shape)}"
                )
            parameter.data = state[name].clone()
        loaded = peft.set_peft_model_state_dict(adapted, state)
        _check_loaded(adapted, loaded.missing_keys)
        kept = {name: parameter for name, parameter in base.items() if parameter.data_ptr() == places[name]}
        stand_ins = {id(p): name for name, p in kept.items() if value is not None or not _is_readable(known.get(name))}
        untouched = frozenset(storage_identity(parameter) for parameter in kept.values())
        return _Built(adapted, stand_ins, untouched, tuple(loaded.unexpected_keys))


def _replace_weights(
    model: nn.Module, known: Mapping[str, Candidate], value: float | None, *, copied: bool
) -> dict[str, nn.Parameter]:
    """Replace the parameters of a model by stand-ins, or by their values; return the new ones by their first names."""
    names = {id(p): name for name, p in reversed(list(model.named_parameters(remove_duplicate=False)))}
    new: dict[str, nn.Parameter] = {}
    for module in model.modules():
        for attribute, parameter in module._parameters.items():
            if parameter is not None:
                name = names[id(parameter)]
                if name not in new:
                    new[name] = nn.Parameter(_data(parameter, known.get(name), value, copied), requires_grad=False)
                module._parameters[attribute] = new[name]
    return new


def _data(parameter: Tensor, candidate: Candidate | None, value: float | None, copied: bool) -> Tensor:
    """Return a stand-in without memory, or the base weight: it is mapped from a file, and PEFT reads few.

    It is copied if PEFT may change it in place, as float32 weights by OLoRA: another read would have the change.
    """
    if value is None and candidate is not None and _is_readable(candidate):
        data = candidate.read(())
        return data.clone() if copied and data.dtype == torch.float32 else data
    stored = parameter.dtype if candidate is None or candidate.dtype is None else candidate.dtype
    dtype = stored if stored.is_floating_point else torch.float32
    return torch.full((), math.nan if value is None else value, dtype=dtype).expand(parameter.shape)


def _is_readable(candidate: Candidate | None) -> bool:
    return candidate is not None and candidate.role.reason is None


def _respelled(tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of an adapter by their names on this model, with or without the prefix of its base model."""
    prefix = getattr(model, "base_model_prefix", "")
    has_head = bool(prefix) and prefix in model._modules
    children = set(model._modules)

    def respell(name: str) -> str:
        local = name.removeprefix(PREFIX)
        first = local.partition(".")[0]
        if local == name or not prefix or first in children:
            return name
        if has_head and first in set(model.get_submodule(prefix)._modules):
            return f"{PREFIX}{prefix}.{local}"
        return PREFIX + local.removeprefix(f"{prefix}.")

    return {respell(name): tensor for name, tensor in tensors.items()}


def _check_loaded(adapted: nn.Module, missing: Sequence[str]) -> None:
    """Check that every tensor of the adapter was in the file; layers may share tensors."""
    state = adapted.state_dict(keep_vars=True)
    loaded = {id(tensor) for name, tensor in state.items() if name not in set(missing)}
    absent = [name for name in missing if state[name].requires_grad and id(state[name]) not in loaded]
    if absent:
        raise ValueError(f"{len(absent)} of its tensors are not in the file, such as {absent[0]}")


def _same_adapter(one: _Built, other: _Built) -> bool:
    """Return whether two adapters have the same tensors, so that none was computed from stand-ins; NaN is not equal."""
    own, others = _own_tensors(one), _own_tensors(other)
    return own.keys() == others.keys() and all(torch.equal(tensor, others[name]) for name, tensor in own.items())


def _own_tensors(built: _Built) -> dict[str, Tensor]:
    named = {**dict(built.model.named_parameters()), **dict(built.model.named_buffers())}
    return {name: tensor for name, tensor in named.items() if id(tensor) not in built.stand_ins and not tensor.is_meta}


def _candidates(built: _Built, known: Mapping[str, Candidate], mode: str) -> list[Candidate]:
    """Return the candidates of a built model; what the adapter leaves alone is that of the base model."""

    def fetch(tensor: Tensor, index: Index) -> Tensor:
        """Read a tensor of the adapter, or the base weight that a stand-in is for."""
        candidate = known.get(built.stand_ins.get(id(tensor), ""))
        found = tensor[index] if candidate is None else candidate.read(index)
        return found.detach()

    found: dict[str, Candidate] = {}
    for candidate in module_candidates(built.model.get_submodule("base_model.model"), lora=mode, fetch=fetch):
        base = known.get(candidate.name)
        computed = candidate.dtype is None
        if candidate.identity in built.untouched or (computed and candidate.identity is None):
            if base is not None:  # else it is not in the folder
                found[candidate.name] = base
        elif computed and (base is None or base.role.reason is not None):
            reason = _NO_BASE if base is None else base.role.reason
            found[candidate.name] = replace(candidate, role=replace(candidate.role, reason=reason))
        else:
            found[candidate.name] = candidate
    return [*found.values(), *(candidate for name, candidate in known.items() if name not in found)]
