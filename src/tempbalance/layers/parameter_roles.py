"""What a parameter does in its model: query projection, MLP, norm, head, ...

Roles of weights follow from names, kinds and shapes alone, so that a live model, a state dict and a file have the same
ones. A new name is one more alternative in the tables below.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from torch import nn

from tempbalance.layers.layer_candidates import find_candidates, first_convolution
from tempbalance.layers.routers import find_routers
from tempbalance.layers.select import Select
from tempbalance.layers.units import Unit, find_norms, parameter_names, source_parameters
from tempbalance.layers.weights import Weight

__all__ = ["ROLES", "ParameterFacts", "describe_parameters", "find_role_units", "find_roles"]

ROLES = (
    *("embedding", "position", "norm", "q", "k", "v", "qkv", "kv", "o", "gate", "up", "gate_up", "down", "router"),
    *("pooler", "head", "stem", "entry", "shortcut", "conv", "depthwise", "lifting", "spectral", "skip", "projection"),
    *("rnn_input", "rnn_hidden", "linear", "other"),
)
_PARTS = {"q", "k", "v", "gate", "up"}  # of a fused weight, as in ``c_attn.weight:q``
_VECTORS = r"(_?(proj|projection|lin|linear|layer|net|conv|dense|attn|head))?(_?[ab](_proj)?)?"
# Names of a layer, whatever is around it; the first match counts.
_NAMES = {
    "q": rf"(to_|w|c_|fc_|linear_|lin_|in_proj_)?q(uery|ueries)?{_VECTORS}",
    "k": rf"(to_|w|c_|fc_|linear_|lin_|in_proj_)?k(ey|eys)?{_VECTORS}",
    "v": rf"(to_|w|c_|fc_|linear_|lin_|in_proj_)?v(alue|alues)?{_VECTORS}",
    "qkv": r"\w*qkv\w*|c_attn|query_key_value|queries_keys_values|att_proj",
    "kv": r"\w*kv\w*|key_value\w*|keys_values",
    "o": r"to_out|w?o_?(proj|lin)|attn_out\w*|\w*attention_output",
    "gate_up": r"gate_?(and_)?up\w*|up_?gate\w*|\w*gate_up\w*",
    "gate": r"gate(_(proj|projection|lin|linear|layer))?|wi_0|\w*_gate",
    "up": r"up(_(proj|projection|lin|linear))?|fc_?(1|in|up)|c_fc|lin(ear)?_?(1|in)|wi(_1)?|dense_h_to_4h"
    r"|intermediate|\w*intermediate_dense|ff(n|_layer)?_?1|in_layer|pwconv1",
    "down": r"down(_(proj|projection|lin|linear))?|fc_?(2|out|down)|lin(ear)?_?2|dense_4h_to_h|ff(n|_layer)?_?2"
    r"|\w*output_dense|ffn_output|out_layer|pwconv2",
}
_OUTPUTS = (
    r"dense|c_proj|post(_proj)?|out(put)?(_?(proj|projection|lin|linear|layer))?|proj(_out|ection)?|w?o|linear_out|fc"
)
_ATTENTION = r"\w*(attn|attention)\w*|(self|cross)_?att\w*|att"
_MLP = r"\w*(mlp|ffn?|feed_?forward|moe|expert|denserelu|intermediate)\w*"
_SHORTCUT = r"\w*(downsample|shortcut)\w*"
_POSITION = r".*(pos(ition)?(al)?_?(emb|enc|ids)|position|wpe|relative_attention_bias|rel_pos|pos_).*"
# Anywhere in the name of a weight outside of the blocks, or of a neural operator.
_PLACES = {
    "stem": r"\w*patch_embed\w*|stem",
    "pooler": r"\w*pooler\w*",
    "head": r"lm_head|embed_out|classifier\w*|classification_head|score|qa_outputs|\w*predictions?|heads?|cls",
    "lifting": r"lift(ing)?",
    "projection": r"projection",
    "skip": r"\w*skips?",
}


class _Described(Protocol):
    """A weight, or a row of an analysis."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> str: ...

    @property
    def block(self) -> str | None: ...

    @property
    def shape(self) -> tuple[int, ...]: ...


def find_roles(weights: Iterable[_Described], stem: str | None = None) -> dict[str, str]:
    """Return the role of each weight of a model, by name.

    Args:
        weights: All weights (or rows of an analysis) of a model, in its order.
        stem: Name of its first convolution, which may have no row; None if that is not known.

    Returns:
        One of ``ROLES`` per name. A weight of unknown name has role ``linear``, ``conv`` or ``other``, by its kind.

    Example:
        >>> from tempbalance.layers import find_weights
        >>> layer = nn.TransformerEncoderLayer(64, 4, 128)
        >>> list(find_roles(find_weights(layer)[0]).values())
        ['q', 'k', 'v', 'o', 'up', 'down']
    """
    found = list(weights)
    shapes = {weight.name.partition(":")[0]: weight.shape for weight in found}
    routers = find_routers(weight.name for weight in found)
    roles = {each.name: "router" if each.name in routers else _role(each, shapes) for each in found}
    _mark_ends(found, roles, stem)
    _mark_entries(found, roles)
    return roles


