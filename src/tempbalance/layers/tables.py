"""Parameters with several axes that are no weight matrix, recognised by name: tables, state-space parameters, masks.

The rows of a table are tokens, positions, codes or queries: it has kind ``embedding`` and is analysed on request only.
Everything else here is skipped with a reason. The names are those of Transformers, timm, diffusers, xFormers and the
audio and state-space packages, and of llama.cpp.
"""

from __future__ import annotations

import re

from tempbalance.layers.weights import Role
from tempbalance.spectra.matrices import MATRIX_NDIM, Layout

__all__ = ["is_embedding_name", "table_role"]

# Layers (``wte.weight``) and parameters (``pos_embed``). ``class_embed`` is a head; a patch embedding is linear or a
# convolution.
_EMBEDDING = re.compile(
    r"(?!(class_embed|(.*_)?patch_embed(ding)?s?)$)(.*_)?(wte|wpe|emb|embd|embeds?|embeddings?(_\d+)?|embed_in"
    r"|embed_positions|embed_(\w+_)?tokens(_\w+)?|embeddings?_table|(embeds|embedding)_layer"
    r"|(mask|iou|hq|score|presence|register|query)_tokens?|quer(y|ies)_feat(ures)?|(queries|row|column)_embedder"
    r"|codebooks?|codevectors|(\w+_)?centroids|relative_attention_bias|attn_rel_b|pe_k)|shared|token_types"
    r"|embed_(char|global|timestep)"
)
# Parameters only: a layer of such a name can be linear.
_TABLE = re.compile(
    r"(?!w_)(.*_)?(pos_?emb\w*|posemb\w*|pos_enc\w*|position(al)?_(emb|enc|table)\w*|rel(ative)?_pos\w*|pos_idx\w*"
    r"|emb_rel\w*|rpb|ape|pe|alibi\w*|slopes?|slope_rate|\w+_table|modulation|freqs_\w+|(cos|sin)_cached|rotary\w*"
    r"|tokens?|token_(input|prompt|semantic|instance)|latents?(_\dd)?|quer(y|ies)|quer(y|ies)_(emb|feat|pos)\w*"
    r"|mem_(k|v|kv)|probe|prompts?|(prompt|prefix)_emb\w*|prototypes?|centroids?|centers|anchors|queue|memory_bank"
    r"|codes|embed_(avg|sum)|embeddings_concat)",
    re.IGNORECASE,
)
_STATE_SPACE = re.compile(
    r"A_logs?|log_A\w*|A_(real|imag|re|im)|Ds?|log_dt|inv_dt|(time|query|key|diagonal)_decay|time_first|time_faaaa"
)
# Names of llama.cpp, with or without ``.weight``.
_OF_LLAMA_CPP = re.compile(r"ssm_[ad]|time_mix_(first|decay|r_k|k_k|k_a|lerp_\w+|[awv]0)|channel_mix_lerp_\w+")
# llama.cpp stores the kernels of a depthwise convolution as (channels, kernel).
_DEPTHWISE, _KERNEL = re.compile(r"(\w+_)?conv(1d)?(_[qkv])?"), 16
_CONSTANT = re.compile(
    r"(.*_)?masks?|tril|triu|(running|pixel|norm|data|input|latents?)_(mean|std|var|cov)\w*|mean|std|cov\w*"
    r"|mel_(filters|basis|fb)|fb|dct_mat|(forward|inverse)_basis(_buffer)?|weight_integer|_?w3j(_\d+)*|U_matrix\w*"
)
_BIAS = re.compile(r"(.*_)?bias(_[kv]|es)?(_\w\d*(_reverse)?)?")


def is_embedding_name(name: str) -> bool:
    """Return whether a parameter is an embedding by the name of its layer (``wte.weight``, ``pos_embed``).

    Example:
        >>> is_embedding_name("transformer.wte.weight"), is_embedding_name("embed_out.weight")
        (True, False)
    """
    layer, attribute = _split(name)
    if attribute in {"weight", ""}:
        return bool(_EMBEDDING.fullmatch(layer.rpartition(".")[2]))
    return bool(_EMBEDDING.fullmatch(attribute) or _TABLE.fullmatch(attribute))


def _split(name: str) -> tuple[str, str]:
    """Return the name of the layer, and the attribute; a member of a ``ParameterList`` has the name of the list."""
    layer, _, attribute = name.rpartition(".")
    return _split(layer) if attribute.isdecimal() and layer else (layer, attribute)


def table_role(name: str, shape: tuple[int, ...]) -> Role | None:
    """Return the role of a parameter whose name says that it is no weight matrix, else None.

    The role has kind ``embedding``, or the reason why it is skipped. The weight of a convolution (a patch embedding),
    by its shape, is no table.

    Example:
        >>> table_role("mixer.A_log", (1536, 16)).reason
        'state-space parameter A_log (logarithms of decay rates and the like), not a weight matrix'
        >>> table_role("attn.rel_pos_h", (27, 64)).kind
        'embedding'
    """
    layer, attribute = _split(name)
    last = layer.rpartition(".")[2] if attribute == "weight" else attribute
    if is_embedding_name(name) and not (attribute == "weight" and len(shape) > MATRIX_NDIM):
        return Role(kind="embedding", layout=Layout.STACK if len(shape) > MATRIX_NDIM else Layout.MATRIX)
    if _BIAS.fullmatch(attribute):
        return Role(kind="parameter", reason=f"bias of shape {shape}, not a weight matrix")
    if attribute == "weight" and len(shape) == MATRIX_NDIM and shape[1] <= _KERNEL and _DEPTHWISE.fullmatch(last):
        return Role(kind="conv1d", reason=f"depthwise convolution stored with shape {shape}, not a weight matrix")
    if _STATE_SPACE.fullmatch(attribute) or _OF_LLAMA_CPP.fullmatch(last):
        reason = f"state-space parameter {last} (logarithms of decay rates and the like), not a weight matrix"
        return Role(kind="parameter", reason=reason)
    if _CONSTANT.fullmatch(attribute):
        return Role(kind="parameter", reason="a mask, statistic or constant by its name, not a weight matrix")
    return None
