"""Blocks: one per layer that the configuration states, from modules and from names alone."""

import re

import pytest
import torch
from torch import nn

import tempbalance as tb
from tempbalance.layers.blocks import block_namer
from tempbalance.layers.units import block_of_parameter

transformers = pytest.importorskip("transformers")

HIDDEN = ("num_hidden_layers",)
TOWERS = ("text_config.num_hidden_layers", "vision_config.num_hidden_layers")
SEQ2SEQ = ("encoder_layers", "decoder_layers")
T5 = ("num_layers", "num_decoder_layers")
# The settings whose sum is the number of layers, by model type: a spread over kinds of architectures.
LAYERS = {
    **dict.fromkeys(("bert", "deberta-v2", "mobilebert", "modernbert", "squeezebert"), HIDDEN),
    **dict.fromkeys(("llama", "phi3", "falcon", "gpt_neox", "rwkv", "mamba2", "xlstm", "jamba"), HIDDEN),
    **dict.fromkeys(("mixtral", "deepseek_v3", "gpt_oss", "qwen3_next", "jetmoe"), HIDDEN),
    **dict.fromkeys(("vit", "dinov2", "beit", "vitdet", "vilt"), HIDDEN),
    **dict.fromkeys(("wav2vec2", "hubert", "data2vec-audio", "wav2vec2-bert"), HIDDEN),
    **dict.fromkeys(("clip", "siglip", "owlvit", "blip", "groupvit", "llava"), TOWERS),
    **dict.fromkeys(("bart", "marian", "whisper", "speech_to_text", "fsmt"), SEQ2SEQ),
    **dict.fromkeys(("t5", "longt5", "switch_transformers", "udop"), T5),
    **dict.fromkeys(("convnext", "convnextv2", "focalnet", "hiera", "pvt", "pvt_v2", "swin", "swinv2"), ("depths",)),
    **dict.fromkeys(("segformer", "glpn", "poolformer", "resnet", "regnet", "bit", "donut-swin"), ("depths",)),
    **dict.fromkeys(("swiftformer", "dinov3_convnext", "textnet", "swin2sr"), ("depths",)),
    "cvt": ("depth",),
    "gpt2": ("n_layer",),
    "distilbert": ("n_layers",),
    "longcat_flash": ("num_layers",),
    "qwen2_vl": ("text_config.num_hidden_layers", "vision_config.depth"),
    "clap": ("text_config.num_hidden_layers", "audio_config.depths"),
    "florence2": ("vision_config.depths", "text_config.encoder_layers", "text_config.decoder_layers"),
}


def number(config, name):
    for part in name.split("."):
        config = getattr(config, part)
    return sum(config) if isinstance(config, (list, tuple)) else config


def blocks(namer, names):
    return list(dict.fromkeys(block for name in names if (block := namer(name)) is not None))


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # some models of Transformers use it
@pytest.mark.parametrize("kind", LAYERS)
def test_blocks_are_the_layers_that_the_configuration_states(kind):
    config = transformers.AutoConfig.for_model(kind)
    with torch.device("meta"):
        model = transformers.AutoModel.from_config(config)
    names = [name for name, _ in model.named_parameters()]
    live = blocks(block_of_parameter(model), names)
    assert len(live) == sum(number(config, name) for name in LAYERS[kind])
    by_name = block_namer(name for name, tensor in model.state_dict().items() if tensor.ndim > 1)
    assert blocks(by_name, names) == live


# Layers of small networks, as torchvision, timm and diffusers name them, and their blocks; {a,b} stands for a and b.
BY_NAME = {
    "ResNet": (
        "conv1 layer1.{0,1}.{conv1,conv2} layer2.0.{conv1,conv2,downsample.0} fc",
        "layer1.{0,1} layer2.0",
    ),
    "ConvNeXt of torchvision": (
        "features.0.0 features.{1,3}.{0,1}.block.{0,3,5} features.2.1 classifier.2",
        "features.{1,3}.{0,1}",
    ),
    "EfficientNet of torchvision": (
        "features.0.0 features.1.0.block.{0.0,1.fc1,1.fc2} features.2.{0,1}.block.{0.0,1.0,2.fc1,2.fc2,3.0}",
        "features.1.0 features.2.{0,1}",
    ),
    "MaxViT of torchvision": (
        "blocks.{0,1}.layers.{0,1}.layers.{MBconv.layers.{conv_a,conv_b}.0,{window,grid}.{attn_layer,mlp_layer}.1}",
        "blocks.{0,1}.layers.{0,1}",
    ),
    "EfficientNet of timm": (
        "blocks.0.0.{conv_dw,conv_pw} blocks.1.{0,1}.{conv_pw,conv_dw,conv_pwl}",
        "blocks.0.0 blocks.1.{0,1}",
    ),
    "ConvNeXt of timm": (
        "stem.0 stages.{0,1}.blocks.{0,1}.{conv_dw,mlp.fc1,mlp.fc2} stages.1.downsample.1 head.fc",
        "stages.{0,1}.blocks.{0,1}",
    ),
    "HRNet": (
        "stage2.{0,1}.branches.{0,1}.{0,1}.{conv1,conv2} stage2.{0,1}.fuse_layers.0.1.0",
        "stage2.{0,1}",
    ),
    "U-Net of diffusers": (
        "conv_in down_blocks.{0,1}.resnets.{0,1}.{conv1,conv2} down_blocks.0.downsamplers.0.conv "
        "down_blocks.0.attentions.{0,1}.{to_q,to_k,to_v,to_out.0}",
        "down_blocks.{0,1}.resnets.{0,1} down_blocks.0.attentions.{0,1}",
    ),
    "experts of Mixtral on disk": ("layers.{0,1}.{attn.q,moe.experts.{0,1,2}.{w1,w2}}", "layers.{0,1}"),
    "experts directly in a layer": ("layers.{0,1}.{experts,shared_experts}.{0,1}.{w1,w2}", "layers.{0,1}"),
    "MLPs of a layer": ("layer.{0,1}.{q,k,ffn.{0,1,2,3,4}.{up,down}}", "layer.{0,1}"),
    "attention and MLP in one list": ("layers.{0,1}.{0.to_qkv,0.to_out,1.net.0,1.net.3}", "layers.{0,1}"),
    "single layers alone": ("layers.{0,1}.conv", "layers.{0,1}"),
    "single layers before blocks": ("convs.{0,1}.conv layers.{0,1}.{a,b}", "layers.{0,1}"),
    "branches and heads": ("mixed.branch1.{0,1}.conv heads.0.{a,b}", ""),
    "plain layers": ("features.{0,3} classifier.1", ""),
}