class ParameterFacts(NamedTuple):
    """What is known of a parameter without its values.

    Attributes:
        role: One of ``ROLES``. A bias has the role of its layer, a fused parameter ``qkv``, ``kv`` or ``gate_up``.
        kind: Kind of its weight, as in ``Weight``; ``"vector"`` for biases, norms and other parameters.
        fan_in: Inputs of its weight, kernel taps included, 1 for an embedding; 0 if unknown or a vector.
        fan_out: Outputs of its weight (of one part, if it is fused); the size of a vector.
    """

    role: str
    kind: str
    fan_in: int
    fan_out: int


def describe_parameters(model: nn.Module, weights: Sequence[Weight]) -> dict[str, ParameterFacts]:
    """Return facts about each parameter of a live model, by name as in ``parameter_names``.

    ``weights`` are all weights of the model, embeddings included.

    Example:
        >>> from tempbalance.layers import find_weights
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=8), nn.Linear(8, 4))
        >>> [tuple(facts) for facts in describe_parameters(net, find_weights(net)[0]).values()][::2]  # without biases
        [('stem', 'conv2d', 27, 8), ('norm', 'vector', 0, 8), ('depthwise', 'vector', 0, 72), ('head', 'linear', 8, 4)]
    """
    parameters = parameter_names(model)
    stem = first_convolution(find_candidates(model, Select(), True))
    roles = find_roles(weights, stem)
    parts: dict[str, list[Weight]] = {}
    for weight in weights:
        for name in source_parameters(weight, parameters):
            parts.setdefault(name, []).append(weight)
    found = {name: _facts(own, [roles[weight.name] for weight in own]) for name, own in parts.items()}
    known = {name: facts.role for name, facts in found.items()}
    known |= {stem: "stem"} if stem and stem not in found else {}  # a single input channel has no spectrum
    known |= {name: "norm" for norm in find_norms(model) for name in norm.parameters}
    grouped = {name for name, module in model.named_modules() if getattr(module, "groups", 1) > 1}
    for name, parameter in parameters.items():
        if name not in found:
            role = known.get(name) or _of_layer(name, known, grouped)
            found[name] = ParameterFacts(role, "vector", 0, math.prod(parameter.shape))
    return {name: found[name] for name in parameters}


def find_role_units(model: nn.Module, weights: Sequence[Weight], everything: Sequence[Weight]) -> list[Unit]:
    """Return one unit per role of these weights, with all parameters of that role except those of other weights.

    ``everything`` are all weights of the live model, embeddings included: they tell the roles.

    Example:
        >>> from tempbalance.layers import find_weights
        >>> layers = nn.ModuleList(nn.TransformerEncoderLayer(64, 4, 128) for _ in range(3))
        >>> weights, _ = find_weights(layers)
        >>> [(unit.name, len(unit.weights)) for unit in find_role_units(layers, weights[1:], weights)]
        [('qkv', 8), ('o', 3), ('up', 3), ('down', 3)]
    """
    described, parameters = describe_parameters(model, everything), parameter_names(model)
    members: dict[str, list[str]] = {}
    inside: set[str] = set()
    for weight in weights:
        sources = source_parameters(weight, parameters)
        members.setdefault(described[sources[0]].role, []).append(weight.name)
        inside.update(sources)
    outside = {name for weight in everything for name in source_parameters(weight, parameters)} - inside
    layers = set(map(_layer, outside)) - set(map(_layer, inside))  # their biases are outside, too
    own = {name: facts.role for name, facts in described.items() if name not in outside and _layer(name) not in layers}
    return [
        Unit(name=role, weights=tuple(names), parameters=tuple(name for name, each in own.items() if each == role))
        for role, names in members.items()
    ]


def _layer(parameter: str) -> str:
    return parameter.rpartition(".")[0]


def _facts(weights: Sequence[Weight], roles: Sequence[str]) -> ParameterFacts:
    fan_in, fan_out = weights[0].fan or (0, 0)
    distinct = frozenset(roles)
    role = roles[0] if len(distinct) == 1 else _FUSED.get(distinct, "other")
    return ParameterFacts(role, weights[0].kind, fan_in, fan_out)


_FUSED = {frozenset("qkv"): "qkv", frozenset("kv"): "kv", frozenset({"gate", "up"}): "gate_up"}


def _of_layer(name: str, known: Mapping[str, str], grouped: Collection[str]) -> str:
    """Return the role of a parameter without a weight matrix: that of its layer, or of its place."""
    layer, _, attribute = name.rpartition(".")
    same = known.get(f"{layer}.{attribute.replace('bias', 'weight')}")
    own = [role for other, role in known.items() if layer and other.startswith(f"{layer}.")]
    if same or own:
        return same or own[0]
    if layer in grouped and attribute == "weight":
        return "depthwise"
    if re.fullmatch(_POSITION, name):
        return "position"
    return _of_place(_modules(name), inside=False) or "other"


