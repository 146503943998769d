"""Tiny models with random adapters of every method of PEFT, and what PEFT merges them into."""

from __future__ import annotations

import copy

import numpy as np
import peft
import torch
import transformers
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

SIZES = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 60}
LINEAR = {"target_modules": ["q_proj", "up_proj"]}
# Settings that a method needs for matrices as small as these; other methods take LINEAR.
SETTINGS = {
    "IA3": {"target_modules": ["q_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    "ADALORA": LINEAR | {"total_step": 10, "init_r": 4},
    "OFT": LINEAR | {"oft_block_size": 8},
    "BOFT": LINEAR | {"boft_block_size": 4},
    "FOURIERFT": LINEAR | {"n_frequency": 50},
    "WAVEFT": LINEAR | {"n_frequency": 50},
    "C3A": LINEAR | {"block_size": 16},
    "VBLORA": LINEAR | {"num_vectors": 20, "vector_length": 16},
    "RANDLORA": LINEAR | {"r": 4},
    "MISS": LINEAR | {"r": 4},
    "SHIRA": LINEAR | {"r": 4},
    "ROAD": LINEAR | {"group_size": 16},
    "TRAINABLE_TOKENS": {"target_modules": ["embed_tokens"], "token_indices": [1, 5, 7]},
}
# These change no weight matrix, or what they add depends on the input.
UNMERGED = {"BEFT", "LILY", "LN_TUNING", "POLY", "SHADOW", "XLORA", "ADAPTION_PROMPT", "CARTRIDGE", "CPT"}
UNMERGED |= {"PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING"}
MERGED = sorted(method.value for method in PEFT_TYPE_TO_CONFIG_MAPPING if method.value not in UNMERGED)


def llama():
    """A Llama of one layer, the same each time."""
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, bos_token_id=1, eos_token_id=2)).eval()


def config_of(method):
    """The configuration of a method."""
    return PEFT_TYPE_TO_CONFIG_MAPPING[method](**SETTINGS.get(method, LINEAR))


def adapted(base, config, std=0.3):
    """A model with an adapter that looks trained: its parameters are random."""
    model = peft.get_peft_model(base, config)
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.is_floating_point():
            torch.nn.init.normal_(parameter, std=std)
    return model.eval()


def merged(model):
    """The weights of a model as PEFT merges them, as float64 arrays."""
    plain = copy.deepcopy(model).merge_and_unload()
    return {name: parameter.detach().double().numpy() for name, parameter in plain.named_parameters()}


def largest(matrix):
    """The largest eigenvalue of ``W^T W``; of the taps of a convolution, the largest of all."""
    taps = np.moveaxis(matrix, (0, 1), (-2, -1)) if matrix.ndim > 2 else matrix
    return np.linalg.svd(taps, compute_uv=False).max() ** 2