def expand(pattern):
    inner = re.search(r"\{([^{}]*)\}", pattern)
    if inner is None:
        return [pattern] if pattern else []
    return [
        name
        for part in inner[1].split(",")
        for name in expand(pattern[: inner.start()] + part + pattern[inner.end() :])
    ]


@pytest.mark.parametrize("layers, expected", BY_NAME.values(), ids=BY_NAME)
def test_blocks_are_found_by_name(layers, expected):
    names = [f"{name}.weight" for pattern in layers.split() for name in expand(pattern)]
    expected = {name for pattern in expected.split() for name in expand(pattern)}
    assert set(blocks(block_namer(names), names)) == expected


def test_parameters_of_a_stage_outside_of_its_blocks_are_in_no_block():
    names = [f"stages.0.layers.{i}.{n}.weight" for i in (0, 1) for n in ("up", "down")]
    block_of = block_namer([*names, "stages.0.downsampling.1.weight"])
    assert block_of("stages.0.downsampling.1.weight") is None
    assert block_of("stages.0.layers.1.norm.bias") == "stages.0.layers.1"


def test_the_order_and_the_number_of_names_do_not_matter():
    names = [f"stages.{s}.layers.{i}.{n}.weight" for s in (0, 1) for i in range(12) for n in ("up", "down")]
    assert blocks(block_namer(reversed(names)), names) == [f"stages.{s}.layers.{i}" for s in (0, 1) for i in range(12)]


def test_factors_of_lora_and_parametrizations_are_no_layers():
    names = [f"layers.{i}.conv.parametrizations.weight.original{n}" for i in (0, 1) for n in (0, 1)]
    names += [f"layers.{i}.q.{n}.weight" for i in (2, 3) for n in ("base_layer", "lora_A.default", "lora_B.default")]
    names += ["layers.4.q.weight", "layers.4.k.weight"]
    assert blocks(block_namer(names), names) == ["layers.4"]


@pytest.mark.parametrize("view", ["live", "state dict"])
def test_an_analysis_has_the_blocks_of_stages(view):
    torch.manual_seed(0)
    model = transformers.ConvNextModel(
        transformers.ConvNextConfig(hidden_sizes=[16, 24], depths=[1, 2], num_stages=2, patch_size=2)
    )
    analysis = tb.analyze(model if view == "live" else model.state_dict(), progress=False)
    found = dict.fromkeys(layer.block for layer in analysis.layers if layer.block)
    assert list(found) == ["encoder.stages.0.layers.0", "encoder.stages.1.layers.0", "encoder.stages.1.layers.1"]


def test_a_balancer_of_blocks_has_one_unit_per_layer():
    torch.manual_seed(0)
    settings = {"embed_dim": [16, 24], "num_heads": [1, 1], "depth": [1, 2], "patch_sizes": [7, 3]}
    model = transformers.CvtModel(
        transformers.CvtConfig(**settings, patch_stride=[4, 2], patch_padding=[2, 1], cls_token=[False, True])
    )
    balancer = tb.Balancer(
        torch.optim.AdamW(model.parameters()), model, tb.recipes.model_balancing(), steps_per_epoch=1
    )
    assert [unit.name for unit in balancer.units] == [
        "encoder.stages.0.layers.0",
        "encoder.stages.1.layers.0",
        "encoder.stages.1.layers.1",
    ]


def test_a_numbered_child_of_a_module_that_is_not_a_list_is_no_stage():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module("0", nn.ModuleDict({"blocks": nn.ModuleList([nn.MultiheadAttention(4, 1)])}))

    model = nn.ModuleDict({"parts": Net()})
    assert block_of_parameter(model)("parts.0.blocks.0.in_proj_weight") == "parts.0.blocks.0"
