"""Classify a parameter of a live module: the table of layer types.

A new layer type is one row in :data:`LAYER_TYPES`. Modules of optional packages are recognised by class name, so that
no optional package is imported.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tempbalance.layers.fused import Fused, find_fused, thirds
from tempbalance.layers.sharded import class_name
from tempbalance.layers.tables import table_role
from tempbalance.layers.weights import Role
from tempbalance.spectra.matrices import MATRIX_NDIM, Layout

__all__ = ["GATES", "Site", "attention_role", "conv_role", "experts_role", "loose_role", "role_of", "scale_role"]

STACK_NDIM = 3
GATES: dict[str, tuple[str, ...]] = {"LSTM": ("i", "f", "g", "o"), "GRU": ("r", "z", "n")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """The position of a parameter in a model.

    Attributes:
        name: Qualified name of the parameter.
        attribute: Name of the parameter in its module (``weight``).
        shape: Shape of the parameter.
        dtype: Dtype of the parameter.
        module: Module that contains the parameter.
        child: Name of the module in its owner (``c_attn``).
        owner: The parent of the module; None at the root.
    """

    name: str
    attribute: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    module: nn.Module
    child: str
    owner: nn.Module | None


def conv_role(kind: str, shape: tuple[int, ...]) -> Role:
    """Return the role of a convolution: one matrix per kernel tap, unless the taps are vectors."""
    if min(shape[:2]) == 1:
        reason = "every kernel tap is a vector (depthwise, or a single channel): no spectrum"
        return Role(kind=kind, layout=Layout.TAPS, reason=reason)
    return Role(kind=kind, layout=Layout.TAPS)


def scale_role(shape: tuple[int, ...]) -> Role:
    """Return the role of a weight with a bias of the same shape: a normalisation over several axes."""
    return Role(kind="parameter", reason=f"a scale of each entry (a norm over shape {shape}), not a weight matrix")


def attention_role(attribute: str, shape: tuple[int, ...]) -> Role | None:
    """Return the role of a matrix with a name as in ``nn.MultiheadAttention``; None for other names."""
    if len(shape) != MATRIX_NDIM or not re.fullmatch("(in|[qkv])_proj_weight", attribute):
        return None
    fused = attribute == "in_proj_weight" and shape[0] == 3 * shape[1]
    return Role(kind="attention", fused=thirds(shape[0]) if fused else None)


def _linear(site: Site) -> Role:
    if len(site.shape) == STACK_NDIM:  # nn.Bilinear: a matrix per output
        return Role(kind="linear", layout=Layout.STACK)
    return Role(kind="linear", fused=find_fused(site.owner, site.child, site.shape))


def _transposed_linear(site: Site) -> Role:
    return Role(kind="linear", fused=find_fused(site.owner, site.child, site.shape, axis=1), transposed=True)


def _attention(site: Site) -> Role | None:
    if site.attribute == "in_proj_weight":
        return Role(kind="attention", fused=thirds(site.shape[0]))
    return Role(kind="attention") if site.attribute.endswith("proj_weight") else None


def _rnn(site: Site) -> Role | None:
    if not site.attribute.startswith("weight"):
        return None
    gates = GATES.get(class_name(site.module).removesuffix("Cell"), ())
    mode = getattr(site.module, "mode", "")
    gates = gates or GATES.get(mode if isinstance(mode, str) else "", ())
    if not gates or site.attribute.startswith("weight_hr"):
        return Role(kind="rnn")
    fused = Fused(parts=gates, sizes=(site.shape[0] // len(gates),) * len(gates))
    return Role(kind="rnn", fused=fused)


def _conv(kind: str) -> Callable[[Site], Role]:
    return lambda site: conv_role(kind, site.shape)


def experts_role(shape: tuple[int, ...], *, gate_up: bool, transposed: bool, interleaved: bool = False) -> Role:
    """Return the role of stacked experts ``(experts, rows, columns)``; ``transposed`` ones are ``(experts, in, out)``.

    With ``gate_up`` each matrix has the gate and the up projection, which alternate neuron by neuron if
    ``interleaved``.
    """
    axis = 1 if transposed else 0
    size = shape[1 + axis] // 2
    if not gate_up or 2 * size != shape[1 + axis]:
        return Role(kind="experts", layout=Layout.STACK, transposed=transposed)
    sizes, groups = ((1, 1), size) if interleaved else ((size, size), 1)
    fused = Fused(parts=("gate", "up"), sizes=sizes, groups=groups, axis=axis)
    return Role(kind="experts", layout=Layout.STACK, fused=fused, transposed=transposed)


# Class of the owner and name of a stack of experts: whether it is gate and up projection, and whether ``(in, out)``.
_STACKS = {
    ("AriaExperts", "fc1"): (True, True),
    ("AriaExperts", "fc2"): (False, True),
    ("JetMoeMoE", "input_linear"): (True, False),
}


def _experts(site: Site) -> Role | None:
    """Return the role of experts of Transformers; ``down_proj`` shows which axis of ``gate_up_proj`` is the output."""
    module: Any = site.module
    if len(site.shape) == MATRIX_NDIM and hasattr(module, "moe_num_experts"):  # DBRX: (experts * neurons, hidden)
        count = int(module.moe_num_experts)
        sizes = (site.shape[0] // count,) * count
        return Role(kind="experts", fused=Fused(parts=tuple(map(str, range(count))), sizes=sizes))
    if len(site.shape) != STACK_NDIM:
        return None
    up, down = (getattr(module, name, None) for name in ("gate_up_proj", "down_proj"))
    layer = (class_name(site.owner), site.child) if site.owner is not None else ("", "")
    if layer in _STACKS:
        gate_up, transposed = _STACKS[layer]
        return experts_role(site.shape, gate_up=gate_up, transposed=transposed)
    known = site.attribute == "gate_up_proj" and getattr(module, "has_gate", True) and isinstance(down, torch.Tensor)
    shapes = [tuple(each.shape) for each in (up, down) if isinstance(each, torch.Tensor) and each.ndim == STACK_NDIM]
    transposed = len(shapes) > 1 and shapes[0] == (shapes[0][0], shapes[1][2], 2 * shapes[1][1])
    interleaved = not getattr(module, "is_concatenated", True)
    return experts_role(site.shape, gate_up=known, transposed=transposed, interleaved=interleaved)


def _has_class(module: nn.Module, pattern: str) -> bool:
    return any(re.fullmatch(pattern, f"{c.__module__}.{c.__qualname__}") for c in type(module).__mro__)


_CONVS = {
    getattr(nn, f"Conv{transposed}{n}d"): f"conv{'_transpose' if transposed else ''}{n}d"
    for transposed in ("", "Transpose")
    for n in (1, 2, 3)
}
LAYER_TYPES: tuple[tuple[type[nn.Module] | str, Callable[[Site], Role | None]], ...] = (
    (nn.Linear, _linear),
    (nn.Bilinear, _linear),
    *((cls, _conv(kind)) for cls, kind in _CONVS.items()),
    (nn.Embedding, lambda _: Role(kind="embedding")),
    (nn.EmbeddingBag, lambda _: Role(kind="embedding")),
    (nn.MultiheadAttention, _attention),
    (nn.RNNBase, _rnn),
    (nn.RNNCellBase, _rnn),
    (r"transformers\..*\.Conv1D", _transposed_linear),
    (r"(?i).*experts?[^.]*", _experts),
)


_AMBIGUOUS = (
    "shape {} in a module of unknown type: it could be a convolution, a stack or a table; "
    "to analyse it, pass a state dict of its matrices"
)


# ``(inputs, heads, features)`` or ``(outputs, heads, features)``: XLNet, Funnel.
_HEADS = re.compile(r"(.*\.)?(rel_attn\.[qkvor]|r_kernel)")
# A matrix per head or per scan direction: RecurrentGemma, Zamba, VMamba.
_STACK = re.compile(r"(.*\.)?(input_gate|recurrent_gate|x_proj|dt_projs?)_weight")


def loose_role(name: str, shape: tuple[int, ...], dtype: torch.dtype | None) -> Role:
    """Return the role of a parameter of a module of unknown type, with a reason if its shape is ambiguous."""
    table = table_role(name, shape)
    is_complex, is_stack = dtype is not None and dtype.is_complex, len(shape) == STACK_NDIM
    if table is not None:
        role = table
    elif sum(size > 1 for size in shape) <= 1 and not is_complex:
        role = Role(kind="parameter", reason=f"a vector stored with shape {shape}, not a weight matrix")
    elif len(shape) == MATRIX_NDIM:
        role = Role(kind="parameter")
    elif is_stack and _HEADS.fullmatch(name):
        role = Role(kind="attention", joined=True)
    elif is_stack and _STACK.fullmatch(name):
        role = Role(kind="parameter", layout=Layout.STACK)
    elif is_complex:
        role = Role(kind="spectral_conv", layout=Layout.TAPS)
    elif is_stack and "expert" in name.lower():
        role = Role(kind="experts", layout=Layout.STACK)
    else:
        role = Role(kind="parameter", reason=_AMBIGUOUS.format(shape))
    return role


def role_of(site: Site) -> Role:
    """Return the role of a parameter of a live module, with a reason if it cannot be analysed."""
    table = table_role(site.name, site.shape) if site.attribute != "weight" else None
    if table is not None:
        return table
    if site.attribute == "weight" and getattr(getattr(site.module, "bias", None), "shape", None) == site.shape:
        return scale_role(site.shape)
    for key, rule in LAYER_TYPES:
        if _has_class(site.module, key) if isinstance(key, str) else isinstance(site.module, key):
            role = rule(site)
            if role is not None:
                return role
    return attention_role(site.attribute, site.shape) or loose_role(site.name, site.shape, site.dtype)
