"""SVFit: train the singular values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tempbalance.errors import check_integer
from tempbalance.study.methods.hooks import Batch, Training, TrainingMethod, freeze_all_but_head, linear_layers

__all__ = ["SVFit"]


class _SingularValues(nn.Module):
    """A weight as ``U diag(s) V^T`` plus a fixed remainder; only ``s`` is trained."""

    u: Tensor
    vh: Tensor
    rest: Tensor

    def __init__(self, weight: Tensor, rank: int | None) -> None:
        super().__init__()
        u, s, vh = torch.linalg.svd(weight.detach(), full_matrices=False)
        self.register_buffer("u", u[:, :rank].contiguous())
        self.register_buffer("vh", vh[:rank].contiguous())
        self.register_buffer("rest", weight.detach() - (self.u * s[:rank]) @ self.vh)

    def forward(self, values: Tensor) -> Tensor:
        """Return the weight."""
        return self.rest + (self.u * values) @ self.vh

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return the singular values."""
        return torch.einsum("oi,or,ri->r", weight, self.u, self.vh)


@dataclass
class SVFit(TrainingMethod):
    """Train the largest singular values of every linear layer, and the head; all other weights are frozen.

    It has far fewer trainable weights than LoRA. *When:* as LoRA, with even fewer data. It requires a learning rate
    about a hundred times that of fine-tuning.

    ``W = W_r + W_e``, where only the top r singular values are trained. PEFT 0.21
    does not have it (its KaSA adds a product), so this is a parametrization of PyTorch. Deviation: all linear
    layers are adapted.

    Attributes:
        rank: Number of singular values, None for all.
    """

    source = "SVFit (Sun et al. 2024, arXiv 2409.05926)"
    needs = ("pretrained",)

    rank: int | None = None

    def __post_init__(self) -> None:
        if self.rank is not None:
            check_integer("rank", self.rank, 1)

    def prepare(self, model: nn.Module, training: Training) -> nn.Module:
        """Decompose the weights."""
        for layer in freeze_all_but_head(model, "svfit").values():
            parametrize.register_parametrization(layer, "weight", _SingularValues(layer.weight, self.rank))
            layer.parametrizations.weight.original.requires_grad_(True)  # type: ignore[union-attr]
        return model

    def finish(self, model: nn.Module, batches: Sequence[Batch]) -> nn.Module:
        """Compose the weights."""
        for layer in linear_layers(model)[0].values():
            parametrize.remove_parametrizations(layer, "weight")
        return model
