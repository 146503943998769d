"""Pull parameters back to their initial values, where a step moves away from them against the gradient's sense."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from tempbalance.balance.optimizers import unwrap
from tempbalance.balance.snapshot import Copies
from tempbalance.errors import ArgumentError, BalanceError, check_numbers
from tempbalance.layers import is_sharded

__all__ = ["PullBack"]

_KEY = "tempbalance_pull_back"


class PullBack(Copies):
    """Selective projection decay: a weight decay towards the initial weights, applied only where it is called for.

    After each step from ``w`` to ``w'``, for each tensor with initial value ``w0`` and gradient ``g``: if
    ``sum(g * (w - w0)) > 0``, the loss would fall on the way back, and ``w'`` is pulled back by ``strength * r *
    (w' - w0)`` with ``r = clip((||w' - w0|| - ||w - w0||) / ||w' - w0||, 0, 1)``. It works with any optimizer of torch
    and beside a :class:`~tempbalance.Balancer`. Use it for fine-tuning instead of weight decay (``weight_decay=0``).

    Source: Selective Projection Decay (Tian et al., NeurIPS 2024, arXiv 2411.01713),
    github.com/GT-RIPL/Selective-Projection-Decay. Deviations: the strength is a parameter of its own, in the released
    optimizers it is the weight decay of the group; ``g`` is the gradient after the step, which is another one only if a
    closure is evaluated several times.

    The initial values are copies in the optimizer's state: they are saved with it, and a resumed run is bit-identical.

    Args:
        optimizer: The optimizer.
        strength: Strength; 0 changes nothing.
        initial: ``"start"`` for the values before the first step, ``"zero"`` for 0, as for the factors of LoRA.

    Raises:
        ArgumentError: The strength is negative or not finite, or ``initial`` has another value.
        BalanceError: The optimizer has no step hooks, or a parameter is sharded.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = torch.optim.SGD([weight], lr=1.0)
        >>> pull_back = PullBack(optimizer, strength=1.0)
        >>> for gradient in (-1.0, -2.0):  # away from 1 in both steps: nothing calls for a pull
        ...     weight.grad = torch.full_like(weight, gradient)
        ...     optimizer.step()
        >>> weight.tolist()
        [4.0, 4.0]
    """

    def __init__(self, optimizer: Any, strength: float = 1.0, *, initial: str = "start") -> None:
        check_numbers(strength=strength)
        if not strength >= 0:
            raise ArgumentError(f"strength must be 0 or more, got {strength}")
        if initial not in {"start", "zero"}:
            raise ArgumentError(f"initial must be 'start' or 'zero', got {initial!r}")
        inner = unwrap(optimizer)
        super().__init__(inner, _KEY)
        if any(is_sharded(parameter) for parameter in self._parameters()):
            raise BalanceError("PullBack does not support sharded parameters (FSDP2) yet")
        self.strength = float(strength)
        self._from_zero = initial == "zero"
        self._before: dict[Tensor, Tensor] = {}
        self._hooks = [inner.register_step_pre_hook(self._remember), inner.register_step_post_hook(self._pull)]

    def remove(self) -> None:
        """Stop, and remove the initial values from the optimizer's state."""
        for hook in self._hooks:
            hook.remove()
        super().remove()

    def _parameters(self) -> Iterable[Tensor]:
        return (parameter for group in self._optimizer.param_groups for parameter in group["params"])

    @torch.no_grad()
    def _remember(self, *_: Any) -> None:
        """Copy the parameters before a step, and before the first one also as their initial values."""
        self._before = {p: p.detach().clone() for p in self._parameters() if p.requires_grad}
        if not self._from_zero:
            self._new.update({p: w for p, w in self._before.items() if p not in self._new and self._copy_of(p) is None})

    @torch.no_grad()
    def _pull(self, *_: Any) -> None:
        before, self._before = self._before, {}
        for parameter, w in before.items():
            if parameter.grad is None:
                continue
            copy = self._new.get(parameter, self._copy_of(parameter))
            w0 = torch.zeros_like(w) if copy is None else copy
            was, now = w - w0, parameter - w0
            called_for = torch.sum(parameter.grad * was.conj()).real > 0
            distance = torch.linalg.vector_norm(now)
            grown = ((distance - torch.linalg.vector_norm(was)) / distance).nan_to_num(0.0).clamp(0.0, 1.0)
            parameter.sub_(torch.where(called_for, self.strength * grown, 0.0).to(now.real.dtype) * now)
        self.store()
