"""The gradients of a classifier on a batch, for tasks that call all hooks."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from tempbalance.study import Batch, Method, outputs_of


def gradients(model: nn.Module, method: Method, batch: Batch) -> Tensor:
    """Compute the gradients of a batch.

    Args:
        model: The model, whose outputs are logits.
        method: The method, which may change the loss.
        batch: The batch, with class labels as targets.

    Returns:
        The loss of the task.
    """
    outputs = outputs_of(model, batch.inputs)
    loss = F.cross_entropy(outputs, batch.targets)
    method.loss(model, batch, outputs, loss).backward()
    return loss
