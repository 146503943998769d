"""Updates that an adapter stores as factors: LoRA, LoHa and LoKr, in the names of PEFT and of diffusion models.

An update is the product of its factors times the scale ``alpha / r``. Alpha is beside the factors (kohya, LyCORIS), or
in the settings of PEFT.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tempbalance.layers.adapter_settings import by_pattern
from tempbalance.layers.fused import Index
from tempbalance.layers.names import TensorStore
from tempbalance.spectra.matrices import MATRIX_NDIM

__all__ = ["AdapterError", "Update", "factor_groups", "find_update", "lora_scale"]

_PART = re.compile(
    r"(?P<layer>.+)\.(?P<part>lora_(A|B|E|up|down|mid|embedding_[AB]|magnitude_vector|ranknum)|(hada|lokr)_[wt]\d(_[ab])?"
    r"|dora_scale|alpha|diff|(oft|boft|vera|ia3|hra|glora|randlora)_\w+)(\.(?P<adapter>(?!weight$)[^.]+))?(\.weight)?"
)
# ``to_q_lora.down`` and ``q_proj.lora_linear_layer.down`` of diffusers, ``qkv_lora1.down`` of XLabs.
_DIFFUSERS = re.compile(r"(?P<layer>.+)[._]lora(_linear_layer|(?P<number>\d*))\.(?P<part>up|down|mid)\.weight")
_FLATTENED = re.compile(r"conv|_op$|in_layers|out_layers|sample|patch")  # layers whose kernels LyCORIS flattens
# Settings of PEFT with which LoRA is not a plain product, or depends on the input.
_VARIANTS = (
    *("use_dora", "use_qalora", "use_bdlora", "alora_invocation_tokens", "arrow_config", "kasa_config"),
    *("monteclora_config", "layer_replication"),
)
_NO_SCALE = "factor whose scale is in adapter_config.json: analyse the adapter folder, or the model in memory"
_KERNEL_UNKNOWN = (
    "flattened update of a convolution, whose kernel size is not in the file: merge it and analyse the result"
)
_LYCORIS = frozenset({"hada_w1_b", "lokr_w1", "lokr_w1_b"})
# Parts whose first axis is the rank, in order of preference.
_RANKED = ("lora_A", "lora_embedding_A", "lora_down", "hada_t1", "lokr_t2", "hada_w1_b", "lokr_w1_b", "lokr_w2_b")
Compute = Callable[..., Tensor]


class AdapterError(Exception):
    """The update of an adapter cannot be computed; the message is the reason."""


class Update(NamedTuple):
    """The update of one weight.

    Attributes:
        shape: Its shape.
        names: Names of its factors.
        read: Computes it in float64, or the part of it at an index.
        table: Whether it is of an embedding.
    """

    shape: tuple[int, ...]
    names: tuple[str, ...]
    read: Callable[[Index], Tensor]
    table: bool


def factor_groups(names: Iterable[str]) -> dict[str, dict[str, list[str]]]:
    """Return the stored names of each part of an adapter, by layer and part: one name, or one per adapter.

    Layers without a factor are left out.

    Example:
        >>> factor_groups(["fc.lora_A.weight", "fc.lora_B.weight", "fc.bias", "x.alpha"])
        {'fc': {'lora_A': ['fc.lora_A.weight'], 'lora_B': ['fc.lora_B.weight']}}
    """
    groups: dict[str, dict[str, list[str]]] = {}
    for name in names:
        match = _PART.fullmatch(name)
        if match is not None:
            groups.setdefault(match["layer"], {}).setdefault(match["part"], []).append(name)
        elif (match := _DIFFUSERS.fullmatch(name)) is not None:
            layer = match["layer"].replace(".processor.", ".") + (match["number"] or "")
            groups.setdefault(layer, {}).setdefault(f"lora_{match['part']}", []).append(name)
    return {layer: parts for layer, parts in groups.items() if parts.keys() != {"alpha"}}


def _product(down: Tensor, up: Tensor) -> Tensor:
    """Return ``B A``; of a convolution, one product per kernel tap."""
    product: Tensor = torch.einsum("or,r...->o...", up.flatten(1), down)
    return product


def _product_of_three(down: Tensor, mid: Tensor, up: Tensor) -> Tensor:
    return torch.einsum(
        "os...,sr...,ri...->oi...", up.flatten(1)[..., None, None], mid, down.flatten(1)[..., None, None]
    )


def _table(a: Tensor, b: Tensor) -> Tensor:
    """Return the update of an embedding, which PEFT stores transposed."""
    return (b @ a).mT


def _by_taps(core: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the weight of a convolution from its core ``(r, r, kernel)`` and two factors ``(r, axis)``."""
    return torch.einsum("rs...,ro,si->oi...", core, rows, columns)


def _hadamard(w1_a: Tensor, w1_b: Tensor, w2_a: Tensor, w2_b: Tensor) -> Tensor:
    return (w1_a @ w1_b) * (w2_a @ w2_b)


def _hadamard_by_taps(*parts: Tensor) -> Tensor:
    t1, w1_a, w1_b, t2, w2_a, w2_b = parts
    return _by_taps(t1, w1_a, w1_b) * _by_taps(t2, w2_a, w2_b)


def _whole(factor: Tensor) -> Tensor:
    return factor