def _role(weight: _Described, shapes: Mapping[str, tuple[int, ...]]) -> str:
    name, _, part = weight.name.partition(":")
    part = part.rpartition(":")[2]
    if part in _PARTS:
        return part
    if weight.kind in _OF_KIND:
        return _OF_KIND[weight.kind](name)
    modules, conv = _modules(name), weight.kind.startswith("conv")
    if conv and any(re.fullmatch(_SHORTCUT, module) for module in modules):
        return "shortcut"
    return (
        _of_place(modules, inside=weight.block is not None)
        or _in_block(modules, weight.shape, shapes, name)
        or ("conv" if conv else _OTHER.get(weight.kind, "linear"))
    )


_OTHER = {"parameter": "other"}
_OF_KIND: dict[str, Callable[[str], str]] = {
    "embedding": lambda name: "position" if re.fullmatch(_POSITION, name) else "embedding",
    "spectral_conv": lambda _: "spectral",
    "rnn": lambda name: "rnn_hidden" if "weight_hh" in name else "rnn_input",
}


def _of_place(modules: Sequence[str], *, inside: bool) -> str | None:
    """Return the role of a layer outside of the blocks, or of a skip connection of a neural operator."""
    places = {"skip": _PLACES["skip"]} if inside else _PLACES
    found = (role for role, pattern in places.items() if any(re.fullmatch(pattern, module) for module in modules))
    return next(found, None)


def _modules(name: str) -> list[str]:
    """Return the modules around a parameter, without places in lists and linear layers inside of a named one."""
    parts = name.split(".")
    modules = [part.lower() for part in (parts[:-1] or parts) if not part.isdecimal()] or [""]
    return modules[:-1] if len(modules) > 1 and modules[-1] == "linear" else modules


def _in_block(
    modules: Sequence[str], shape: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]], name: str
) -> str | None:
    """Return the role of a layer of attention or of an MLP; None if its name is unknown."""
    last = modules[-1]
    attention = [place for place, module in enumerate(modules) if re.fullmatch(_ATTENTION, module)]
    mlp = [place for place, module in enumerate(modules) if re.fullmatch(_MLP, module)]
    if last in {"w1", "w2", "w3", "w12"}:
        return _numbered(last, shape, shapes, name)
    if attention and (not mlp or attention[-1] > mlp[-1]) and re.fullmatch(_OUTPUTS, last):
        return "o"
    for role, pattern in _NAMES.items():
        if re.fullmatch(pattern, last):
            return role
    if re.fullmatch(_OUTPUTS, last) and (mlp or modules[-2:-1] == ["output"]):
        wide = last in {"proj", "fc"} and shape[0] > shape[1]  # names of either projection
        return "up" if wide or modules[-2:-1] == ["intermediate"] else "down"
    if not mlp or shape[0] == shape[1]:
        return None
    return "up" if shape[0] > shape[1] else "down"


def _numbered(last: str, shape: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]], name: str) -> str | None:
    """Return the role of a numbered layer of an MLP, as in LLaMA; None in another MLP, as in ProteinMPNN."""
    first, second, third = (shapes.get(re.sub(r"(?<=w)\d+(?=(\.weight)?$)", n, name, flags=re.I)) for n in "123")
    if (last == "w12" and third and shape[0] != 2 * third[1]) or (first and second and first != second[::-1]):
        return None
    return {"w1": "gate" if third else "up", "w2": "down", "w3": "up", "w12": "gate_up"}[last]


def _mark_ends(weights: Sequence[_Described], roles: dict[str, str], stem: str | None) -> None:
    """Give the first convolution role ``stem``, and the last layer outside of the blocks role ``head``."""
    plain = [each for each in weights if roles[each.name] in {"linear", "conv", "other"}]
    layers = [each for each in weights if each.kind != "embedding"]
    is_first = bool(layers) and stem in {None, layers[0].name.partition(":")[0]}
    if is_first and layers[0].kind.startswith("conv") and roles[layers[0].name] == "conv":
        roles[layers[0].name] = "stem"
    if plain and len(layers) > 1 and plain[-1] is layers[-1] and layers[-1].block is None:
        roles[layers[-1].name] = "head"


def _mark_entries(weights: Sequence[_Described], roles: dict[str, str]) -> None:
    """Give the first convolution of a block with a shortcut role ``entry``."""
    with_shortcut = {_parent(each.name) for each in weights if roles[each.name] == "shortcut"}
    for prefix in with_shortcut:
        inside = [each for each in weights if each.name.startswith(prefix) and roles[each.name] == "conv"]
        if inside:
            roles[inside[0].name] = "entry"


def _parent(name: str) -> str:
    """Return the name of the module around a shortcut, with a dot."""
    parts = name.split(".")
    place = next(i for i, part in enumerate(parts) if re.fullmatch(_SHORTCUT, part))
    return "".join(f"{part}." for part in parts[:place])
