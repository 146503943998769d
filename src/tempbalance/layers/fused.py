"""Fused weights: parameters that contain several weight matrices.

The fused axis consists of ``groups`` repetitions of the parts: GPT-2 stores ``q k v`` (one group), GPT-NeoX
``q k v q k v ...`` (one group per head), Falcon ``q q q k v ...`` (one group per key-value head), GPT-OSS
``gate up gate up ...`` (one group per neuron). :data:`FUSED` lists the layout of each module; a new architecture is one
row there.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tempbalance.layers.sharded import class_name

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["FUSED", "Fused", "FusedRule", "Index", "Reader", "find_fused", "thirds"]

Index = tuple[int | slice, ...]
Reader = Callable[[Index], "Tensor"]

QKV = ("q", "k", "v")
_KV, _GATE_UP, _UP_GATE = ("k", "v"), ("gate", "up"), ("up", "gate")
_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads")
_CODEGEN_SHARDS = 4  # CodeGenAttention.forward: mp_num = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Fused:
    """Layout of several weight matrices in one parameter.

    Attributes:
        parts: Names of the parts, in stored order.
        sizes: Length of each part along the fused axis, in one group.
        groups: Number of groups.
        axis: The fused axis.
    """

    parts: tuple[str, ...]
    sizes: tuple[int, ...]
    groups: int = 1
    axis: int = 0

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return whether the parts fill the fused axis of ``shape`` exactly."""
        return min(self.sizes) > 0 and self.groups * sum(self.sizes) == shape[self.axis]

    def shape_of(self, part: int, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of one part of a parameter of shape ``shape``."""
        length = self.groups * self.sizes[part]
        return (*shape[: self.axis], length, *shape[self.axis + 1 :])

    def take(self, part: int, read: Reader, index: Index = ()) -> Tensor:
        """Read one part (of the matrix at ``index``, such as an expert); if it is contiguous, nothing else is read."""
        start = sum(self.sizes[:part])
        stop = start + self.sizes[part]
        if self.groups == 1:
            return read((*index, *(slice(None),) * self.axis, slice(start, stop)))
        full = read(index)
        grouped = full.reshape(*full.shape[: self.axis], self.groups, sum(self.sizes), *full.shape[self.axis + 1 :])
        return grouped.narrow(self.axis + 1, start, stop - start).flatten(self.axis, self.axis + 1)


def thirds(length: int) -> Fused:
    """Return the layout of queries, keys and values of equal size, one after the other."""
    return Fused(parts=QKV, sizes=(length // 3,) * 3)


Sizer = Callable[["nn.Module", int, int], "Fused | None"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedRule:
    """One row of :data:`FUSED`.

    Attributes:
        attribute: Regular expression for the name of the linear layer in its owner.
        owner: Regular expression for the class name of the owner (the attention or MLP module).
        sizer: ``(owner, length of the fused axis, length of the other axis)`` to the layout; None if the owner
            does not define it.
    """

    attribute: str
    owner: str
    sizer: Sizer


def _number(owner: nn.Module, names: tuple[str, ...]) -> int | None:
    """Return the first of these attributes of the module or its config that is a positive integer."""
    for source in (owner, getattr(owner, "config", None)):
        for name in names:
            value: Any = getattr(source, name, None)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return None


def _thirds_of_square(_: nn.Module, length: int, width: int) -> Fused | None:
    return thirds(length) if length == 3 * width else None


def _equal(*parts: str) -> Sizer:
    """Return the sizer of parts of equal length, one after the other."""
    return lambda _, length, __: Fused(parts=parts, sizes=(length // len(parts),) * len(parts))


def _per_head(owner: nn.Module, length: int, _: int) -> Fused | None:
    heads = _number(owner, _HEADS)
    return (heads and Fused(parts=QKV, sizes=(length // (3 * heads),) * 3, groups=heads)) or None


def _grouped_query(owner: nn.Module, length: int, _: int) -> Fused | None:
    heads, kv_heads = _number(owner, _HEADS), _number(owner, _KV_HEADS)
    if not heads or not kv_heads:
        return None
    head = length // (heads + 2 * kv_heads)
    return Fused(parts=QKV, sizes=(heads * head, kv_heads * head, kv_heads * head))


def _falcon(owner: nn.Module, length: int, width: int) -> Fused | None:
    heads, kv_heads = _number(owner, _HEADS), _number(owner, ("num_kv_heads",))
    config = getattr(owner, "config", None)
    if getattr(config, "new_decoder_architecture", False) and heads and kv_heads:
        queries = heads // kv_heads
        head = length // (kv_heads * (queries + 2))
        return Fused(parts=QKV, sizes=(queries * head, head, head), groups=kv_heads)
    if getattr(config, "multi_query", False) and heads:
        head = length // (heads + 2)
        return Fused(parts=QKV, sizes=(heads * head, head, head))
    return _per_head(owner, length, width)


def _bigcode(owner: nn.Module, length: int, width: int) -> Fused | None:
    if getattr(owner, "is_cross_attention", False):
        return None
    if getattr(owner, "multi_query", False):
        keys = (length - width) // 2
        return Fused(parts=QKV, sizes=(width, keys, keys))
    return _per_head(owner, length, width)


def _codegen(_: nn.Module, length: int, __: int) -> Fused | None:
    size = length // (3 * _CODEGEN_SHARDS)
    return Fused(parts=("q", "v", "k"), sizes=(size,) * 3, groups=_CODEGEN_SHARDS)


def _gpt2(owner: nn.Module, length: int, width: int) -> Fused | None:
    if getattr(owner, "is_cross_attention", False):
        return Fused(parts=_KV, sizes=(length // 2,) * 2)
    return _thirds_of_square(owner, length, width)


def _exaone(owner: nn.Module, _: int, __: int) -> Fused | None:
    q_dim, kv_dim = _number(owner, ("q_dim",)), _number(owner, ("kv_dim",))
    return Fused(parts=QKV, sizes=(q_dim, kv_dim, kv_dim)) if q_dim and kv_dim else None


def _mamba(owner: nn.Module, length: int, _: int) -> Fused | None:
    """Input and gate of Mamba; gate, input, B, C and time step of Mamba-2."""
    inner = _number(owner, ("intermediate_size", "d_inner"))
    if inner and length == 2 * inner:
        return Fused(parts=("x", "z"), sizes=(inner, inner))
    groups, state = _number(owner, ("n_groups", "ngroups")), _number(owner, ("ssm_state_size", "d_state"))
    heads = _number(owner, ("num_heads", "nheads"))
    if not inner or not groups or not state or not heads:
        return None
    return Fused(parts=("z", "x", "B", "C", "dt"), sizes=(inner, inner, groups * state, groups * state, heads))


def _zamba(_: nn.Module, length: int, __: int) -> Fused | None:
    return Fused(parts=("x", "z"), sizes=(1, 1), groups=length // 2)


def _delta_net(owner: nn.Module, length: int, _: int) -> Fused | None:
    """Queries, keys, values and gate per key head of Qwen3-Next, or queries, keys and values of later models."""
    keys, values = _number(owner, ("key_dim",)), _number(owner, ("value_dim",))
    heads = _number(owner, ("num_k_heads",))
    if not keys or not values or not heads:
        return None
    if length == 2 * keys + values:
        return Fused(parts=QKV, sizes=(keys, keys, values))
    sizes = (keys // heads, keys // heads, values // heads, values // heads)
    return Fused(parts=(*QKV, "z"), sizes=sizes, groups=heads)


def _delta_gates(owner: nn.Module, length: int, _: int) -> Fused | None:
    heads = _number(owner, ("num_k_heads",))
    return (heads and Fused(parts=("b", "a"), sizes=(length // (2 * heads),) * 2, groups=heads)) or None


def _xlstm(owner: nn.Module, _: int, __: int) -> Fused | None:
    queries, values = _number(owner, ("qk_dim",)), _number(owner, ("v_dim",))
    return Fused(parts=(*QKV, "o"), sizes=(queries, queries, values, values)) if queries and values else None


def _latent_keys_values(owner: nn.Module, _: int, __: int) -> Fused | None:
    heads = _number(owner, _HEADS)
    keys, values = _number(owner, ("qk_nope_head_dim",)), _number(owner, ("v_head_dim",))
    return Fused(parts=_KV, sizes=(keys, values), groups=heads) if heads and keys and values else None


FUSED: tuple[FusedRule, ...] = (
    FusedRule(attribute="in_proj", owner="ZambaMamba.*", sizer=_zamba),
    FusedRule(attribute="in_proj", owner=".*(Mamba|Bamba|FalconH1).*", sizer=_mamba),
    FusedRule(attribute="in_proj_qkvz?", owner=".*GatedDeltaNet", sizer=_delta_net),
    FusedRule(attribute="in_proj_ba", owner=".*GatedDeltaNet", sizer=_delta_gates),
    FusedRule(attribute="in_proj", owner="Lfm2.*ShortConv", sizer=_equal("B", "C", "x")),
    FusedRule(attribute="kv_b_proj", owner=".*", sizer=_latent_keys_values),
    FusedRule(attribute="to_kv", owner="(Evolla|GraniteSpeech).*", sizer=_equal(*_KV)),
    FusedRule(attribute="input_linear", owner="GraniteMoe.*MLP", sizer=_equal(*_GATE_UP)),
    FusedRule(attribute="fc1", owner="(Moshi|KyutaiSpeechToText)GatingMLP", sizer=_equal(*_GATE_UP)),
    FusedRule(attribute="fc1", owner="Moonshine.*DecoderMLP", sizer=_equal(*_UP_GATE)),
    FusedRule(attribute="proj", owner="ClvpGatedLinearUnit|GEGLU|SwiGLU", sizer=_equal(*_UP_GATE)),  # of diffusers
    FusedRule(attribute="weights_in", owner=".*(SwiGLUFFN|GatedMLP)", sizer=_equal(*_GATE_UP)),  # DINOv2
    FusedRule(attribute="proj", owner="EsmFoldSelfAttention", sizer=_per_head),
    FusedRule(attribute="linear_1", owner="(AyaVision|Cohere2Vision)MultiModalProjector", sizer=_equal(*_UP_GATE)),
    FusedRule(attribute="kv_proj", owner="JetMoe.*", sizer=_equal(*_KV)),
    FusedRule(attribute="qkv_opreact", owner="(xLSTM|mLSTM)Layer", sizer=_xlstm),
    FusedRule(attribute="ifgate_preact", owner="(xLSTM|mLSTM)Layer", sizer=_equal("i", "f")),
    FusedRule(attribute="proj_up_gate_z", owner="(xLSTM)?FeedForward", sizer=_equal(*_GATE_UP)),
    FusedRule(attribute="query_key_value", owner="(GPTNeoX|Bloom|Persimmon).*", sizer=_per_head),
    FusedRule(attribute="query_key_value", owner="Falcon.*", sizer=_falcon),
    FusedRule(attribute="qkv_proj", owner="MiniMax.*", sizer=_per_head),
    FusedRule(attribute="qkv_proj", owner="CodeGen.*", sizer=_codegen),
    FusedRule(attribute="qkv_proj", owner="Phi[34].*", sizer=_grouped_query),
    FusedRule(attribute="in_proj", owner="DisentangledSelfAttention", sizer=_per_head),
    FusedRule(attribute="Wqkv", owner="Dbrx.*", sizer=_grouped_query),
    FusedRule(attribute="Wqkv", owner="(ModernBert|Mpt).*", sizer=_equal(*QKV)),
    FusedRule(attribute="Wi", owner="ModernBert.*", sizer=_equal(*_UP_GATE)),
    FusedRule(attribute="qkv", owner="Exaone.*", sizer=_exaone),
    FusedRule(attribute="qkv", owner="(Hiera|Sam2).*", sizer=_equal(*QKV)),
    FusedRule(attribute="c_attn", owner="GPTBigCode.*", sizer=_bigcode),
    FusedRule(attribute="c_attn", owner=".*", sizer=_gpt2),
    FusedRule(attribute="qkv|qkv_linear|att_proj", owner=".*", sizer=_thirds_of_square),
    FusedRule(attribute="gate_up_proj", owner="Phi4MultimodalAudio.*", sizer=_equal(*_UP_GATE)),
    FusedRule(attribute="gate_up_proj", owner=".*", sizer=_equal(*_GATE_UP)),
)


def find_fused(owner: nn.Module | None, attribute: str, shape: tuple[int, ...], axis: int = 0) -> Fused | None:
    """Return the layout of a fused linear layer; None if it is not fused, or its layout is unknown.

    Class and configuration of the owner, the parent module, define the layout. ``attribute`` is the name of the layer
    in it, such as ``c_attn``; ``axis`` is that of the outputs: 0 for ``nn.Linear``, 1 for the ``Conv1D`` of
    Transformers.

    Example:
        >>> import torch
        >>> class Attention(torch.nn.Module): ...
        >>> find_fused(Attention(), "qkv", (192, 64)).sizes
        (64, 64, 64)
    """
    if owner is None:
        return None
    for rule in FUSED:
        if re.fullmatch(rule.attribute, attribute) and re.fullmatch(rule.owner, class_name(owner)):
            found = rule.sizer(owner, shape[axis], shape[1 - axis])
            if found is None:
                continue
            found = replace(found, axis=axis)
            return found if found.fits(shape) else None
    return None
