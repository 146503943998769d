"""Muon for hidden matrices, AdamW for all other parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import torch.optim._muon
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tempbalance.errors import ArgumentError, check_numbers
from tempbalance.study.methods.hooks import TrainingMethod

__all__ = ["Muon", "hidden_weights", "orthogonalize"]

_Convolutions = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass
class Muon(TrainingMethod):
    """Orthogonalise the momentum of every hidden matrix; all other parameters have AdamW.

    *When:* training from scratch; the learning rate is about that of AdamW, since each update is scaled to the same
    root mean square.

    The scale of an update is ``0.2 sqrt(max(out, in))``, as in Moonlight, Liu et al. 2025 (arXiv 2502.16982).
    ``torch.optim.Muon`` with Nesterov momentum and 5 Newton-Schulz steps. As there, AdamW has the embeddings, the head,
    norms and biases, and of a convolutional network the first layer. A convolution is the matrix ``(out, rest)``.
    Deviations: vectors have no weight decay, and the steps are in float32.

    Attributes:
        momentum: Momentum of the matrices; AdamW has the ``betas`` of the task.
    """

    source = "Jordan et al. 2024 (kellerjordan.github.io/posts/muon)"

    momentum: float = 0.95

    def __post_init__(self) -> None:
        check_numbers(momentum=self.momentum)
        if not 0 <= self.momentum < 1:
            raise ArgumentError(f"momentum must be in [0, 1), got {self.momentum}")

    def optimizers(
        self, model: nn.Module, lr: float, weight_decay: float, betas: tuple[float, float] = (0.9, 0.999)
    ) -> list[torch.optim.Optimizer]:
        """Return Muon and AdamW (which has the ``betas``), to be stepped each with its own learning-rate schedule.

        Raises:
            ArgumentError: No hidden matrix is trained.
        """
        if any(parametrize.is_parametrized(module) for module in model.modules()):
            raise ArgumentError("Muon trains no parametrised weights, such as those of pego, sara and svfit")
        hidden = hidden_weights(model)
        if not hidden:
            raise ArgumentError(
                "Muon needs a trained linear layer or convolution that is neither the first nor the head"
            )
        muon = Matrices(
            hidden, lr=lr, weight_decay=weight_decay, momentum=self.momentum, adjust_lr_fn="match_rms_adamw"
        )
        taken = {id(weight) for weight in hidden}
        rest = [each for each in model.parameters() if each.requires_grad and id(each) not in taken]
        groups: list[dict[str, Any]] = [
            {"params": [each for each in rest if each.ndim > 1]},
            {"params": [each for each in rest if each.ndim <= 1], "weight_decay": 0.0},
        ]
        return [muon, torch.optim.AdamW(groups, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)]


def hidden_weights(model: nn.Module) -> list[nn.Parameter]:
    """Return the trained weights of linear layers and convolutions without the head, and without a first convolution.

    The head is the last of these layers; a weight shared with an embedding is left out as well.
    """
    layers = [each for each in model.modules() if isinstance(each, (nn.Linear, *_Convolutions))]
    first = [layers[0].weight] if layers and isinstance(layers[0], _Convolutions) else []
    ends = [*first, *(layer.weight for layer in layers[-1:])]
    embeddings = [each.weight for each in model.modules() if isinstance(each, nn.Embedding)]
    excluded = {id(weight) for weight in (*ends, *embeddings)}
    weights: dict[int, Any] = {id(layer.weight): layer.weight for layer in layers if layer.weight.requires_grad}
    return [weight for key, weight in weights.items() if key not in excluded]


class Matrices(torch.optim.Muon):
    """``torch.optim.Muon``, which takes matrices only, for convolutions as well: it trains views of shape (out, rest).

    Args:
        weights: The weights.
        **options: Of ``torch.optim.Muon``.
    """

    def __init__(self, weights: list[nn.Parameter], **options: Any) -> None:
        self._weights = weights
        # view, not reshape, which may copy: a step must change the weight; channels last are contiguous in memory
        self._views = [nn.Parameter(_last(weight.detach(), weight).view(len(weight), -1)) for weight in weights]
        super().__init__(self._views, **options)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take a step with the gradients of the weights."""
        for view, weight in zip(self._views, self._weights, strict=True):
            view.grad = None if weight.grad is None else _last(weight.grad, weight).reshape(view.shape)
        with patch.object(torch.optim._muon, "_zeropower_via_newtonschulz", orthogonalize):
            found: float | None = super().step(closure)  # type: ignore[no-untyped-call]
            return found

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of the weights."""
        super().zero_grad(set_to_none)
        for weight in self._weights:
            if set_to_none:
                weight.grad = None
            elif weight.grad is not None:
                weight.grad.zero_()


def orthogonalize(grad: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Return a matrix with singular values near 1, by the Newton-Schulz iterations of ``torch.optim.Muon``, in float32.

    It has bfloat16 there, which is slow on a CPU without bfloat16: 0.65 s a step for a model of 0.9 million parameters,
    and 0.05 s here. ``coefficients`` are those of the polynomial, and ``eps`` is the smallest norm.
    """
    a, b, c = coefficients
    x = grad.T if grad.size(0) > grad.size(1) else grad
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if grad.size(0) > grad.size(1) else x


def _last(tensor: Tensor, weight: Tensor) -> Tensor:
    """Move the input channels last where ``weight`` has them last in memory; orthogonalisation is the same."""
    return tensor if weight.is_contiguous() else tensor.movedim(1, -1)
