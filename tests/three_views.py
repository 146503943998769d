"""The three views of a Transformers model: live, as a state dict, and as a folder. They must give the same rows."""

import math
from collections import defaultdict

import pytest

import tempbalance as tb
from tiny_transformers import quiet, tiny_model

# Types whose state dict has other rows than the model, since names do not tell what their modules do.
STATE_DICT = {
    **dict.fromkeys(("canine", "ctrl", "eomt", "eomt_dinov3", "videomt"), "a table by its module alone"),
    **dict.fromkeys(("sam", "sam_hq"), "a table by its module alone: point_embed"),
    **dict.fromkeys(("sam3", "sam3_lite_text", "sam3_video"), "a table by its module alone: reference_points"),
    "phi4_multimodal": "a table by its module alone: bias_values",
    "qwen2_5_omni_thinker": "a table by its module alone: audio_bos_eos_token",
    "lilt": "a linear layer named as an embedding: box_linear_embeddings",
    "markuplm": "a linear layer named as an embedding, and tables that are not: xpath_unitseq2_embeddings",
    "fuyu": "a linear layer named as an embedding: vision_embed_tokens",
    "patchtst": "a linear layer named as an embedding: input_embedding",
    "prophetnet": "a linear layer named as an embedding: relative_pos_embeddings",
    "vit_mae": "a linear layer named as an embedding: decoder_embed",
    "vjepa2": "a linear layer named as an embedding: predictor_embeddings",
    "jetmoe": "experts by their module alone: input_linear, output_linear",
    **dict.fromkeys(
        ("data2vec-audio", "hubert", "sew", "sew-d", "unispeech", "unispeech-sat", "wav2vec2", "wav2vec2-conformer"),
        "a 3-D weight by its module alone: a convolution with 19 or 128 taps",
    ),
    "wavlm": "a 3-D weight by its module alone: a convolution with 128 taps",
}
# Types whose folder has other rows.
FOLDER = {
    "shieldgemma2": "Transformers saves it under names that it does not load: from_pretrained initialises them anew",
}


def differences(model_type, folder):
    """Return how the state dict and the folder of a small model of a type differ from the live model, as text."""
    model = tiny_model(model_type)
    with quiet():
        model.save_pretrained(folder)
    live = tb.analyze(model, progress=False)
    stored = tb.analyze(folder, progress=False)
    found = {
        "state dict": compare(unfused(live, tb.analyze(model.state_dict(), progress=False))),
        "folder": compare((described(live), described(stored))),
    }
    skipped = {row.name for row in live.skipped} ^ {row.name for row in stored.skipped}
    found["folder"] += [f"{name} is skipped in one of both" for name in sorted(skipped)]
    return found


def unexpected(model_type, found):
    """Return the differences that are not listed."""
    listed = {"state dict": STATE_DICT, "folder": FOLDER}
    return [f"{view}: {line}" for view, lines in found.items() for line in lines if model_type not in listed[view]]


def described(analysis):
    return {row.name: (tuple(row.shape), row.alpha, row.kind, row.block) for row in analysis.layers}


def unfused(live, state):
    """Return shapes and alphas of both, without weights that are whole in the state dict and in parts in the model.

    How a fused weight is divided is known to its module alone. The parts must have the entries of the whole.
    """
    live = {name: row[:2] for name, row in described(live).items()}
    state = {name: row[:2] for name, row in described(state).items()}
    parts = defaultdict(int)
    for name, (shape, _) in live.items():
        for whole in wholes(name):
            if whole in state and whole not in live:
                parts[whole] += math.prod(shape)
    fused = {name for name, size in parts.items() if size == math.prod(state[name][0])}
    return (
        {name: row for name, row in live.items() if not wholes(name) & fused},
        {name: row for name, row in state.items() if name not in fused},
    )


def wholes(name):
    """Return the names that a weight may have a part of: ``experts.up`` and ``experts.up:0`` for ``experts.up:0:q``."""
    return {name.partition(":")[0], name.rpartition(":")[0]} - {"", name}


def compare(views):
    """Return one line per row that differs."""
    one, two = views
    lines = [f"no {name}" for name in one.keys() - two.keys()] + [f"also {name}" for name in two.keys() - one.keys()]
    for name in one.keys() & two.keys():
        (shape, alpha, *rest), (other_shape, other_alpha, *other_rest) = one[name], two[name]
        if (shape, rest) != (other_shape, other_rest) or alpha != pytest.approx(other_alpha, rel=1e-6, nan_ok=True):
            lines.append(f"{name}: {one[name]} live, {two[name]}")
    return sorted(lines)
