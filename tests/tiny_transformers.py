"""Small random models of the architectures of Transformers: the default configuration of each type, made small."""

import contextlib
import re
import warnings

import torch
import transformers
from transformers.models.auto import configuration_auto, modeling_auto

LAYERS = 2
MOST = 3_000_000  # parameters of a model
# Regular expression for the name of an integer, and its value (or the default, if that is smaller). The first match
# applies; other integers stay.
SMALL = (
    (r".*_(token_|pad_)?(id|index)", 1),
    (r"num_feat_extract_layers|num_conv_pos_embeddings|.*(layers?|depth)_(to|idx?|index|step|pattern)\w*", 128),
    (r"first_k_dense_replace|.*_layer_(start|end)", 1),
    (r"(.*_)?(num|n)_?(.*_)?(layers?|blocks)|(.*_)?depth", LAYERS),
    (r"(.*_)?(encoder|decoder|fusion|prediction|vision)_layers", LAYERS),
    (r"(.*_)?(num|n)_?(.*_)?(key_value|kv)_?heads|kv_n_heads", 2),
    (r"(.*_)?((num|n)_(.*_)?heads?|(attention|attn)_heads|heads|n_head)", 4),
    (r"mamba_d_head|mamba_head_dim", 16),
    (r"(.*_)?(head_dim|d_kv|head_size|kv_channels|attention_head_dim|d_head)", 8),
    (r"(.*_)?(intermediate_size|ffn_dim|d_ff|n_inner|.*ffn_size|ffn_hidden_size|mlp_dim|d_inner|feed_forward\w*)", 48),
    (r"(.*_)?(hidden_size|d_model|n_embd|embed(ding)?_dim|hidden_dim|dim|width|embedding_size|projection_dim)", 32),
    (r"(.*_)?vocab_size.*", 96),
    (r"(.*_)?image_size|img_size", 32),
    (r"(.*_)?patch_size", 8),
    (r"(.*_)?(num|n)_(\w*_)?experts|moe_num_experts", 4),
    (r"(.*_)?num_experts_per_tok|moe_top_k|moe_k|num_selected_experts|(.*_)?top_k|topk_group|n_group", 2),
    (r"(.*_)?(max_\w*position\w*|max_sequence_length|n_positions|n_ctx|context_size)", 64),
)  # fmt: skip
DEPTHS = re.compile(r"(.*_)?(depths?|layer_depths|num_blocks?|(num_)?layers)")
WIDTHS = re.compile(
    r"(.*_)?(hidden_sizes|(embed|embedding|conv|hidden)?_?dims?|(hidden_|out_)?channels?|widths|d_model)|conv_dim"
)
# Settings that are computed from others.
DERIVED = re.compile(r"_?out_(features|indices)|stage_names|_name_or_path|transformers_version|per_layer_config")
# Settings of one type that fit each other only so.
FITTING = {
    "esmc": {"num_key_value_heads": 4},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_d_head": 16, "mamba_n_heads": 4},
    "glm5_next_text": {"num_key_value_heads": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "attention_layers": ["global", "local"]},
    "laguna": {"num_attention_heads_per_layer": [4, 4]},
    "mamba2": {"head_dim": 16},
    "musicgen_decoder": {"num_codebooks": 2},
}


def tiny_model(model_type, seed=0):
    """Return a model of a type that has a text or a task head, if there is one, with random weights.

    Raises the error of the first class if none of its classes can be built from a small configuration.
    """
    errors = []
    with quiet():
        for cls in model_classes(model_type):
            try:
                with torch.device("meta"):
                    size = sum(parameter.numel() for parameter in cls(tiny_config(model_type)).parameters())
                if size > MOST:
                    raise ValueError(f"{cls.__name__} has {size} parameters, more than {MOST}")
                torch.manual_seed(seed)
                return cls(tiny_config(model_type)).eval()
            except Exception as error:  # of any of 500 model classes
                errors.append(error)
    raise errors[0] if errors else ValueError(f"{model_type} has no model class")


def tiny_config(model_type):
    """Return the default configuration of a type with small sizes."""
    cls = transformers.CONFIG_MAPPING[model_type]
    return cls.from_dict(shrunk("", cls().to_dict()))


def model_types():
    """Return the names of all types of Transformers that have a model class."""
    return [name for name in sorted(configuration_auto.CONFIG_MAPPING_NAMES) if model_classes(name)]


def model_classes(model_type):
    """Return the model classes of a type: for causal language models first, bare models before other tasks."""
    tables = [name for name in dir(modeling_auto) if name.endswith("_MAPPING_NAMES") and not name.startswith("CONFIG")]
    first = ("CAUSAL_LM", "IMAGE_TEXT_TO_TEXT", "PRETRAINING", "SEQ_TO_SEQ", "MODEL_MAPPING")
    tables.sort(key=lambda table: next((i for i, part in enumerate(first) if part in table), len(first)))
    names = []
    for table in tables:
        found = getattr(modeling_auto, table).get(model_type, ())
        names += [found] if isinstance(found, str) else found
    return [getattr(transformers, name) for name in dict.fromkeys(names) if hasattr(transformers, name)]


def shrunk(name, value):
    """Return a smaller value for a setting, at any depth."""
    if isinstance(value, dict):
        small = {key: shrunk(str(key), inner) for key, inner in value.items() if not DERIVED.fullmatch(str(key))}
        return small | FITTING.get(value.get("model_type"), {})
    if type(value) is int:
        limit = next((limit for pattern, limit in SMALL if re.fullmatch(pattern, name)), value)
        return min(value, limit)
    if isinstance(value, (list, tuple)) and value:
        return shrunk_list(name, value)
    return value


def shrunk_list(name, values):
    """Return one layer per stage, narrow widths, few heads, and each type of layer once."""
    if all(type(value) is int for value in values):
        if DEPTHS.fullmatch(name):
            return [1 for _ in values]
        if WIDTHS.fullmatch(name):
            return [max(1, value // max(1, min(values) // 16)) for value in values]
        if re.fullmatch(r"(.*_)?num_(attention_)?heads", name):
            return [min(value, 2) for value in values]
    if all(isinstance(value, str) for value in values) and re.fullmatch(r"\w*(layer|block)s?_?(block_)?types?", name):
        return (list(dict.fromkeys(values)) * LAYERS)[:LAYERS]
    return values


@contextlib.contextmanager
def quiet():
    """Silence the warnings and the progress bars of Transformers."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(level)
        transformers.utils.logging.enable_progress_bar()
