"""Second gradients at a nearby point: SAM, and GLAD's steering by them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tempbalance.study.methods.hooks import TrainingMethod, check_positive, trained

__all__ = ["GLAD", "SAM"]


@dataclass
class SAM(TrainingMethod):
    """Step by the gradient at the point ``rho`` further up the gradient, where the loss is nearly the largest nearby.

    Flat minima generalise better. *When:* overfitting; a step takes twice as long. With ``lora`` joined it is the
    control of ``glad``.

    No deviation. Dropout differs between the two gradients.

    Attributes:
        rho: Distance, in the Euclidean norm of all trained weights; 0.05 in the paper.
    """

    source = "SAM (Foret et al., ICLR 2021, arXiv 2010.01412)"

    rho: float = 0.05

    def __post_init__(self) -> None:
        check_positive("rho", self.rho)

    def backward(self, model: nn.Module, closure: Callable[[], Tensor]) -> Tensor:
        """Compute both gradients; the second replaces the first."""
        loss = closure()
        with torch.no_grad():
            here = {p: p.grad for p in trained(model).values() if p.grad is not None}
            before = {p: p.clone() for p in here}
            norm = torch.linalg.vector_norm(torch.stack([grad.norm() for grad in here.values()]))
            for parameter, grad in here.items():
                parameter.add_(grad, alpha=float(self.rho / norm.clamp(min=1e-12)))
                parameter.grad = None
        closure()
        with torch.no_grad():
            for parameter, grad in here.items():
                parameter.copy_(before[parameter])
                if parameter.grad is not None:
                    parameter.grad = self._combine(grad, parameter.grad)
        return loss

    def _combine(self, here: Tensor, there: Tensor) -> Tensor:
        return there


@dataclass
class GLAD(SAM):
    """Take from the gradient of each weight what conflicts with the gradient of SAM.

    Where the two have a negative inner product, the gradient is projected to be orthogonal to that of SAM. *When:*
    fine-tuning with ``lora`` on few data, tested on other data: ``glad+lora``; ``sam+lora`` is the control.

    Ours, after the abstract of GLAD, which steers the gradient by that of SAM; how is our reading. Deviation: no CLIP.

    Attributes:
        rho: As of ``SAM``.
    """

    source = "after GLAD (Peng et al. 2025, arXiv 2507.13089)"

    def _combine(self, here: Tensor, there: Tensor) -> Tensor:
        product = (here * there).sum()
        return here - product.clamp(max=0) / there.square().sum().clamp(min=1e-30) * there
