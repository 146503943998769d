"""Seeded models of the golden multipliers in golden/assignments.json; BERT and LLaMA need transformers.

Every module of type Linear or Conv2d, in the order of named_modules(), counted k = 0, 1, 2, ..., gets

    u = torch.rand(shape, generator=g, dtype=float64) * 2 - 1     one generator g, seeded with 0, for the whole model
    u[i] = u[i] / (1 + c_k * i)                                   i runs over dimension 0;  c_k = ((7 * k) % 11) / 64
    weight = (u * scale).to(float32)                              scale = 1, for fno2d 2**-5

Only exact or correctly rounded operations, so no library version and no processor changes a bit. The alphas differ
because the decay of the rows does. Nothing else in a model (biases, norms, embeddings, spectral weights) enters the
results.
"""

import torch
from torch import nn


def fill(model: nn.Module, scale: float = 1.0) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    layers = [module for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    for k, layer in enumerate(layers):
        shape = layer.weight.shape
        u = torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1
        rows = 1 + ((7 * k) % 11) / 64 * torch.arange(shape[0], dtype=torch.float64)
        u = u / rows.reshape(-1, *[1] * (len(shape) - 1))
        with torch.no_grad():
            layer.weight.copy_((u * scale).to(torch.float32))
    return model.eval()


class Block(nn.Module):
    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if before != width:
            self.shortcut = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + self.shortcut(x)).relu()


class ResNet(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = nn.Sequential(Block(width, width, 1), Block(width, width, 1))
        self.layer2 = nn.Sequential(Block(width, 2 * width, 2), Block(2 * width, 2 * width, 1))
        self.layer3 = nn.Sequential(Block(2 * width, 4 * width, 2), Block(4 * width, 4 * width, 1))
        self.linear = nn.Linear(4 * width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer3(self.layer2(self.layer1(self.bn1(self.conv1(x)).relu())))
        return self.linear(x.mean((2, 3)))


def vision_model(width: int = 16) -> nn.Module:
    """A CIFAR ResNet of two blocks a stage, `width`, 2 and 4 times `width` channels."""
    torch.manual_seed(0)
    return fill(ResNet(width))


def bert_model() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=256,
        vocab_size=100,
        num_labels=2,
    )
    return fill(BertForSequenceClassification(config))


def llama_model() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=176,
        vocab_size=100,
        tie_word_embeddings=False,
    )
    return fill(LlamaForCausalLM(config))


class Spectral(nn.Module):
    def __init__(self, width: int, modes: int) -> None:
        super().__init__()
        self.weights1 = nn.Parameter(torch.rand(width, width, modes, modes, dtype=torch.cfloat) / width**2)
        self.weights2 = nn.Parameter(torch.rand(width, width, modes, modes, dtype=torch.cfloat) / width**2)


class FNO2d(nn.Module):
    """The layers only: it has no forward."""

    def __init__(self, channels: int = 4, modes: int = 12, width: int = 20, initial_step: int = 10) -> None:
        super().__init__()
        self.fc0 = nn.Linear(initial_step * channels + 2, width)
        for i in range(4):
            setattr(self, f"conv{i}", Spectral(width, modes))
        for i in range(4):
            setattr(self, f"w{i}", nn.Conv2d(width, width, 1))
        self.fc1 = nn.Linear(width, 128)
        self.fc2 = nn.Linear(128, channels)


def fno2d_model(rank_of_w3: int = 20, scale: float = 2**-5) -> nn.Module:
    """With a rank below 20, the last rows of w3.weight are zero, and so are that many of its eigenvalues."""
    torch.manual_seed(0)
    model = fill(FNO2d(), scale)
    with torch.no_grad():
        model.w3.weight[rank_of_w3:] = 0
    return model


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 64)


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(6))


def chain_model(kind: str = "plain", at: int = 2) -> nn.Module:
    """Six Linear(64, 64), `layers.{i}.fc`, for the edges.

    "equal" gives all of them the weight of the first; "zeros" and "identity" replace the weight at `at` by that.
    """
    torch.manual_seed(0)
    model = fill(Chain())
    with torch.no_grad():
        for i, layer in enumerate(model.layers):
            if kind == "equal":
                layer.fc.weight.copy_(model.layers[0].fc.weight)
            elif kind == "zeros" and i == at:
                layer.fc.weight.zero_()
            elif kind == "identity" and i == at:
                layer.fc.weight.copy_(torch.eye(64))
    return model