def _kronecker(count: int, first: Compute, second: Compute, *parts: Tensor) -> Tensor:
    """Return the Kronecker product of two factors, the first of which is computed from ``count`` tensors."""
    one, two = first(*parts[:count]), second(*parts[count:])
    return torch.kron(one.reshape(*one.shape, *(1,) * (two.ndim - one.ndim)), two)


_FIRST: dict[tuple[str, ...], Compute] = {("lokr_w1",): _whole, ("lokr_w1_a", "lokr_w1_b"): torch.matmul}
_SECOND: dict[tuple[str, ...], Compute] = {
    ("lokr_w2",): _whole,
    ("lokr_w2_a", "lokr_w2_b"): torch.matmul,
    ("lokr_t2", "lokr_w2_a", "lokr_w2_b"): _by_taps,
}
_HADA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
_PRODUCTS: tuple[tuple[tuple[str, ...], Compute], ...] = (
    (("lora_A", "lora_B"), _product),
    (("lora_down", "lora_up"), _product),
    (("lora_down", "lora_mid", "lora_up"), _product_of_three),
    (("lora_embedding_A", "lora_embedding_B"), _table),
    (_HADA, _hadamard),
    (("hada_t1", *_HADA[:2], "hada_t2", *_HADA[2:]), _hadamard_by_taps),
    (("diff",), _whole),
    *(
        ((*one, *two), functools.partial(_kronecker, len(one), first, second))
        for one, first in _FIRST.items()
        for two, second in _SECOND.items()
    ),
)


def find_update(
    store: TensorStore, layer: str, parts: Mapping[str, list[str]], settings: Mapping[str, Any] | None
) -> Update:
    """Return the update of a layer with these parts (as in ``factor_groups``) and settings (``adapter_config.json``).

    Raises:
        AdapterError: Its factors do not tell it; the message is the reason.
    """
    names, compute = _rule(parts, settings or {})
    infos = [store.tensors[name] for name in names]
    unreadable = next((info.reason for info in infos if info.reason), None)
    if unreadable is not None:
        raise AdapterError(unreadable)
    try:
        shape = tuple(compute(*(torch.empty(info.shape, device="meta") for info in infos)).shape)
    except (RuntimeError, IndexError, ValueError) as error:
        raise AdapterError(f"factors that do not fit: {', '.join(str(info.shape) for info in infos)}") from error
    if len(shape) == MATRIX_NDIM and parts.keys() & _LYCORIS and _FLATTENED.search(layer):
        raise AdapterError(_KERNEL_UNKNOWN)
    scale = _scale(store, layer, parts, settings)
    flip = "lora_A" in parts and bool((settings or {}).get("fan_in_fan_out"))

    def read(index: Index) -> Tensor:
        update = scale * compute(*(store.load(name).to(torch.float64) for name in names))
        update = update.mT if flip else update
        return update[index] if index else update

    return Update(shape[::-1] if flip else shape, names, read, "lora_embedding_A" in parts)


def _rule(parts: Mapping[str, list[str]], settings: Mapping[str, Any]) -> tuple[tuple[str, ...], Compute]:
    """Return the names of the factors of a layer in the order of the function that computes its update."""
    factors = {part: names for part, names in parts.items() if part != "alpha"}
    if any(len(names) > 1 for names in parts.values()):
        raise AdapterError("factors of several adapters: analyse the model in memory")
    method = next((key for key in _VARIANTS if settings.get(key)), settings.get("peft_type", "LORA"))
    found = next((rule for rule in _PRODUCTS if set(rule[0]) == factors.keys()), None)
    if method not in {"LORA", "LOHA", "LOKR"} or found is None:
        raise AdapterError(f"its update is not a product of its parts ({method}: {', '.join(sorted(factors))})")
    return tuple(factors[part][0] for part in found[0]), found[1]


def _scale(store: TensorStore, layer: str, parts: Mapping[str, list[str]], settings: Mapping[str, Any] | None) -> float:
    """Return the factor on the product."""
    if "diff" in parts:
        return 1.0
    rank = _rank(store, parts)
    if "alpha" in parts:
        return float(store.load(parts["alpha"][0]).item()) / rank if rank else 1.0
    if settings is None:  # kohya and LyCORIS: alpha is the rank unless it is stored
        names = [name.removesuffix(".weight") for stored in parts.values() for name in stored]
        of_peft = any(re.search(r"^base_model\.|\.(hada|lokr)_\w+\.", name) for name in names)
        if of_peft or parts.keys() & {"lora_A", "lora_embedding_A"}:
            raise AdapterError(_NO_SCALE)
        return 1.0
    rank = rank or int(by_pattern(settings.get("rank_pattern"), layer, settings.get("r") or 1))
    return lora_scale(settings, layer, rank)


def lora_scale(settings: Mapping[str, Any], layer: str, rank: int) -> float:
    """Return ``alpha / r`` of a layer, or ``alpha / sqrt(r)`` for rank-stabilised LoRA."""
    default = next((settings[key] for key in ("lora_alpha", "alpha") if settings.get(key) is not None), rank)
    alpha = by_pattern(settings.get("alpha_pattern"), layer, default)
    return float(alpha) / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _rank(store: TensorStore, parts: Mapping[str, list[str]]) -> int:
    """Return the rank of the factors, 0 if both factors of a Kronecker product are whole."""
    part = next((part for part in _RANKED if part in parts), None)
    return 0 if part is None else store.tensors[parts[part][0]].shape[0]
