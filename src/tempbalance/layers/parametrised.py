"""Weights that a state dict holds in parts: weight norm, spectral norm, pruning masks, parametrizations.

The names of the parts tell how torch computes the weight. It is computed from them and has the name that it has in the
live model. Where the formula is not in the names, the weight is skipped with the reason. The parts are no weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from operator import eq, itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tempbalance.errors import WeightError
from tempbalance.layers.fused import Index
from tempbalance.layers.names import TensorInfo, TensorStore
from tempbalance.spectra.matrices import MATRIX_NDIM

__all__ = ["with_computed_weights"]

_HOOK = re.compile(r"(?P<weight>(.*\.)?[^.]+)_(?P<part>g|v|u|orig|mask)")
_PARAMETRIZATION = re.compile(r"(?P<layer>(.*\.)?)parametrizations\.(?P<attribute>[^.]+)\.(?P<part>.+)")
_UNKNOWN = (
    "computed by a parametrization whose formula is not in the file: analyse the live model, or save the weight itself "
    "(torch.nn.utils.parametrize.remove_parametrizations)"
)
_ALIGNED = 0.5


def _weight_norm(magnitude: Tensor, direction: Tensor) -> Tensor:
    """Return ``g v / |v|``; the axis on which ``g`` has a length is the one that has norms of its own."""
    axis = next((axis for axis, size in enumerate(magnitude.shape) if size > 1), 0 if magnitude.ndim else -1)
    wide = torch.promote_types(direction.dtype, torch.float32)
    return torch._weight_norm(direction.to(wide), magnitude.to(wide), axis).to(direction.dtype)


def _masked(original: Tensor, mask: Tensor) -> Tensor:
    return original * mask.to(original.dtype)


def _spectral_norm(original: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Return ``W / (u^T W v)``; ``W v`` has the direction of ``u`` on the axis of the power iteration."""
    wide = torch.promote_types(original.dtype, torch.float32)
    left, right = left.to(wide), right.to(wide)
    matrices = [original.to(wide).movedim(axis, 0).flatten(1) for axis in range(original.ndim)]
    images = [matrix @ right for matrix in matrices if matrix.shape == (len(left), len(right))]
    image = images[0]  # of a matrix, torch takes the first axis
    if original.ndim > MATRIX_NDIM and len(images) > 1:
        cosine, image = max(((float(abs(left @ image) / image.norm()), image) for image in images), key=itemgetter(0))
        if cosine < _ALIGNED:
            raise WeightError("spectral norm of a convolution without power iteration: analyse the live model")
    return (original.to(wide) / (left @ image)).to(original.dtype)


def _has_norm_shape(magnitude: torch.Size, direction: torch.Size) -> bool:
    """Return whether a shape is that of the norms of a weight: one axis of it, or a single number."""
    fits = len(magnitude) == len(direction) and all(a in {1, b} for a, b in zip(magnitude, direction, strict=True))
    return (fits and sum(size > 1 for size in magnitude) <= 1) or not magnitude


def _has_vector_shapes(original: torch.Size, left: torch.Size, right: torch.Size) -> bool:
    fits = len(left) == len(right) == 1 and left[0] in original
    return fits and left[0] * right[0] == original.numel()


class _Rule(NamedTuple):
    """A way to compute a weight: the names of its parts, a test of their shapes, the function, the shape's part."""

    parts: tuple[str, ...]
    fits: Callable[..., bool]
    compute: Callable[..., Tensor]
    shaped: int


_RULES = (
    _Rule(("g", "v"), _has_norm_shape, _weight_norm, 1),
    _Rule(("original0", "original1"), _has_norm_shape, _weight_norm, 1),
    _Rule(("orig", "mask"), eq, _masked, 0),
    _Rule(("original", "0.mask"), eq, _masked, 0),
    _Rule(("orig", "u", "v"), _has_vector_shapes, _spectral_norm, 0),
    _Rule(("original", "0._u", "0._v"), _has_vector_shapes, _spectral_norm, 0),
)


class _Computed(NamedTuple):
    """A weight that is computed from stored tensors; without a rule it cannot be computed."""

    info: TensorInfo
    names: tuple[str, ...]
    rule: _Rule | None


class _ComputedStore:
    """A store in which computed weights take the place of their parts."""

    def __init__(self, store: TensorStore, computed: Mapping[str, _Computed]) -> None:
        self._store = store
        self._computed = computed
        homes = {part: name for name, weight in computed.items() for part in weight.names}
        self.tensors: Mapping[str, TensorInfo] = {
            homes.get(name, name): computed[homes[name]].info if name in homes else info
            for name, info in store.tensors.items()
        }
        self.config: Mapping[str, Any] | None = store.config
        self.adapter_config: Mapping[str, Any] | None = store.adapter_config

    def load(self, name: str, index: Index = ()) -> Tensor:
        """Read a tensor, or the part of it at an index; a computed weight is computed first."""
        weight = self._computed.get(name)
        if weight is None or weight.rule is None:
            return self._store.load(name, index)
        tensor = weight.rule.compute(*map(self._store.load, weight.names))
        return tensor[index] if index else tensor


def with_computed_weights(store: TensorStore) -> TensorStore:
    """Return a store in which each weight that torch computes from several tensors has one name; itself if it has none.

    Example:
        >>> from tempbalance.layers.names import StateDict
        >>> layer = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(4, 3))
        >>> list(with_computed_weights(StateDict(layer.state_dict())).tensors)
        ['bias', 'weight']
    """
    groups: dict[str, dict[str, str]] = {}
    for name in store.tensors:
        match = _PARAMETRIZATION.fullmatch(name)
        if match is not None:
            groups.setdefault(match["layer"] + match["attribute"], {})[match["part"]] = name
        elif (match := _HOOK.fullmatch(name)) is not None:
            groups.setdefault(match["weight"], {})[match["part"]] = name
    found = {name: _computed(store, parts) for name, parts in groups.items() if name not in store.tensors}
    computed = {name: weight for name, weight in found.items() if weight is not None}
    return with_computed_weights(_ComputedStore(store, computed)) if computed else store  # a part may be computed, too


def _computed(store: TensorStore, parts: Mapping[str, str]) -> _Computed | None:
    """Return how a weight is computed from its parts; None if they are not parts of one weight."""
    for rule in _RULES:
        if set(rule.parts) == parts.keys():
            names = tuple(parts[part] for part in rule.parts)
            infos = [store.tensors[name] for name in names]
            if rule.fits(*(torch.Size(info.shape) for info in infos)):
                identity = tuple(info.identity for info in infos)
                reason = next((info.reason for info in infos if info.reason and info.dtype.is_floating_point), None)
                whole = infos[rule.shaped]
                return _Computed(
                    TensorInfo(whole.shape, whole.dtype, None if None in identity else identity, reason), names, rule
                )
    originals = [name for part, name in parts.items() if part.startswith("orig")]
    if not originals or parts.keys() == {"orig"}:
        return None
    whole = max((store.tensors[name] for name in originals), key=lambda info: len(info.shape))
    return _Computed(TensorInfo(whole.shape, whole.dtype, None, _UNKNOWN), tuple(parts.values()), None)
