"""How much of a model its rows hold: the number of its parameters, and of its weights inside blocks."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tempbalance.layers.names import TensorStore, unreadable
from tempbalance.layers.weights import Candidate, Weight
from tempbalance.types import ModelSize

if TYPE_CHECKING:
    from collections.abc import Hashable

__all__ = ["is_weight", "measure_size"]

# Reasons of skipped tensors that are no weights. A tensor that is skipped for any other reason counts as a weight.
_NO_WEIGHT = re.compile(
    r"tied to |embedding |bias of |a vector stored|state-space |a mask, |belongs to |integer buffer|not in "
    r"|a scale of |no LoRA |LoRA factor|a moving average of "
)
_STATISTIC = re.compile(r"(.*\.)?(running_(mean|var)|num_batches_tracked)")


def is_weight(reason: str) -> bool:
    """Return whether a tensor that is skipped for a reason counts as a weight that could not be analysed.

    Example:
        >>> is_weight("bias of shape (2, 3), not a weight matrix"), is_weight("4-bit floats: not supported")
        (False, True)
    """
    return not _NO_WEIGHT.match(reason)


def measure_size(
    source: nn.Module | TensorStore, weights: Sequence[Weight], skipped: Iterable[tuple[Candidate, str]]
) -> ModelSize:
    """Count the parameters of a model, given the selected rows, and the selected candidates without a row."""
    found = [(weight.shape, weight.block) for weight in weights if weight.kind != "embedding"]
    found += [(c.shape, c.block) for c, reason in skipped if c.shape and is_weight(reason)]
    return ModelSize(
        parameters=_of_model(source) if isinstance(source, nn.Module) else _of_store(source),
        weights=sum(math.prod(shape) for shape, _ in found),
        block_weights=sum(math.prod(shape) for shape, block in found if block is not None),
    )


def _of_model(model: nn.Module) -> int:
    """Count the parameters of a live model, a shared one once."""
    parameters = model.state_dict().values() if isinstance(model, torch.jit.ScriptModule) else model.parameters()
    return sum(map(_entries, parameters))


def _entries(parameter: Tensor) -> int:
    try:
        return int(getattr(parameter, "ds_numel", None) or parameter.numel())
    except Exception:  # one that is not initialised yet, or whatever a subclass raises: it is listed as skipped
        return 0


def _of_store(store: TensorStore) -> int:
    """Count the entries of floating-point and quantised tensors, without statistics; a tied one once."""
    reasons = unreadable(store)
    sizes: Mapping[Hashable, int] = {
        (info.identity or name): math.prod(info.shape)
        for name, info in store.tensors.items()
        if is_weight(reasons.get(name, "")) and not _STATISTIC.fullmatch(name)
    }
    return sum(sizes.values())
