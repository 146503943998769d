"""A pretrained transformer with one layer that was re-initialised, as after a loading mistake."""

from __future__ import annotations

from pathlib import Path

import torch

from tempbalance.analysis import Analysis, analyze
from tempbalance.checkpoints import open_checkpoint

__all__ = ["DAMAGED", "analyze_damaged"]

DAMAGED = "encoder.layer.3.attention.self.query.weight"
_STD = 0.02  # of the initialisation of BERT


def analyze_damaged(folder: Path) -> Analysis:
    """Analyse the model in a folder after one of its layers was replaced by a random one."""
    with open_checkpoint(folder) as checkpoint:
        tensors = {name: checkpoint.load(name) for name in checkpoint.tensors}
    generator = torch.Generator().manual_seed(0)
    tensors[DAMAGED] = _STD * torch.randn(tensors[DAMAGED].shape, generator=generator)
    return analyze(tensors)
